// Several neighbouring elements in one memory transaction. Free of torch.
#pragma once

#include "cuda/launch.h"

namespace zcpipe::gpu {

// kSize elements, read and written at once; their address must be a multiple of their bytes.
template <typename T, int kSize>
struct alignas(sizeof(T) * kSize) Vector {
    T data[kSize];
};

// As many elements as the widest transaction holds.
template <typename T>
constexpr int kWidest = int(16 / sizeof(T));

template <int kSize, typename T>
__device__ __forceinline__ Vector<T, kSize> load(const T* from) {
    return *reinterpret_cast<const Vector<T, kSize>*>(from);
}

template <int kSize, typename T>
__device__ __forceinline__ void store(T* to, const Vector<T, kSize>& v) {
    *reinterpret_cast<Vector<T, kSize>*>(to) = v;
}

// Whether runs of `length` elements, one after another from each pointer on, can be read as the widest vectors.
template <typename T, typename... Pointers>
bool vectorises(int64_t length, const T* first, const Pointers*... others) {
    const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
    return length % kWidest<T> == 0 && aligned(first) && (aligned(others) && ...);
}

}  // namespace zcpipe::gpu
