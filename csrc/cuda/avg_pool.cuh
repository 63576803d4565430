// Average pooling 3x3, stride 1, padding 1, padding not counted, and its transpose. Free of torch.
//
// As on the CPU (cpu/avg_pool.cpp) NCHW is read as N C images of one channel, so that one kernel serves both layouts:
// only the distance of neighbouring pixels differs. A thread walks down a column of pixels and keeps the last three
// sums over a row's three pixels, so that each row is read once and a neighbour's reading finds it in the cache.
#pragma once

#include "cuda/images.h"
#include "cuda/launch.h"
#include "cuda/vector.h"

namespace zcpipe::gpu {

enum class PoolDirection { kForward, kBackward };
enum PoolEvent { kPoolRows };  // rows of three vectors read

constexpr int kPoolRowsPerThread = 4;

struct PoolImages {
    uint32_t columns, strips, threads;  // vectors in a row; pieces of kPoolRowsPerThread rows; of all images
    int32_t height, row, channels;      // a row is that many elements
    bool onto;                          // what is there is added to
};

// 1 / (how many of i - 1, i, i + 1 lie in 0 .. n - 1).
template <typename T>
__device__ __forceinline__ T pool_share(int32_t i, int32_t n) {
    return T(1) / T((i > 0) + 1 + (i < n - 1));
}

// The sum over three pixels of row h, whose own place in the row is i. The forward weights it by what is written, the
// backward by what is read, so that one is the other's transpose.
template <PoolDirection kDirection, int kSize, typename T>
__device__ __forceinline__ Vector<T, kSize> pool_row(const T* image, int32_t h, int32_t i, const PoolImages& g) {
    Vector<T, kSize> sum{};
    if (h < 0 || h >= g.height) return sum;
    count_event(kPoolRows);
    const bool first = i < g.channels, last = i >= g.row - g.channels;
    const T* here = image + size_t(h) * g.row + i;
    const int32_t width = g.row / g.channels, w = i / g.channels;
    const T weight = kDirection == PoolDirection::kBackward ? pool_share<T>(h, g.height) : T(1);
    const auto add = [&](const T* from, int32_t column) {
        const T share = kDirection == PoolDirection::kBackward ? weight * pool_share<T>(column, width) : weight;
        const Vector<T, kSize> v = load<kSize>(from);
        ZCPIPE_UNROLL
        for (int k = 0; k < kSize; ++k) sum.data[k] += v.data[k] * share;
    };
    if (!first) add(here - g.channels, w - 1);
    add(here, w);
    if (!last) add(here + g.channels, w + 1);
    return sum;
}

template <PoolDirection kDirection, int kSize, typename T>
__global__ void avg_pool3x3_kernel(T* out, const T* in, PoolImages g) {
    const uint32_t thread = blockIdx.x * blockDim.x + threadIdx.x;
    if (thread >= g.threads) return;
    const int32_t i = int32_t(thread % g.columns) * kSize;
    const uint32_t piece = thread / g.columns;
    const size_t image = size_t(piece / g.strips) * g.height * g.row;
    const int32_t top = int32_t(piece % g.strips) * kPoolRowsPerThread;
    const int32_t bottom = top + kPoolRowsPerThread < g.height ? top + kPoolRowsPerThread : g.height;
    const T column = kDirection == PoolDirection::kForward ? pool_share<T>(i / g.channels, g.row / g.channels) : T(1);

    Vector<T, kSize> above = pool_row<kDirection, kSize>(in + image, top - 1, i, g);
    Vector<T, kSize> here = pool_row<kDirection, kSize>(in + image, top, i, g);
    for (int32_t h = top; h < bottom; ++h) {
        const Vector<T, kSize> below = pool_row<kDirection, kSize>(in + image, h + 1, i, g);
        const T share = kDirection == PoolDirection::kForward ? column * pool_share<T>(h, g.height) : T(1);
        T* const to = out + image + size_t(h) * g.row + i;
        Vector<T, kSize> sum;
        ZCPIPE_UNROLL
        for (int k = 0; k < kSize; ++k) sum.data[k] = (above.data[k] + here.data[k] + below.data[k]) * share;
        if (g.onto) {
            const Vector<T, kSize> total = load<kSize>(static_cast<const T*>(to));
            ZCPIPE_UNROLL
            for (int k = 0; k < kSize; ++k) sum.data[k] = total.data[k] + sum.data[k];
        }
        store(to, sum);
        above = here;
        here = below;
    }
}

// `in` and `out` are images of shape `shape`, not empty, and do not overlap. `onto`: the result is added to `out`.
template <PoolDirection kDirection, typename T>
void avg_pool3x3(T* out, const T* in, bool onto, const Images& shape, cudaStream_t stream) {
    constexpr int kThreads = 256;
    const int64_t channels = shape.channels_last ? shape.channels : 1, row = shape.width * channels;
    const bool wide = channels > 1 && vectorises(channels, out, in);
    const int64_t columns = wide ? row / kWidest<T> : row;
    const int64_t strips = (shape.height + kPoolRowsPerThread - 1) / kPoolRowsPerThread;
    const int64_t threads = shape.numel() / (row * shape.height) * strips * columns;
    blocks_for(row, 1);  // 32 bits count a row's elements
    const Shape launch_shape = {
        .grid = blocks_for(threads, kThreads), .block = kThreads, .shared = 0, .stream = stream};
    const PoolImages g = {uint32_t(columns),
                          uint32_t(strips),
                          uint32_t(threads),
                          int32_t(shape.height),
                          int32_t(row),
                          int32_t(channels),
                          onto};
    launch(wide ? avg_pool3x3_kernel<kDirection, kWidest<T>, T> : avg_pool3x3_kernel<kDirection, 1, T>, launch_shape,
           out, in, g);
}

}  // namespace zcpipe::gpu
