// ReLU, convolution and batch normalisation in one op, image by image: what one pass over an image writes the next one
// reads from the cache, so that memory is read and written as often as batch normalisation alone makes it necessary.
//
// float32, channels_last, strides 1 and 2.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "cpu/conv_gradient.h"
#include "cpu/conv_layer.h"
#include "cpu/norm.h"

namespace {

using namespace zcpipe;
void forward(const Tensor& y, const Tensor& z, const Tensor& mean, const Tensor& invstd, const Tensor& x,
             const Tensor& weight, const OptionalTensor& norm_weight, const OptionalTensor& norm_bias,
             const OptionalTensor& total, double eps, const Layer& layer, bool relu_input, bool relu_output) {
    const Images &in = layer.in, &out = layer.out;
    const float *from = x.const_data_ptr<float>(), *sum = data_or_null<float>(total);
    float *conv = z.mutable_data_ptr<float>(), *to = y.mutable_data_ptr<float>();
    double *m = mean.mutable_data_ptr<double>(), *r = invstd.mutable_data_ptr<double>();
    const ImageConvolution image(layer.convolution, weight.const_data_ptr<float>(), false);
    std::vector<float> centre;
    Sums moments(out);
    const auto convolve = [&](int64_t begin, int64_t end) {
        Buffer<float> scratch(image.scratch_size());
        for (int64_t i = begin; i < end; ++i) {
            image.load(scratch.data(), from + i * in.size(), relu_input);
            Ahead next;
            if (i + 1 < end) {
                next.add(from + (i + 1) * in.size(), in.size());
                next.add(conv + (i + 1) * out.size(), out.size());
            }
            image.run({conv + i * out.size(), false, nullptr}, scratch.data(), next);
            if (i == 0) centre = centre_of(conv, out);
            add_moments(moments.first_of(i), moments.second_of(i), conv + i * out.size(), centre.data(), out.pixels,
                        out.channels);
        }
    };
    convolve(0, 1);
    layer.for_ranges(1, convolve);
    finish_statistics(m, r, moments, centre, eps);
    const Norm<float> norm(m, r, data_or_null<float>(norm_weight), data_or_null<float>(norm_bias), out.channels);
    layer.for_ranges(0, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t at = i * out.size();
            apply(to + at, conv + at, sum == nullptr ? sum : sum + at, norm.at(0), relu_output, out.pixels,
                  out.channels);
        }
    });
}

// What a backward pass fills; null for what nobody wants.
struct Gradients {
    float* x = nullptr;
    bool onto = false;  // x is added to
    float* weight = nullptr;
    float *norm_weight = nullptr, *norm_bias = nullptr;
    double* products = nullptr;  // sums of z times its gradient over the pixels, [N, D]
};

void backward(const Gradients& wanted, const Tensor& grad, const Tensor& x, const Tensor& z, const Tensor& weight,
              const OptionalTensor& norm_weight, const OptionalTensor& norm_bias, const Tensor& mean,
              const Tensor& invstd, const Layer& layer, bool relu_input, bool relu_output) {
    const Images &in = layer.in, &out = layer.out;
    const float *g = grad.const_data_ptr<float>(), *conv = z.const_data_ptr<float>(), *from = x.const_data_ptr<float>();
    const double *m = mean.const_data_ptr<double>(), *r = invstd.const_data_ptr<double>();
    const Norm<float> norm(m, r, data_or_null<float>(norm_weight), data_or_null<float>(norm_bias), out.channels);
    Sums gradients(out);
    layer.for_ranges(0, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
            add_gradients(gradients.first_of(i), gradients.second_of(i), g + i * out.size(), conv + i * out.size(),
                          norm.at(0), relu_output, out.pixels, out.channels);
    });
    std::vector<float> unused(2 * out.channels);
    float* grad_weight = wanted.norm_weight == nullptr ? unused.data() : wanted.norm_weight;
    float* grad_bias = wanted.norm_bias == nullptr ? unused.data() + out.channels : wanted.norm_bias;
    const NormGradient<float> map(grad_weight, grad_bias, m, r, data_or_null<float>(norm_weight), gradients);
    const ImageConvolution image(layer.convolution, weight.const_data_ptr<float>(), true);
    const int64_t height = layer.convolution.out_height(), width = layer.convolution.out_width();
    // Calls f(image, gradient of its convolution) while that is in the cache.
    const auto for_images = [&](int64_t begin, int64_t end, float* scratch, const auto& f) {
        const Blocks dz = image.source(scratch);
        for (int64_t i = begin; i < end; ++i) {
            const float* values = conv + i * out.size();
            apply_gradient_to_blocks(dz, g + i * out.size(), values, map.at(0), norm.at(0), relu_output, height, width,
                                     out.channels);
            if (wanted.products != nullptr)
                sum_block_products(wanted.products + i * out.channels, dz, values, height, width, out.channels);
            if (wanted.x != nullptr) {
                Ahead next;
                if (i + 1 < end) {
                    next.add(g + (i + 1) * out.size(), out.size());
                    next.add(conv + (i + 1) * out.size(), out.size());
                    if (relu_input || wanted.weight != nullptr) next.add(from + (i + 1) * in.size(), in.size());
                    next.add(wanted.x + (i + 1) * in.size(), in.size());
                }
                image.run({wanted.x + i * in.size(), wanted.onto, relu_input ? from + i * in.size() : nullptr}, scratch,
                          next);
            }
            f(i, dz);
        }
    };
    if (wanted.weight == nullptr) {
        layer.for_ranges(0, [&](int64_t begin, int64_t end) {
            Buffer<float> scratch(image.scratch_size());
            for_images(begin, end, scratch.data(), [](int64_t, Blocks) {});
        });
        return;
    }
    const WeightGradient weights(layer.convolution);
    const int64_t at_once = weights.images_at_once(in.samples), ranges = (in.samples + at_once - 1) / at_once;
    std::vector<double> totals(ranges * weights.size());
    torch::stable::parallel_for(0, ranges, 1, [&](int64_t begin, int64_t end) {
        Buffer<float> scratch(image.scratch_size());
        WeightSums sums(weights);
        for (int64_t range = begin; range < end; ++range) {
            double* total = totals.data() + range * weights.size();
            for_images(range * at_once, std::min(in.samples, (range + 1) * at_once), scratch.data(),
                       [&](int64_t i, Blocks dz) { sums.add(total, from + i * in.size(), relu_input, dz); });
            sums.finish(total);
        }
    });
    weights.write(wanted.weight, totals.data(), ranges);
}

// The arguments of a forward call in the forms that the kernels read.
struct Forward {
    Tensor x, weight;
    Layer layer;
    OptionalTensor norm_weight, norm_bias;
    Tensor z, mean, invstd;

    Forward(const Tensor& x_any, const Tensor& weight_any, const OptionalTensor& norm_weight_any,
            const OptionalTensor& norm_bias_any, int64_t stride, int64_t padding)
        : x((check_convolution(x_any, weight_any, stride, padding),
             torch::stable::contiguous(x_any, MemoryFormat::ChannelsLast))),
          weight(torch::stable::contiguous(weight_any)),
          layer(x, weight, stride, padding),
          norm_weight(checked_channels(norm_weight_any, layer.out.channels, x, "norm_weight")),
          norm_bias(checked_channels(norm_bias_any, layer.out.channels, x, "norm_bias")),
          z(layer.empty_output(x)),
          mean(channel_tensor(x, layer.out.channels, ScalarType::Double)),
          invstd(channel_tensor(x, layer.out.channels, ScalarType::Double)) {
        STD_TORCH_CHECK(layer.out.values_per_channel() > 1,
                        "x: expected more than one value per channel of the result");
    }

    void run(const Tensor& y, const OptionalTensor& total, double eps, bool relu_input, bool relu_output) const {
        forward(y, z, mean, invstd, x, weight, norm_weight, norm_bias, total, eps, layer, relu_input, relu_output);
    }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> conv_batch_norm_train(const Tensor& x,                   // [N, C, H, W]
                                                                 const Tensor& weight,              // [D, C, K, K]
                                                                 const OptionalTensor norm_weight,  // [D]
                                                                 const OptionalTensor norm_bias,    // [D]
                                                                 const OptionalTensor total_any,    // [N, D, H', W']
                                                                 double eps, int64_t stride, int64_t padding,
                                                                 bool relu_input, bool relu_output) {
    const Forward call(x, weight, norm_weight, norm_bias, stride, padding);
    Tensor y = call.layer.empty_output(call.x);
    const OptionalTensor total = checked_images(total_any, y, MemoryFormat::ChannelsLast, "total");
    call.run(y, total, eps, relu_input, relu_output);
    return {y, call.z, call.mean, call.invstd};
}

std::tuple<Tensor, Tensor, Tensor> conv_batch_norm_train_onto(const Tensor& x, const Tensor& weight,
                                                              const OptionalTensor norm_weight,
                                                              const OptionalTensor norm_bias, const Tensor& total,
                                                              double eps, int64_t stride, int64_t padding,
                                                              bool relu_input, bool relu_output) {
    const Forward call(x, weight, norm_weight, norm_bias, stride, padding);
    target_of(total, call.z);
    call.run(total, total, eps, relu_input, relu_output);
    return {call.z, call.mean, call.invstd};
}

// The arguments of a backward call in the forms that the kernels read.
struct Backward {
    Tensor x, z, grad, weight;
    Layer layer;
    OptionalTensor norm_weight, norm_bias;
    Tensor mean, invstd;
    bool relu_input, relu_output;

    Backward(const Tensor& grad_any, const Tensor& x_any, const Tensor& z_any, const Tensor& weight_any,
             const OptionalTensor& norm_weight_any, const OptionalTensor& norm_bias_any, const Tensor& mean,
             const Tensor& invstd, int64_t stride, int64_t padding, bool relu_input, bool relu_output)
        : x((check_convolution(x_any, weight_any, stride, padding),
             torch::stable::contiguous(x_any, MemoryFormat::ChannelsLast))),
          z(torch::stable::contiguous(z_any, MemoryFormat::ChannelsLast)),
          grad(*checked_images(grad_any, z, MemoryFormat::ChannelsLast, "grad")),
          weight(torch::stable::contiguous(weight_any)),
          layer(x, weight, stride, padding),
          norm_weight(checked_channels(norm_weight_any, layer.out.channels, x, "norm_weight")),
          norm_bias(checked_channels(norm_bias_any, layer.out.channels, x, "norm_bias")),
          mean(mean),
          invstd(invstd),
          relu_input(relu_input),
          relu_output(relu_output) {
        STD_TORCH_CHECK(z.scalar_type() == ScalarType::Float && z.numel() == layer.out.size() * layer.out.samples,
                        "z: expected the convolution's output");
        check_statistics(mean, layer.out.channels, x, "mean");
        check_statistics(invstd, layer.out.channels, x, "invstd");
    }

    void run(const Gradients& wanted) const {
        backward(wanted, grad, x, z, weight, norm_weight, norm_bias, mean, invstd, layer, relu_input, relu_output);
    }

    // The gradients of the parameters, and the products with `outputs`; also of x where `of_x` holds its place.
    std::tuple<Tensor, Tensor, Tensor, Tensor> all(Gradients of_x, bool outputs) const {
        Tensor grad_weight = torch::stable::new_empty(weight, weight.sizes());
        Tensor grad_norm_weight = channel_tensor(x, layer.out.channels, ScalarType::Float);
        Tensor grad_norm_bias = channel_tensor(x, layer.out.channels, ScalarType::Float);
        Tensor products =
            torch::stable::new_zeros(x, {outputs ? layer.out.samples : 0, layer.out.channels}, ScalarType::Double);
        of_x.weight = grad_weight.mutable_data_ptr<float>();
        of_x.norm_weight = grad_norm_weight.mutable_data_ptr<float>();
        of_x.norm_bias = grad_norm_bias.mutable_data_ptr<float>();
        if (outputs) of_x.products = products.mutable_data_ptr<double>();
        run(of_x);
        return {grad_weight, grad_norm_weight, grad_norm_bias, products};
    }
};

Tensor conv_batch_norm_train_backward(const Tensor& grad,                // [N, D, H', W']
                                      const Tensor& x,                   // [N, C, H, W]
                                      const Tensor& z,                   // [N, D, H', W']
                                      const Tensor& weight,              // [D, C, K, K]
                                      const OptionalTensor norm_weight,  // [D]
                                      const OptionalTensor norm_bias,    // [D]
                                      const Tensor& mean,                // [D] float64
                                      const Tensor& invstd,              // [D] float64
                                      int64_t stride, int64_t padding, bool relu_input, bool relu_output) {
    const Backward call(grad, x, z, weight, norm_weight, norm_bias, mean, invstd, stride, padding, relu_input,
                        relu_output);
    Tensor grad_x = empty_images(x, MemoryFormat::ChannelsLast);
    call.run({.x = grad_x.mutable_data_ptr<float>()});
    return grad_x;
}

void conv_batch_norm_train_backward_onto(const Tensor& grad, const Tensor& x, const Tensor& z, const Tensor& weight,
                                         const OptionalTensor norm_weight, const OptionalTensor norm_bias,
                                         const Tensor& mean, const Tensor& invstd, const Tensor& total, int64_t stride,
                                         int64_t padding, bool relu_input, bool relu_output) {
    const Backward call(grad, x, z, weight, norm_weight, norm_bias, mean, invstd, stride, padding, relu_input,
                        relu_output);
    call.run({.x = target_of(total, x), .onto = true});
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> conv_batch_norm_train_gradients(
    const Tensor& grad, const Tensor& x, const Tensor& z, const Tensor& weight, const OptionalTensor norm_weight,
    const OptionalTensor norm_bias, const Tensor& mean, const Tensor& invstd, int64_t stride, int64_t padding,
    bool relu_input, bool relu_output, bool input, bool outputs) {
    const Backward call(grad, x, z, weight, norm_weight, norm_bias, mean, invstd, stride, padding, relu_input,
                        relu_output);
    Tensor grad_x = input ? empty_images(x, MemoryFormat::ChannelsLast)
                          : torch::stable::new_zeros(x, {0, x.size(1), x.size(2), x.size(3)});
    auto [grad_weight, grad_norm_weight, grad_norm_bias, products] =
        call.all({.x = input ? grad_x.mutable_data_ptr<float>() : nullptr}, outputs);
    return {grad_x, grad_weight, grad_norm_weight, grad_norm_bias, products};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> conv_batch_norm_train_gradients_onto(
    const Tensor& grad, const Tensor& x, const Tensor& z, const Tensor& weight, const OptionalTensor norm_weight,
    const OptionalTensor norm_bias, const Tensor& mean, const Tensor& invstd, const Tensor& total, int64_t stride,
    int64_t padding, bool relu_input, bool relu_output, bool outputs) {
    const Backward call(grad, x, z, weight, norm_weight, norm_bias, mean, invstd, stride, padding, relu_input,
                        relu_output);
    return call.all({.x = target_of(total, x), .onto = true}, outputs);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(zcpipe, CPU, m) {
    m.impl("conv_batch_norm_train", TORCH_BOX(&conv_batch_norm_train));
    m.impl("conv_batch_norm_train_backward", TORCH_BOX(&conv_batch_norm_train_backward));
    m.impl("conv_batch_norm_train_gradients", TORCH_BOX(&conv_batch_norm_train_gradients));
    m.impl("conv_batch_norm_train_gradients_onto", TORCH_BOX(&conv_batch_norm_train_gradients_onto));
    m.impl("conv_batch_norm_train_onto", TORCH_BOX(&conv_batch_norm_train_onto));
    m.impl("conv_batch_norm_train_backward_onto", TORCH_BOX(&conv_batch_norm_train_backward_onto));
}
