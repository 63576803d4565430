// The op that does nothing: a copy. Every other op is written like this one. Free of torch.
//
// Above: kernels, which know neither tensors nor streams. Below: one function that chooses the launch and is all that
// null.cu (on a GPU) and tests/cuda/null.cpp (on the shim) call.
#pragma once

#include "cuda/launch.h"
#include "cuda/vector.h"

namespace zcpipe::gpu {

enum NullEvent { kNullVectors };  // what count_event counts

// One vector a thread. Neighbouring threads touch neighbouring addresses.
template <int kSize, typename T>
__global__ void null_kernel(T* out, const T* in, uint32_t vectors) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= vectors) return;  // allowed here: this kernel has no barrier
    store(out + size_t{i} * kSize, load<kSize>(in + size_t{i} * kSize));
    count_event(kNullVectors);
}

// out[i] = in[i] for i in 0 .. count - 1, where 0 < count.
template <typename T>
void null(T* out, const T* in, int64_t count, cudaStream_t stream) {
    constexpr int kThreads = 256;
    const bool wide = vectorises(count, out, in);  // else element by element: odd counts, slices that start anywhere
    const int64_t vectors = wide ? count / kWidest<T> : count;
    launch(wide ? null_kernel<kWidest<T>, T> : null_kernel<1, T>,
           {.grid = blocks_for(vectors, kThreads), .block = kThreads, .shared = 0, .stream = stream}, out, in,
           uint32_t(vectors));
}

}  // namespace zcpipe::gpu
