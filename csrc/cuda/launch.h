// The one header that kernels include: real CUDA under nvcc, and under any other compiler a program for the CPU that
// runs the same source thread by thread (cuda/shim/). Free of torch.
//
// How to write a kernel. Copy the op `null`, which does nothing else than show the layers:
//   csrc/library.cpp     its schema
//   csrc/cpu/null.cpp    the CPU's kernel and its registration
//   csrc/cuda/null.cuh   the CUDA kernel and the function that launches it: this header, common/ and nothing of torch
//   csrc/cuda/null.cu    checks, allocation, stream and registration: no arithmetic
//   zcpipe/ops/null.py   the Python face and the twin; tests/ops/test_null.py
//   tests/cuda/null.cpp  the CUDA kernel on the CPU against an independent loop; `make cuda-test` finds it by name
//   tests/gpu/           one line in the table of ops that are run against their twins on a device
//
// What a kernel may use, so that the shim proves what a GPU does:
// - threadIdx, blockIdx, blockDim, gridDim; __syncthreads, __syncwarp; __shfl_sync, __shfl_up_sync, __shfl_down_sync,
//   __shfl_xor_sync and __ballot_sync with the mask kAllLanes and all 32 lanes; __popc, __popcll; atomicAdd on
//   integers, whose result must not depend on the order; <cmath>.
// - Tables of up to 4 KiB as a parameter, const __grid_constant__ (table.h, parameters.cuh): no copy, no upload.
// - shared_memory<T>(): dynamic shared memory only, a multiple of 16 bytes. It holds anything when a block starts.
// - Every thread of a block reaches every barrier, at the same line; no thread returns before. Blocks do not wait for
//   one another and do not read what another block of the launch writes: that takes a second launch.
// - Sums in an order that depends on the shape alone, so no atomics on floats and no sizes from the device.
// - Products and sums are rounded one by one (-fmad=false, as on the CPU); where a fused one is wanted, write fma().
// - count_event(i) counts what a test wants to assert beside the values (vectors read, sweeps done): nothing on a GPU.
// - Where work is cut into pieces of thousands, let a test ask for smaller ones (NormTuning in batch_norm.cuh); blocks
//   of 64 threads keep ThreadSanitizer quick.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#define ZCPIPE_UNROLL _Pragma("unroll")
#else
#include "cuda/shim/builtins.h"
#include "cuda/shim/run.h"
#define ZCPIPE_UNROLL
#endif

namespace zcpipe::gpu {

constexpr unsigned kAllLanes = 0xFFFFFFFFu;
constexpr int kWarp = 32;

struct Shape {
    dim3 grid, block;
    size_t shared;  // bytes
    cudaStream_t stream;
};

// How many blocks cover `items` with `each` of them. Kernels count items in 32 bits, where division is cheap.
inline unsigned blocks_for(int64_t items, int64_t each) {
    if (items >= int64_t{1} << 31) throw std::length_error("the tensor is too large for one launch");
    return unsigned((items + each - 1) / each);
}

#if defined(__CUDACC__)

template <typename T>
__device__ __forceinline__ T* shared_memory() {
    extern __shared__ __align__(16) unsigned char zcpipe_shared_memory[];
    return reinterpret_cast<T*>(zcpipe_shared_memory);
}

__device__ __forceinline__ void count_event(int) {}

inline void check(cudaError_t error) {
    if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

// kernel<<<...>>>(args...), with leave for more shared memory than every device gives unasked.
template <typename... Parameters>
void launch(void (*kernel)(Parameters...), const Shape& shape, std::type_identity_t<Parameters>... args) {
    constexpr size_t kUnasked = 48 * 1024;
    if (shape.shared > kUnasked)
        check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   int(shape.shared)));
    kernel<<<shape.grid, shape.block, shape.shared, shape.stream>>>(args...);
    check(cudaGetLastError());
}

#else

template <typename T>
T* shared_memory() {
    return reinterpret_cast<T*>(shim::shared_memory());
}

inline void count_event(int event) { shim::count_event(event); }

template <typename... Parameters>
void launch(void (*kernel)(Parameters...), const Shape& shape, std::type_identity_t<Parameters>... args) {
    shim::run(shape.grid, shape.block, shape.shared, [=] { kernel(args...); });
}

#endif

}  // namespace zcpipe::gpu
