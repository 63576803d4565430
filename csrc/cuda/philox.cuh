// Random words, normals, uniform numbers and signs as functions of (key, nonce, logical element index): the CPU's bits.
// Free of torch.
//
// The expressions are those of common/philox.h and common/normal.h; what is decided here is only which thread computes
// which block of the stream, so that no block is computed more often than must be and neighbouring threads write
// neighbouring addresses.
#pragma once

#include <algorithm>
#include <vector>

#include "common/normal.h"
#include "common/philox.h"
#include "cuda/images.h"
#include "cuda/launch.h"
#include "cuda/table.h"
#include "cuda/vector.h"

namespace zcpipe::gpu {

enum PhiloxEvent { kPhiloxBlocks };  // blocks of the stream computed

constexpr int kPhiloxThreads = 256;

__device__ __forceinline__ Block counted_philox(StreamId id, uint64_t index) {
    count_event(kPhiloxBlocks);
    return philox(id, index);
}

__device__ __forceinline__ NormalPair normals_of(StreamId id, uint64_t index) {
    const Block b = counted_philox(id, index);
    return normal_pair(uint64_t{b.w1} << 32 | b.w0, uint64_t{b.w3} << 32 | b.w2);
}

// A thread for each block: out[4 i .. 4 i + 3].
__global__ void philox_bits_kernel(int64_t* out, StreamId id, uint64_t first, uint64_t count) {
    const uint64_t i = uint64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (4 * i >= count) return;
    const Block b = counted_philox(id, first + i);
    const int64_t words[4] = {b.w0, b.w1, b.w2, b.w3};
    for (uint64_t k = 0; k < 4 && 4 * i + k < count; ++k) out[4 * i + k] = words[k];
}

// A thread for each pair: out[2 i], out[2 i + 1].
template <typename T>
__global__ void philox_normal_kernel(T* out, StreamId id, uint64_t count) {
    const uint64_t i = uint64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (2 * i >= count) return;
    const NormalPair pair = normals_of(id, i);
    if (2 * i + 1 < count) {
        store(out + 2 * i, Vector<T, 2>{T(pair.first), T(pair.second)});
    } else {
        out[2 * i] = T(pair.first);
    }
}

// A thread for each block: out[4 i .. 4 i + 3]. kSize elements are stored at once, where that many are always left.
template <int kSize, typename T>
__global__ void philox_uniform_kernel(T* out, StreamId id, uint64_t count) {
    const uint64_t i = uint64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (4 * i >= count) return;
    const Block b = counted_philox(id, i);
    const T values[4] = {uniform<T>(b.w0), uniform<T>(b.w1), uniform<T>(b.w2), uniform<T>(b.w3)};
    ZCPIPE_UNROLL
    for (uint32_t k = 0; k < 4; k += kSize) {
        if (4 * i + k >= count) return;
        Vector<T, kSize> v;
        ZCPIPE_UNROLL
        for (uint32_t j = 0; j < kSize; ++j) v.data[j] = values[k + j];
        store(out + 4 * i + k, v);
    }
}

// Where NHWC's thread works: neighbours have neighbouring channels, and `piece` counts along a channel's pixels.
struct ChannelPiece {
    uint32_t channel, piece;
    uint64_t sample;

    __device__ __forceinline__ ChannelPiece(uint32_t thread, uint32_t channels, uint32_t pieces)
        : channel(thread % channels), piece(thread / channels % pieces), sample(thread / channels / pieces) {}
};

// NHWC: a thread for each pair that has an element in a channel of a sample. A pair on the border of two is computed
// twice.
template <typename T>
__global__ void philox_normal_nhwc_kernel(T* out, StreamId id, uint32_t channels, uint32_t pixels, uint32_t pieces,
                                          uint32_t threads) {
    const uint32_t thread = blockIdx.x * blockDim.x + threadIdx.x;
    if (thread >= threads) return;
    const ChannelPiece at(thread, channels, pieces);
    const uint64_t first = (at.sample * channels + at.channel) * pixels, end = first + pixels;  // logical
    const uint64_t i = first / 2 + at.piece;
    if (2 * i >= end) return;
    const NormalPair pair = normals_of(id, i);
    T* const to = out + at.sample * channels * pixels + at.channel;
    if (2 * i >= first) to[(2 * i - first) * channels] = T(pair.first);
    if (2 * i + 1 < end) to[(2 * i + 1 - first) * channels] = T(pair.second);
}

// NHWC: a thread for each block that has an element in a channel of a sample, likewise.
template <typename T>
__global__ void philox_uniform_nhwc_kernel(T* out, StreamId id, uint32_t channels, uint32_t pixels, uint32_t pieces,
                                           uint32_t threads) {
    const uint32_t thread = blockIdx.x * blockDim.x + threadIdx.x;
    if (thread >= threads) return;
    const ChannelPiece at(thread, channels, pieces);
    const uint64_t first = (at.sample * channels + at.channel) * pixels, end = first + pixels;  // logical
    const uint64_t i = first / 4 + at.piece;
    if (4 * i >= end) return;
    const Block b = counted_philox(id, i);
    const T values[4] = {uniform<T>(b.w0), uniform<T>(b.w1), uniform<T>(b.w2), uniform<T>(b.w3)};
    T* const to = out + at.sample * channels * pixels + at.channel;
    ZCPIPE_UNROLL
    for (uint32_t k = 0; k < 4; ++k)
        if (4 * i + k >= first && 4 * i + k < end) to[(4 * i + k - first) * channels] = values[k];
}

constexpr int kSignBlocks = 64;  // of the stream, to a block of threads: 8192 signs

template <typename T>
__device__ __forceinline__ T sign(uint32_t word, uint32_t bit) {
    return (word >> bit & 1) != 0 ? T(1) : T(-1);
}

// The first threads compute the words, then all spread them: a block of the stream is 512 bytes of float32 signs,
// which a thread alone could not write side by side with its neighbours.
template <int kSize, typename T>
__global__ void philox_rademacher_kernel(T* out, StreamId id, uint64_t count) {
    uint32_t* const words = shared_memory<uint32_t>();
    const uint64_t first = uint64_t{blockIdx.x} * kSignBlocks;
    if (threadIdx.x < kSignBlocks) {
        const Block b = counted_philox(id, first + threadIdx.x);
        *reinterpret_cast<Vector<uint32_t, 4>*>(words + 4 * threadIdx.x) = {b.w0, b.w1, b.w2, b.w3};
    }
    __syncthreads();
    const uint64_t left = count - 128 * first;
    const uint32_t signs = left < 128 * kSignBlocks ? uint32_t(left) : 128 * kSignBlocks;
    for (uint32_t i = threadIdx.x * kSize; i < signs; i += kPhiloxThreads * kSize) {
        const uint32_t word = words[i / 32];
        Vector<T, kSize> v;
        ZCPIPE_UNROLL
        for (uint32_t k = 0; k < kSize; ++k) v.data[k] = sign<T>(word, i % 32 + k);
        store(out + 128 * first + i, v);
    }
}

// NHWC: a thread for each 32 pixels of a channel of a sample, whose signs may straddle two words.
template <typename T>
__global__ void philox_rademacher_nhwc_kernel(T* out, StreamId id, uint32_t channels, uint32_t pixels, uint32_t pieces,
                                              uint32_t threads) {
    const uint32_t thread = blockIdx.x * blockDim.x + threadIdx.x;
    if (thread >= threads) return;
    const ChannelPiece at(thread, channels, pieces);
    const uint32_t pixel = 32 * at.piece, width = pixels - pixel < 32 ? pixels - pixel : 32;
    const uint64_t logical = (at.sample * channels + at.channel) * pixels + pixel;
    const auto word_of = [](const Block& b, uint32_t k) {
        return k < 2 ? (k == 0 ? b.w0 : b.w1) : (k == 2 ? b.w2 : b.w3);
    };
    const uint32_t k = uint32_t(logical / 32 % 4), skip = uint32_t(logical % 32);
    const Block here = counted_philox(id, logical / 128);
    uint64_t two = word_of(here, k);
    if (skip + width > 32) {
        const uint32_t next = k < 3 ? word_of(here, k + 1) : counted_philox(id, logical / 128 + 1).w0;
        two |= uint64_t{next} << 32;
    }
    const uint32_t bits = uint32_t(two >> skip);
    T* const to = out + (at.sample * pixels + pixel) * channels + at.channel;
    for (uint32_t b = 0; b < width; ++b) to[size_t{b} * channels] = sign<T>(bits, b);
}

constexpr int kFillsAtOnce = 72;  // what a launch's parameters have room for

// A tensor, and the stream that fills it times a factor.
struct Fill {
    void* out;
    StreamId id;
    double scale;
    uint64_t count;
    bool is_double;
};

// The table of a launch: a block of threads for each kPhiloxThreads blocks of a stream.
struct Fills {
    Fill list[kFillsAtOnce];
    uint32_t first_block[kFillsAtOnce + 1];
    uint32_t count;
};
static_assert(sizeof(Fills) <= 4096);

// Elements that block i of the stream makes. Rounded before they are scaled, as on the CPU.
template <bool kNormal, typename T>
__device__ __forceinline__ void fill_from(const Fill& fill, uint64_t i) {
    constexpr uint32_t kEach = kNormal ? 2 : 4;
    if (kEach * i >= fill.count) return;
    T values[4];
    if constexpr (kNormal) {
        const NormalPair pair = normals_of(fill.id, i);
        values[0] = T(pair.first);
        values[1] = T(pair.second);
    } else {
        const Block b = counted_philox(fill.id, i);
        values[0] = uniform<T>(b.w0);
        values[1] = uniform<T>(b.w1);
        values[2] = uniform<T>(b.w2);
        values[3] = uniform<T>(b.w3);
    }
    T* const out = static_cast<T*>(fill.out) + kEach * i;
    ZCPIPE_UNROLL
    for (uint32_t k = 0; k < kEach; ++k)
        if (kEach * i + k < fill.count) out[k] = values[k] * T(fill.scale);
}

template <bool kNormal>
__global__ void philox_fills_kernel(const __grid_constant__ Fills fills) {
    const uint32_t entry = entry_of(fills.first_block, fills.count, blockIdx.x);
    const Fill fill = fills.list[entry];
    const uint64_t i = uint64_t{blockIdx.x - fills.first_block[entry]} * blockDim.x + threadIdx.x;
    if (fill.is_double)
        fill_from<kNormal, double>(fill, i);
    else
        fill_from<kNormal, float>(fill, i);
}

// out[i] = word i of the stream from block `first` on, for i in 0 .. count - 1, where 0 < count.
inline void philox_bits(int64_t* out, StreamId id, uint64_t first, int64_t count, cudaStream_t stream) {
    launch(
        philox_bits_kernel,
        {.grid = blocks_for((count + 3) / 4, kPhiloxThreads), .block = kPhiloxThreads, .shared = 0, .stream = stream},
        out, id, first, uint64_t(count));
}

// out[i] = normal i of the stream, likewise.
template <typename T>
void philox_normal(T* out, StreamId id, int64_t count, cudaStream_t stream) {
    launch(
        philox_normal_kernel<T>,
        {.grid = blocks_for((count + 1) / 2, kPhiloxThreads), .block = kPhiloxThreads, .shared = 0, .stream = stream},
        out, id, uint64_t(count));
}

// The same for images in NHWC, where i counts in NCHW order.
template <typename T>
void philox_normal_nhwc(T* out, StreamId id, const Images& g, cudaStream_t stream) {
    const int64_t pieces = g.pixels() / 2 + 1, threads = g.samples * pieces * g.channels;
    launch(philox_normal_nhwc_kernel<T>,
           {.grid = blocks_for(threads, kPhiloxThreads), .block = kPhiloxThreads, .shared = 0, .stream = stream}, out,
           id, uint32_t(g.channels), uint32_t(g.pixels()), uint32_t(pieces), uint32_t(threads));
}

// out[i] = uniform number i of the stream, likewise.
template <typename T>
void philox_uniform(T* out, StreamId id, int64_t count, cudaStream_t stream) {
    launch(
        vectorises(count, out) ? philox_uniform_kernel<kWidest<T>, T> : philox_uniform_kernel<1, T>,
        {.grid = blocks_for((count + 3) / 4, kPhiloxThreads), .block = kPhiloxThreads, .shared = 0, .stream = stream},
        out, id, uint64_t(count));
}

template <typename T>
void philox_uniform_nhwc(T* out, StreamId id, const Images& g, cudaStream_t stream) {
    const int64_t pieces = (g.pixels() + 2) / 4 + 1, threads = g.samples * pieces * g.channels;
    launch(philox_uniform_nhwc_kernel<T>,
           {.grid = blocks_for(threads, kPhiloxThreads), .block = kPhiloxThreads, .shared = 0, .stream = stream}, out,
           id, uint32_t(g.channels), uint32_t(g.pixels()), uint32_t(pieces), uint32_t(threads));
}

// Fills each tensor with the normals, or uniform numbers, of its stream times its factor. No two share memory.
template <bool kNormal>
void philox_fills(const std::vector<Fill>& fills, cudaStream_t stream) {
    constexpr int64_t kEach = kNormal ? 2 : 4;
    for (size_t first = 0; first < fills.size(); first += kFillsAtOnce) {
        Fills table = {};
        table.count = uint32_t(std::min<size_t>(fills.size() - first, kFillsAtOnce));
        int64_t blocks = 0;
        for (uint32_t k = 0; k < table.count; ++k) {
            table.list[k] = fills[first + k];
            blocks += blocks_for((int64_t(fills[first + k].count) + kEach - 1) / kEach, kPhiloxThreads);
            table.first_block[k + 1] = uint32_t(blocks);
        }
        if (blocks > 0)
            launch(philox_fills_kernel<kNormal>, {unsigned(blocks), unsigned(kPhiloxThreads), 0, stream}, table);
    }
}

// out[i] = sign i of the stream, for i in 0 .. count - 1, where 0 < count.
template <typename T>
void philox_rademacher(T* out, StreamId id, int64_t count, cudaStream_t stream) {
    launch(vectorises(count, out) ? philox_rademacher_kernel<kWidest<T>, T> : philox_rademacher_kernel<1, T>,
           {.grid = blocks_for(count, 128 * kSignBlocks),
            .block = kPhiloxThreads,
            .shared = 16 * kSignBlocks,
            .stream = stream},
           out, id, uint64_t(count));
}

template <typename T>
void philox_rademacher_nhwc(T* out, StreamId id, const Images& g, cudaStream_t stream) {
    const int64_t pieces = (g.pixels() + 31) / 32, threads = g.samples * pieces * g.channels;
    launch(philox_rademacher_nhwc_kernel<T>,
           {.grid = blocks_for(threads, kPhiloxThreads), .block = kPhiloxThreads, .shared = 0, .stream = stream}, out,
           id, uint32_t(g.channels), uint32_t(g.pixels()), uint32_t(pieces), uint32_t(threads));
}

}  // namespace zcpipe::gpu
