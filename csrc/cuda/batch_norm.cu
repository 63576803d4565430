// torch's side of batch_norm_train and its backward.

#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "common/layout.h"
#include "cuda/batch_norm.cuh"
#include "cuda/device.h"

namespace {

using namespace zcpipe;
using OptionalTensor = std::optional<Tensor>;

template <typename T>
const T* data_or_null(const OptionalTensor& t) {
    return t.has_value() ? t->const_data_ptr<T>() : nullptr;
}

Tensor doubles(const Tensor& x, int64_t count) { return torch::stable::new_empty(x, {count}, ScalarType::Double); }

template <typename T>
void forward(const Tensor& y, const Tensor& mean, const Tensor& invstd, const Tensor& x, const OptionalTensor& weight,
             const OptionalTensor& bias, const OptionalTensor& total, double eps, bool relu, const gpu::Images& images,
             cudaStream_t stream) {
    const Tensor scratch = doubles(x, gpu::batch_norm_scratch(images));
    gpu::batch_norm_train(y.mutable_data_ptr<T>(), mean.mutable_data_ptr<double>(), invstd.mutable_data_ptr<double>(),
                          scratch.mutable_data_ptr<double>(), x.const_data_ptr<T>(), data_or_null<T>(weight),
                          data_or_null<T>(bias), data_or_null<T>(total), eps, relu, images, stream);
}

template <typename T>
void backward(const Tensor& grad_x, const Tensor& grad_weight, const Tensor& grad_bias, const Tensor& grad,
              const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias, const Tensor& mean,
              const Tensor& invstd, bool relu, const gpu::Images& images, cudaStream_t stream) {
    const Tensor scratch = doubles(x, gpu::batch_norm_scratch(images));
    const gpu::Channels<T> of = {mean.const_data_ptr<double>(), invstd.const_data_ptr<double>(),
                                 data_or_null<T>(weight), data_or_null<T>(bias)};
    gpu::batch_norm_train_backward(grad_x.mutable_data_ptr<T>(), grad_weight.mutable_data_ptr<T>(),
                                   grad_bias.mutable_data_ptr<T>(), scratch.mutable_data_ptr<double>(),
                                   grad.const_data_ptr<T>(), x.const_data_ptr<T>(), of, relu, images, stream);
}

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
    Tensor mean = doubles(x, channels), invstd = doubles(x, channels);
    const gpu::Images images = gpu::images_of(x, format);
    if (x.scalar_type() == ScalarType::Float)
        forward<float>(y, mean, invstd, x, weight, bias, total, eps, relu, images, device.stream());
    else
        forward<double>(y, mean, invstd, x, weight, bias, total, eps, relu, images, device.stream());
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
    Tensor grad_weight = torch::stable::new_empty(x, {channels}), grad_bias = torch::stable::new_empty(x, {channels});
    const gpu::Images images = gpu::images_of(x, format);
    if (x.scalar_type() == ScalarType::Float)
        backward<float>(grad_x, grad_weight, grad_bias, grad, x, weight, bias, mean, invstd, relu, images,
                        device.stream());
    else
        backward<double>(grad_x, grad_weight, grad_bias, grad, x, weight, bias, mean, invstd, relu, images,
                         device.stream());
    return {grad_x, grad_weight, grad_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(zcpipe, CUDA, m) {
    m.impl("batch_norm_train", TORCH_BOX(&batch_norm_train));
    m.impl("batch_norm_train_backward", TORCH_BOX(&batch_norm_train_backward));
}
