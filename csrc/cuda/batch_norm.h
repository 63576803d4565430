// Batch norm's launches for tensors, for the ops that have one inside. All images have one layout and are not empty.
#pragma once

#include "common/layout.h"
#include "cuda/device.h"

namespace zcpipe::gpu {

inline Tensor doubles(const Tensor& x, int64_t count) { return new_vector(x, count, ScalarType::Double); }

// y may be total. For float (and double, in batch_norm.cu).
template <typename T>
void normalise(const Tensor& y, const Tensor& mean, const Tensor& invstd, const Tensor& x, const OptionalTensor& weight,
               const OptionalTensor& bias, const OptionalTensor& total, double eps, bool relu, const Images& images,
               cudaStream_t stream);

template <typename T>
void normalise_backward(const Tensor& grad_x, const Tensor& grad_weight, const Tensor& grad_bias, const Tensor& grad,
                        const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias, const Tensor& mean,
                        const Tensor& invstd, bool relu, const Images& images, cudaStream_t stream);

}  // namespace zcpipe::gpu
