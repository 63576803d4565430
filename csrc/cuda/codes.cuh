// Activation codes: signs as bits, and how many bits each pair of codes differs in. Free of torch.
//
// Bits are written 32 at a time: a code's words are pairs of halves, the lower first, as on every device.
#pragma once

#include <algorithm>

#include "cuda/launch.h"

namespace zcpipe::gpu {

enum CodeEvent { kCodeElements, kCodeWords };  // elements read, pairs of words compared

// Bit f % 32 of half f / 32 says whether element f of the sample is above 0. A warp for each four halves of a code,
// whose lanes read neighbours.
constexpr uint32_t kHalvesOfWarp = 4;

template <typename T>
__global__ void sign_codes_kernel(uint32_t* codes, const T* x, uint32_t size, uint32_t halves, uint32_t parts,
                                  uint32_t warps) {
    const uint32_t warp = blockIdx.x * (blockDim.x / kWarp) + threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    if (warp >= warps) return;  // the whole warp
    const uint32_t sample = warp / parts, half = warp % parts * kHalvesOfWarp;
    const T* const from = x + size_t{sample} * size;
    bool above[kHalvesOfWarp];
    ZCPIPE_UNROLL
    for (uint32_t k = 0; k < kHalvesOfWarp; ++k) {
        const uint32_t f = (half + k) * kWarp + lane;
        above[k] = f < size && from[f] > T(0);
        if (f < size) count_event(kCodeElements);
    }
    ZCPIPE_UNROLL
    for (uint32_t k = 0; k < kHalvesOfWarp; ++k) {
        const uint32_t bits = __ballot_sync(kAllLanes, above[k]);
        if (lane == 0 && half + k < halves) codes[size_t{sample} * halves + half + k] = bits;
    }
}

// Channels side by side in memory, pixels in the code: a thread for each half. Where a channel's pixels are whole
// halves, neighbouring threads read neighbouring channels.
template <typename T>
__global__ void sign_codes_interleaved_kernel(uint32_t* codes, const T* x, uint32_t channels, uint32_t pixels,
                                              uint32_t halves, uint32_t threads) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= threads) return;
    const uint32_t sample = i / halves, size = channels * pixels;
    uint32_t half = i % halves;
    const uint32_t whole = pixels / kWarp;
    if (pixels % kWarp == 0 && half < channels * whole) half = half % channels * whole + half / channels;
    const T* const from = x + size_t{sample} * size;
    const uint32_t first = half * kWarp, count = first >= size ? 0 : size - first < kWarp ? size - first : kWarp;
    uint32_t c = first / pixels, p = first % pixels, bits = 0;
    if (count == kWarp && p + kWarp <= pixels) {  // of one channel: loads that need not wait for one another
        const T* const run = from + size_t{p} * channels + c;
        ZCPIPE_UNROLL
        for (uint32_t k = 0; k < kWarp; ++k) {
            bits |= uint32_t{run[size_t{k} * channels] > T(0)} << k;
            count_event(kCodeElements);
        }
    } else {
        for (uint32_t k = 0; k < count; ++k) {
            bits |= uint32_t{from[size_t{p} * channels + c] > T(0)} << k;
            count_event(kCodeElements);
            if (++p == pixels) {
                p = 0;
                ++c;
            }
        }
    }
    codes[size_t{sample} * halves + half] = bits;
}

// codes: [samples, words], all of it written. x is not empty.
template <typename T>
void sign_codes(uint64_t* codes, const T* x, int64_t samples, int64_t channels, int64_t pixels, bool interleaved,
                cudaStream_t stream, int threads = 256) {
    const int64_t size = channels * pixels, halves = (size + 63) / 64 * 2;
    uint32_t* const to = reinterpret_cast<uint32_t*>(codes);
    blocks_for(size, 1);  // refuses what 32 bits do not count
    if (interleaved) {
        const int64_t all = samples * halves;
        launch(sign_codes_interleaved_kernel<T>, {blocks_for(all, threads), unsigned(threads), 0, stream}, to, x,
               uint32_t(channels), uint32_t(pixels), uint32_t(halves), uint32_t(all));
        return;
    }
    const int64_t parts = (halves + kHalvesOfWarp - 1) / kHalvesOfWarp, warps = samples * parts;
    launch(sign_codes_kernel<T>, {blocks_for(warps, threads / kWarp), unsigned(threads), 0, stream}, to, x,
           uint32_t(size), uint32_t(halves), uint32_t(parts), uint32_t(warps));
}

constexpr int kCodeTile = 16;        // codes by codes of a block, a pair for each thread
constexpr uint32_t kCodeWidth = 32;  // words of them in shared memory at a time

struct HammingTuning {
    int64_t grain = 256;         // words: less is not worth another piece
    int64_t most_blocks = 1024;  // where codes are few and long
};

// Adds the bits that differ in a piece of the words to distances, which are 0 at first; integers add up to the same in
// any order. Blocks are tiles of pairs from the diagonal up by pieces, and write both (i, j) and (j, i).
__global__ void hamming_distances_kernel(unsigned long long* distances, const uint64_t* codes, uint32_t samples,
                                         uint32_t words, uint32_t piece_words) {
    if (blockIdx.x < blockIdx.y) return;  // the whole block
    constexpr uint32_t kStride = kCodeWidth + 1;
    uint64_t* const left = shared_memory<uint64_t>();  // [kCodeTile, kStride]
    uint64_t* const right = left + kCodeTile * kStride;
    const uint32_t me = threadIdx.y * kCodeTile + threadIdx.x;
    const uint32_t first_i = blockIdx.y * kCodeTile, first_j = blockIdx.x * kCodeTile;
    const uint32_t begin = blockIdx.z * piece_words, end = begin + piece_words < words ? begin + piece_words : words;
    unsigned long long distance = 0;
    for (uint32_t w = begin; w < end; w += kCodeWidth) {
        for (uint32_t e = me; e < kCodeTile * kCodeWidth; e += kCodeTile * kCodeTile) {
            const uint32_t code = e / kCodeWidth, word = e % kCodeWidth, place = code * kStride + word;
            const bool inside = w + word < end;
            left[place] = inside && first_i + code < samples ? codes[size_t{first_i + code} * words + w + word] : 0;
            right[place] = inside && first_j + code < samples ? codes[size_t{first_j + code} * words + w + word] : 0;
        }
        __syncthreads();
        ZCPIPE_UNROLL
        for (uint32_t k = 0; k < kCodeWidth; ++k)
            distance += __popcll(left[threadIdx.y * kStride + k] ^ right[threadIdx.x * kStride + k]);
        __syncthreads();
        if (me == 0) count_event(kCodeWords);
    }
    const uint32_t i = first_i + threadIdx.y, j = first_j + threadIdx.x;
    if (i >= j || j >= samples || distance == 0) return;
    atomicAdd(distances + size_t{i} * samples + j, distance);
    atomicAdd(distances + size_t{j} * samples + i, distance);
}

// distances: [samples, samples], zeros at first; codes: [samples, words], not empty.
inline void hamming_distances(int64_t* distances, const uint64_t* codes, int64_t samples, int64_t words,
                              cudaStream_t stream, const HammingTuning& tuning = {}) {
    blocks_for(words, 1);  // refuses what 32 bits do not count
    const int64_t tiles = (samples + kCodeTile - 1) / kCodeTile, pairs = tiles * (tiles + 1) / 2;
    const int64_t wanted = std::max<int64_t>(std::min(words / tuning.grain, tuning.most_blocks / pairs), 1);
    const int64_t widths = (words + kCodeWidth - 1) / kCodeWidth, each = (widths + wanted - 1) / wanted;
    launch(hamming_distances_kernel,
           {dim3(unsigned(tiles), unsigned(tiles), unsigned((widths + each - 1) / each)), dim3(kCodeTile, kCodeTile),
            2 * kCodeTile * (kCodeWidth + 1) * sizeof(uint64_t), stream},
           reinterpret_cast<unsigned long long*>(distances), codes, uint32_t(samples), uint32_t(words),
           uint32_t(each * kCodeWidth));
}

}  // namespace zcpipe::gpu
