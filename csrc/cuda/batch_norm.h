// Batch norm's launches for tensors: what its own op and those of a convolution with it share. All images have one
// layout and are not empty.
#pragma once

#include "common/layout.h"
#include "cuda/batch_norm.cuh"
#include "cuda/device.h"

namespace zcpipe::gpu {

inline Tensor doubles(const Tensor& x, int64_t count) { return new_vector(x, count, ScalarType::Double); }

// y may be total.
template <typename T>
void normalise(const Tensor& y, const Tensor& mean, const Tensor& invstd, const Tensor& x, const OptionalTensor& weight,
               const OptionalTensor& bias, const OptionalTensor& total, double eps, bool relu, const Images& images,
               cudaStream_t stream) {
    const Tensor scratch = doubles(x, batch_norm_scratch(images));
    batch_norm_train(y.mutable_data_ptr<T>(), mean.mutable_data_ptr<double>(), invstd.mutable_data_ptr<double>(),
                     scratch.mutable_data_ptr<double>(), x.const_data_ptr<T>(), data_or_null<T>(weight),
                     data_or_null<T>(bias), data_or_null<T>(total), eps, relu, images, stream);
}

template <typename T>
void normalise_backward(const Tensor& grad_x, const Tensor& grad_weight, const Tensor& grad_bias, const Tensor& grad,
                        const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias, const Tensor& mean,
                        const Tensor& invstd, bool relu, const Images& images, cudaStream_t stream) {
    const Tensor scratch = doubles(x, batch_norm_scratch(images));
    const Channels<T> of = {mean.const_data_ptr<double>(), invstd.const_data_ptr<double>(), data_or_null<T>(weight),
                            data_or_null<T>(bias)};
    batch_norm_train_backward(grad_x.mutable_data_ptr<T>(), grad_weight.mutable_data_ptr<T>(),
                              grad_bias.mutable_data_ptr<T>(), scratch.mutable_data_ptr<double>(),
                              grad.const_data_ptr<T>(), x.const_data_ptr<T>(), of, relu, images, stream);
}

}  // namespace zcpipe::gpu
