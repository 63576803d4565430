// The gradient of a ReLU, added to what is there or written in its place. Free of torch.
#pragma once

#include "cuda/launch.h"
#include "cuda/vector.h"

namespace zcpipe::gpu {

enum ReluGradientEvent { kReluGradientVectors };

template <int kSize, typename T>
__global__ void relu_gradient_kernel(T* to, const T* grad, const T* x, bool onto, uint32_t vectors) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= vectors) return;
    const size_t at = size_t{i} * kSize;
    Vector<T, kSize> g = load<kSize>(grad + at), total{};
    if (onto) total = load<kSize>(static_cast<const T*>(to + at));
    if (x != nullptr) {
        const Vector<T, kSize> v = load<kSize>(x + at);
        ZCPIPE_UNROLL
        for (int k = 0; k < kSize; ++k)
            if (v.data[k] <= T(0)) g.data[k] = T(0);  // NaN passes, as torch's does
    }
    ZCPIPE_UNROLL
    for (int k = 0; k < kSize; ++k) g.data[k] = onto ? total.data[k] + g.data[k] : g.data[k];
    store(to + at, g);
    count_event(kReluGradientVectors);
}

// to[i] = [to[i] +] (x[i] <= 0 ? 0 : grad[i]) for i in 0 .. count - 1, where 0 < count; to may be grad, and x null, for
// no ReLU.
template <typename T>
void relu_gradient(T* to, const T* grad, const T* x, bool onto, int64_t count, cudaStream_t stream) {
    constexpr int kThreads = 256;
    const bool wide = vectorises(count, static_cast<const T*>(to), grad, x);
    const int64_t vectors = wide ? count / kWidest<T> : count;
    launch(wide ? relu_gradient_kernel<kWidest<T>, T> : relu_gradient_kernel<1, T>,
           {.grid = blocks_for(vectors, kThreads), .block = kThreads, .shared = 0, .stream = stream}, to, grad, x, onto,
           uint32_t(vectors));
}

}  // namespace zcpipe::gpu
