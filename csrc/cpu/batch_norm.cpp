// Batch normalisation with the batch's own statistics, with a ReLU after it and a sum that it is added to.

#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "common/layout.h"
#include "cpu/norm.h"

namespace {

using namespace zcpipe;

constexpr int64_t kGrain = 1 << 15;  // elements: less is not worth a second thread

Images images_of(const Tensor& x, MemoryFormat format) {
    return {x.size(0), x.size(1), x.size(2) * x.size(3), format != MemoryFormat::ChannelsLast};
}

template <typename F>
void for_images(const Images& images, const F& f) {
    torch::stable::parallel_for(0, images.count(), kGrain / images.size() + 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) f(i, i * images.size(), images.first_channel(i));
    });
}

template <typename T>
void forward(const Tensor& y, const Tensor& mean, const Tensor& invstd, const Tensor& x, const OptionalTensor& weight,
             const OptionalTensor& bias, const OptionalTensor& total, double eps, bool relu, const Images& images) {
    double *m = mean.mutable_data_ptr<double>(), *r = invstd.mutable_data_ptr<double>();
    const T* from = x.const_data_ptr<T>();
    const T* sum = data_or_null<T>(total);
    T* to = y.mutable_data_ptr<T>();
    const std::vector<T> centre = centre_of(from, images);
    Sums moments(images);
    for_images(images, [&](int64_t i, int64_t at, int64_t c) {
        add_moments(moments.first_of(i), moments.second_of(i), from + at, &centre[c], images.pixels, images.depth());
    });
    finish_statistics(m, r, moments, centre, eps);
    const Norm<T> norm(m, r, data_or_null<T>(weight), data_or_null<T>(bias), images.channels);
    for_images(images, [&](int64_t, int64_t at, int64_t c) {
        apply(to + at, from + at, sum == nullptr ? sum : sum + at, norm.at(c), relu, images.pixels, images.depth());
    });
}

template <typename T>
void backward(const Tensor& grad_x, const Tensor& grad_weight, const Tensor& grad_bias, const Tensor& grad,
              const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias, const Tensor& mean,
              const Tensor& invstd, bool relu, const Images& images) {
    const double *m = mean.const_data_ptr<double>(), *r = invstd.const_data_ptr<double>();
    const T *g = grad.const_data_ptr<T>(), *from = x.const_data_ptr<T>();
    T* to = grad_x.mutable_data_ptr<T>();
    const Norm<T> norm(m, r, data_or_null<T>(weight), data_or_null<T>(bias), images.channels);
    Sums gradients(images);
    for_images(images, [&](int64_t i, int64_t at, int64_t c) {
        add_gradients(gradients.first_of(i), gradients.second_of(i), g + at, from + at, norm.at(c), relu, images.pixels,
                      images.depth());
    });
    const NormGradient<T> map(grad_weight.mutable_data_ptr<T>(), grad_bias.mutable_data_ptr<T>(), m, r,
                              data_or_null<T>(weight), gradients);
    for_images(images, [&](int64_t, int64_t at, int64_t c) {
        apply_gradient(to + at, g + at, from + at, static_cast<const T*>(nullptr), map.at(c), norm.at(c), relu,
                       images.pixels, images.depth());
    });
}

std::tuple<Tensor, Tensor, Tensor> batch_norm_train(const Tensor& x_any,              // [N, C, H, W]
                                                    const OptionalTensor weight_any,  // [C]
                                                    const OptionalTensor bias_any,    // [C]
                                                    const OptionalTensor total_any,   // [N, C, H, W]
                                                    double eps, bool relu) {
    check_images(x_any, "x");
    const OptionalTensor weight = checked_channels(weight_any, x_any.size(1), x_any, "weight");
    const OptionalTensor bias = checked_channels(bias_any, x_any.size(1), x_any, "bias");
    const MemoryFormat format = format_of(x_any);
    const OptionalTensor total = checked_images(total_any, x_any, format, "total");
    const Tensor x = torch::stable::contiguous(x_any, format);
    Tensor y = empty_images(x, format);
    Tensor mean = channel_tensor(x, x.size(1), ScalarType::Double), invstd = torch::stable::clone(mean);
    if (x.numel() == 0) return {y, mean, invstd};
    if (x.scalar_type() == ScalarType::Float)
        forward<float>(y, mean, invstd, x, weight, bias, total, eps, relu, images_of(x, format));
    else
        forward<double>(y, mean, invstd, x, weight, bias, total, eps, relu, images_of(x, format));
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
    const MemoryFormat format = format_of(x_any);
    const Tensor grad = *checked_images(grad_any, x_any, format, "grad");
    const Tensor x = torch::stable::contiguous(x_any, format);
    const int64_t channels = x.size(1);
    const OptionalTensor weight = checked_channels(weight_any, channels, x, "weight");
    const OptionalTensor bias = checked_channels(bias_any, channels, x, "bias");
    Tensor grad_x = empty_images(x, format);
    Tensor grad_weight = channel_tensor(x, channels, x.scalar_type()), grad_bias = torch::stable::clone(grad_weight);
    if (x.numel() == 0) return {grad_x, grad_weight, grad_bias};
    check_statistics(mean, channels, x, "mean");
    check_statistics(invstd, channels, x, "invstd");
    if (x.scalar_type() == ScalarType::Float)
        backward<float>(grad_x, grad_weight, grad_bias, grad, x, weight, bias, mean, invstd, relu,
                        images_of(x, format));
    else
        backward<double>(grad_x, grad_weight, grad_bias, grad, x, weight, bias, mean, invstd, relu,
                         images_of(x, format));
    return {grad_x, grad_weight, grad_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(zcpipe, CPU, m) {
    m.impl("batch_norm_train", TORCH_BOX(&batch_norm_train));
    m.impl("batch_norm_train_backward", TORCH_BOX(&batch_norm_train_backward));
}
