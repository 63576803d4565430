// CUDA's device functions on the shim: barriers, warp exchanges, bit counts and atomics.
#pragma once

#include <math.h>  // as CUDA has it: sqrt and fma without std::

#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cuda/shim/fibers.h"

inline void __syncthreads(std::source_location at = std::source_location::current()) {
    zcpipe::gpu::shim::block_barrier(at);
}

inline void __syncwarp(unsigned mask = 0xFFFFFFFFu, std::source_location at = std::source_location::current()) {
    zcpipe::gpu::shim::warp_barrier(mask, at);
}

namespace zcpipe::gpu::shim {

// A lane outside the warp gives the caller's own value, as on a GPU.
template <typename T>
T shuffle(unsigned mask, T value, unsigned from, Site site) {
    static_assert(sizeof(T) <= sizeof(uint64_t));
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    bits = exchange(mask, bits, from < kLanes ? from : lane(), site);
    std::memcpy(&value, &bits, sizeof(T));
    return value;
}

}  // namespace zcpipe::gpu::shim

template <typename T>
T __shfl_sync(unsigned mask, T value, int from, std::source_location at = std::source_location::current()) {
    return zcpipe::gpu::shim::shuffle(mask, value, unsigned(from) % 32, at);
}

template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, std::source_location at = std::source_location::current()) {
    return zcpipe::gpu::shim::shuffle(mask, value, zcpipe::gpu::shim::lane() - by, at);
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, std::source_location at = std::source_location::current()) {
    return zcpipe::gpu::shim::shuffle(mask, value, zcpipe::gpu::shim::lane() + by, at);
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int with, std::source_location at = std::source_location::current()) {
    return zcpipe::gpu::shim::shuffle(mask, value, zcpipe::gpu::shim::lane() ^ unsigned(with), at);
}

inline unsigned __ballot_sync(unsigned mask, int vote, std::source_location at = std::source_location::current()) {
    return zcpipe::gpu::shim::ballot(mask, vote != 0, at);
}

inline int __popc(unsigned bits) { return std::popcount(bits); }
inline int __popcll(unsigned long long bits) { return std::popcount(bits); }

// Relaxed, as on a GPU: it orders nothing else.
template <typename T>
T atomicAdd(T* to, T value) {
    static_assert(std::is_integral_v<T>, "the sum of floats would depend on the order");
    return __atomic_fetch_add(to, value, __ATOMIC_RELAXED);
}
