// torch's side of batch_norm_train and its backward.

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cuda/batch_norm.h"

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
    check_statistics(mean, channels, "mean");
    check_statistics(invstd, channels, "invstd");
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
