// Statistics of the parameters of all layers: sums of g g, g w, |g w| and w w for each. Free of torch.
//
// Two launches for as many layers as a table holds: `parameters` makes the sums of chunks of 4096 elements, a block
// each, and `fold` adds up each layer's. The order of a sum depends on the number of elements and on whether they can
// be read as vectors, never on the device.
#pragma once

#include <algorithm>
#include <vector>

#include "cuda/launch.h"
#include "cuda/table.h"
#include "cuda/vector.h"

namespace zcpipe::gpu {

enum ParameterEvent { kParameterVectors };

constexpr uint32_t kStatistics = 4;
constexpr uint32_t kParameterChunk = 4096;  // elements
constexpr int kLayersAtOnce = 120;          // what a launch's parameters have room for

struct Layer {
    const void *weight, *grad;  // of one order, without gaps
    uint32_t count;
    bool is_double, wide;  // wide: read as vectors

    template <typename T>
    static Layer of(const T* weight, const T* grad, int64_t count) {
        blocks_for(count, 1);  // refuses what 32 bits do not count
        return {weight, grad, uint32_t(count), sizeof(T) == sizeof(double), vectorises(kWidest<T>, weight, grad)};
    }
    uint32_t chunks() const { return (count + kParameterChunk - 1) / kParameterChunk; }
};

// The table of a launch: a block for each chunk.
struct Layers {
    Layer list[kLayersAtOnce];
    uint32_t first_chunk[kLayersAtOnce + 1];
    uint32_t count;
};
static_assert(sizeof(Layers) <= 4096);

template <typename T>
__device__ __forceinline__ void add_element(double* sums, T weight, T grad) {
    const double w = double(weight), g = double(grad), p = g * w;
    sums[0] += g * g;
    sums[1] += p;
    sums[2] += fabs(p);
    sums[3] += w * w;
}

// Elements begin .. end, of which those that do not fill a vector come last.
template <typename T>
__device__ __forceinline__ void add_elements(double* sums, const Layer& layer, uint32_t begin, uint32_t end) {
    constexpr uint32_t kSize = kWidest<T>;
    const T *const w = static_cast<const T*>(layer.weight), *const g = static_cast<const T*>(layer.grad);
    const uint32_t single = layer.wide ? end - (end - begin) % kSize : begin;
    for (uint32_t i = begin + threadIdx.x * kSize; i < single; i += blockDim.x * kSize) {
        const Vector<T, kSize> weights = load<kSize>(w + i), grads = load<kSize>(g + i);
        ZCPIPE_UNROLL
        for (uint32_t k = 0; k < kSize; ++k) add_element(sums, weights.data[k], grads.data[k]);
        count_event(kParameterVectors);
    }
    for (uint32_t i = single + threadIdx.x; i < end; i += blockDim.x) {
        add_element(sums, w[i], g[i]);
        count_event(kParameterVectors);
    }
}

// Adds up the threads' sums in halves; the first thread has them in `sums` then.
__device__ __forceinline__ void fold_threads(double* sums) {
    double* const shared = shared_memory<double>();  // [kStatistics, threads]
    ZCPIPE_UNROLL
    for (uint32_t s = 0; s < kStatistics; ++s) shared[s * blockDim.x + threadIdx.x] = sums[s];
    for (uint32_t half = blockDim.x / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x >= half) continue;
        ZCPIPE_UNROLL
        for (uint32_t s = 0; s < kStatistics; ++s)
            shared[s * blockDim.x + threadIdx.x] += shared[s * blockDim.x + threadIdx.x + half];
    }
    ZCPIPE_UNROLL
    for (uint32_t s = 0; s < kStatistics; ++s) sums[s] = shared[s * blockDim.x + threadIdx.x];
}

__global__ void parameters_kernel(double* partials, const __grid_constant__ Layers layers) {
    const uint32_t entry = entry_of(layers.first_chunk, layers.count, blockIdx.x);
    const Layer layer = layers.list[entry];
    const uint32_t begin = (blockIdx.x - layers.first_chunk[entry]) * kParameterChunk;
    const uint32_t end = layer.count - begin < kParameterChunk ? layer.count : begin + kParameterChunk;
    double sums[kStatistics] = {};
    if (layer.is_double)
        add_elements<double>(sums, layer, begin, end);
    else
        add_elements<float>(sums, layer, begin, end);
    fold_threads(sums);
    if (threadIdx.x > 0) return;
    ZCPIPE_UNROLL
    for (uint32_t s = 0; s < kStatistics; ++s) partials[size_t{blockIdx.x} * kStatistics + s] = sums[s];
}

// A block for each layer.
__global__ void parameters_fold_kernel(double* out, const double* partials, const __grid_constant__ Layers layers) {
    double sums[kStatistics] = {};
    for (uint32_t k = layers.first_chunk[blockIdx.x] + threadIdx.x; k < layers.first_chunk[blockIdx.x + 1];
         k += blockDim.x) {
        ZCPIPE_UNROLL
        for (uint32_t s = 0; s < kStatistics; ++s) sums[s] += partials[size_t{k} * kStatistics + s];
    }
    fold_threads(sums);
    if (threadIdx.x > 0) return;
    ZCPIPE_UNROLL
    for (uint32_t s = 0; s < kStatistics; ++s) out[blockIdx.x * kStatistics + s] = sums[s];
}

// Doubles that a call needs beside its result.
inline int64_t parameters_scratch(const std::vector<Layer>& layers) {
    int64_t chunks = 0;
    for (const Layer& layer : layers) chunks += layer.chunks();
    return chunks * kStatistics;
}

// out: [layers, 4], 0 for layers without elements. `threads`: a power of two from 32 on.
inline void parameter_statistics(double* out, double* scratch, const std::vector<Layer>& layers, cudaStream_t stream,
                                 int threads = 256) {
    constexpr int kFoldThreads = 64;
    for (size_t first = 0; first < layers.size(); first += kLayersAtOnce) {
        Layers table = {};
        table.count = uint32_t(std::min<size_t>(layers.size() - first, kLayersAtOnce));
        for (uint32_t k = 0; k < table.count; ++k) {
            table.list[k] = layers[first + k];
            table.first_chunk[k + 1] = table.first_chunk[k] + table.list[k].chunks();
        }
        const uint32_t chunks = table.first_chunk[table.count];
        if (chunks > 0)
            launch(parameters_kernel,
                   {blocks_for(chunks, 1), unsigned(threads), kStatistics * threads * sizeof(double), stream}, scratch,
                   table);
        launch(parameters_fold_kernel,
               {table.count, unsigned(kFoldThreads), kStatistics * kFoldThreads * sizeof(double), stream},
               out + first * kStatistics, static_cast<const double*>(scratch), table);
        scratch += size_t{chunks} * kStatistics;
    }
}

}  // namespace zcpipe::gpu
