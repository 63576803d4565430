// Sums over pixels of z dz for each sample and channel. Free of torch.
//
// One launch: nobody shares a sum. Double precision, in an order that depends on the shape, the layout and on whether
// the tensors can be read as vectors.
#pragma once

#include <algorithm>

#include "cuda/launch.h"
#include "cuda/vector.h"

namespace zcpipe::gpu {

enum ProductEvent { kProductVectors };

// Channels side by side: blocks are `blockDim.x` vectors of a sample's channels, and its pixels are shared by
// blockDim.y.
template <int kSize, typename T>
__global__ void product_sums_interleaved_kernel(double* out, const T* z, const T* dz, uint32_t pixels,
                                                uint32_t channels, uint32_t tiles) {
    const uint32_t sample = blockIdx.x / tiles, c = (blockIdx.x % tiles * blockDim.x + threadIdx.x) * kSize;
    const bool inside = c < channels;
    double sums[kSize] = {};
    if (inside) {
        const size_t first = size_t{sample} * pixels * channels + c;
        for (uint32_t p = threadIdx.y; p < pixels; p += blockDim.y) {
            const size_t at = first + size_t{p} * channels;
            const Vector<T, kSize> a = load<kSize>(z + at), b = load<kSize>(dz + at);
            ZCPIPE_UNROLL
            for (int k = 0; k < kSize; ++k) sums[k] += double(a.data[k]) * double(b.data[k]);
            count_event(kProductVectors);
        }
    }
    double* const shared = shared_memory<double>();  // [kSize, threads]
    const uint32_t threads = blockDim.x * blockDim.y, me = threadIdx.y * blockDim.x + threadIdx.x;
    ZCPIPE_UNROLL
    for (int k = 0; k < kSize; ++k) shared[k * threads + me] = sums[k];
    for (uint32_t half = blockDim.y / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.y >= half) continue;
        ZCPIPE_UNROLL
        for (int k = 0; k < kSize; ++k) shared[k * threads + me] += shared[k * threads + me + half * blockDim.x];
    }
    if (threadIdx.y > 0 || !inside) return;
    ZCPIPE_UNROLL
    for (int k = 0; k < kSize; ++k) out[size_t{sample} * channels + c + k] = shared[k * threads + me];
}

// A channel's pixels side by side: a warp for each sample and channel.
template <int kSize, typename T>
__global__ void product_sums_planes_kernel(double* out, const T* z, const T* dz, uint32_t pixels, uint32_t planes) {
    const uint32_t plane = blockIdx.x * (blockDim.x / kWarp) + threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    if (plane >= planes) return;  // the whole warp
    const size_t first = size_t{plane} * pixels;
    double sum = 0;
    for (uint32_t p = lane * kSize; p < pixels; p += kWarp * kSize) {
        const Vector<T, kSize> a = load<kSize>(z + first + p), b = load<kSize>(dz + first + p);
        ZCPIPE_UNROLL
        for (int k = 0; k < kSize; ++k) sum += double(a.data[k]) * double(b.data[k]);
        count_event(kProductVectors);
    }
    for (uint32_t half = kWarp / 2; half > 0; half /= 2) sum += __shfl_down_sync(kAllLanes, sum, half);
    if (lane == 0) out[plane] = sum;
}

// out: [samples, channels]; z and dz are not empty. `threads`: a power of two from 32 on.
template <typename T>
void product_sums(double* out, const T* z, const T* dz, int64_t samples, int64_t channels, int64_t pixels,
                  bool interleaved, cudaStream_t stream, int threads = 256) {
    const bool wide = vectorises(interleaved ? channels : pixels, z, dz);
    blocks_for(pixels, 1);  // refuses what 32 bits do not count
    if (!interleaved) {
        const int64_t planes = samples * channels;
        launch(wide ? product_sums_planes_kernel<kWidest<T>, T> : product_sums_planes_kernel<1, T>,
               {blocks_for(planes, threads / kWarp), unsigned(threads), 0, stream}, out, z, dz, uint32_t(pixels),
               uint32_t(planes));
        return;
    }
    const int64_t size = wide ? kWidest<T> : 1, columns = channels / size;
    unsigned across = 1;
    while (across < kWarp && across < columns) across *= 2;
    while (int64_t{threads} / across > pixels && across < unsigned(threads)) across *= 2;  // few pixels, as of rows
    const int64_t tiles = (columns + across - 1) / across;
    launch(wide ? product_sums_interleaved_kernel<kWidest<T>, T> : product_sums_interleaved_kernel<1, T>,
           {blocks_for(samples * tiles, 1), dim3(across, unsigned(threads) / across),
            size_t(size) * threads * sizeof(double), stream},
           out, z, dz, uint32_t(pixels), uint32_t(channels), uint32_t(tiles));
}

}  // namespace zcpipe::gpu
