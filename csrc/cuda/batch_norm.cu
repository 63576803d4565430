// torch's side of batch_norm_train and its backward.

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cuda/batch_norm.cuh"
#include "cuda/batch_norm.h"

namespace zcpipe::gpu {

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

template void normalise<float>(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&,
                               const OptionalTensor&, const OptionalTensor&, double, bool, const Images&, cudaStream_t);
template void normalise_backward<float>(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                        const OptionalTensor&, const OptionalTensor&, const Tensor&, const Tensor&,
                                        bool, const Images&, cudaStream_t);

}  // namespace zcpipe::gpu

namespace {

using namespace zcpipe;

std::tuple<Tensor, Tensor, Tensor> batch_norm_train(const Tensor& x_any,              // [N, C, H, W]
                                                    const OptionalTensor weight_any,  // [C]
                                                    const OptionalTensor bias_any,    // [C]
                                                    const OptionalTensor total_any,   // [N, C, H, W]
                                                    double eps, bool relu) {
    check_images(x_any, "x");
    const gpu::OnDeviceOf device(x_any);
    const int64_t channels = x_any.size(1);
    const OptionalTensor weight = checked_channels(weight_any, channels, x_any, "weight");
    const OptionalTensor bias = checked_channels(bias_any, channels, x_any, "bias");
    const MemoryFormat format = format_of(x_any);
    const OptionalTensor total = checked_images(total_any, x_any, format, "total");
    const Tensor x = torch::stable::contiguous(x_any, format);
    Tensor y = empty_images(x, format);
    if (x.numel() == 0) {
        const Tensor mean = channel_tensor(x, channels, ScalarType::Double);
        return {y, mean, torch::stable::clone(mean)};
    }
    Tensor mean = gpu::doubles(x, channels), invstd = gpu::doubles(x, channels);
    const gpu::Images images = gpu::images_of(x, format);
    if (x.scalar_type() == ScalarType::Float)
        gpu::normalise<float>(y, mean, invstd, x, weight, bias, total, eps, relu, images, device.stream());
    else
        gpu::normalise<double>(y, mean, invstd, x, weight, bias, total, eps, relu, images, device.stream());
    return {y, mean, invstd};
}

std::tuple<Tensor, Tensor, Tensor> batch_norm_train_backward(const Tensor& grad_any,           // [N, C, H, W]
                                                             const Tensor& x_any,              // [N, C, H, W]
                                                             const OptionalTensor weight_any,  // [C]
                                                             const OptionalTensor bias_any,    // [C]
                                                             const Tensor& mean,               // [C] float64
                                                             const Tensor& invstd,             // [C] float64
                                                             bool relu) {
    check_images(x_any, "x");
    check_images(grad_any, "grad");
    const gpu::OnDeviceOf device(x_any);
    const MemoryFormat format = format_of(x_any);
    const Tensor grad = *checked_images(grad_any, x_any, format, "grad");
    const Tensor x = torch::stable::contiguous(x_any, format);
    const int64_t channels = x.size(1);
    const OptionalTensor weight = checked_channels(weight_any, channels, x, "weight");
    const OptionalTensor bias = checked_channels(bias_any, channels, x, "bias");
    Tensor grad_x = empty_images(x, format);
    if (x.numel() == 0) {
        const Tensor zeros = channel_tensor(x, channels, x.scalar_type());
        return {grad_x, zeros, torch::stable::clone(zeros)};
    }
    check_statistics(mean, channels, x, "mean");
    check_statistics(invstd, channels, x, "invstd");
    Tensor grad_weight = new_vector(x, channels, x.scalar_type()), grad_bias = new_vector(x, channels, x.scalar_type());
    const gpu::Images images = gpu::images_of(x, format);
    if (x.scalar_type() == ScalarType::Float)
        gpu::normalise_backward<float>(grad_x, grad_weight, grad_bias, grad, x, weight, bias, mean, invstd, relu,
                                       images, device.stream());
    else
        gpu::normalise_backward<double>(grad_x, grad_weight, grad_bias, grad, x, weight, bias, mean, invstd, relu,
                                        images, device.stream());
    return {grad_x, grad_weight, grad_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(zcpipe, CUDA, m) {
    m.impl("batch_norm_train", TORCH_BOX(&batch_norm_train));
    m.impl("batch_norm_train_backward", TORCH_BOX(&batch_norm_train_backward));
}
