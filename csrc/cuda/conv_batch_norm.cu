// ReLU, convolution and batch normalisation in one op: torch's convolutions between this library's kernels. A layer of
// small images costs what the way to its kernels costs, and so it is one call, whose ReLUs and sums are parts of
// kernels that run anyway.
//
// float32, strides 1 and 2. Results lie as x does: channels_last if it does, contiguous otherwise.

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cuda/aten.h"
#include "cuda/batch_norm.h"
#include "cuda/product_sums.h"
#include "cuda/relu_gradient.cuh"

namespace {

using namespace zcpipe;

// What forward and backward are given, in the forms that the kernels read.
struct Layer {
    MemoryFormat format;
    Tensor x, weight;
    OptionalTensor norm_weight, norm_bias;
    int64_t stride, padding;
    bool relu_input, relu_output;

    Layer(const Tensor& x_any, const Tensor& weight_any, const OptionalTensor& norm_weight_any,
          const OptionalTensor& norm_bias_any, int64_t stride, int64_t padding, bool relu_input, bool relu_output)
        : format((check_convolution(x_any, weight_any, stride, padding), format_of(x_any))),
          x(torch::stable::contiguous(x_any, format)),
          weight(torch::stable::contiguous(weight_any, format)),
          norm_weight(checked_channels(norm_weight_any, weight.size(0), x, "norm_weight")),
          norm_bias(checked_channels(norm_bias_any, weight.size(0), x, "norm_bias")),
          stride(stride),
          padding(padding),
          relu_input(relu_input),
          relu_output(relu_output) {}

    Tensor convolved() const {
        const Tensor z = gpu::convolution(relu_input ? gpu::relu(x) : x, weight, stride, padding);
        STD_TORCH_CHECK(z.numel() > z.size(1), "x: expected more than one value per channel of the result");
        return torch::stable::contiguous(z, format);
    }
};

// Writes to y, which may be total, and returns z, mean and invstd.
std::tuple<Tensor, Tensor, Tensor> forward(const Layer& layer, const Tensor& z, const Tensor& y,
                                           const OptionalTensor& total, double eps) {
    const gpu::OnDeviceOf device(z);
    Tensor mean = gpu::doubles(z, z.size(1)), invstd = gpu::doubles(z, z.size(1));
    gpu::normalise<float>(y, mean, invstd, z, layer.norm_weight, layer.norm_bias, total, eps, layer.relu_output,
                          gpu::images_of(z, layer.format), device.stream());
    return {z, mean, invstd};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> conv_batch_norm_train(const Tensor& x,                   // [N, C, H, W]
                                                                 const Tensor& weight,              // [D, C, K, K]
                                                                 const OptionalTensor norm_weight,  // [D]
                                                                 const OptionalTensor norm_bias,    // [D]
                                                                 const OptionalTensor total_any,    // [N, D, H', W']
                                                                 double eps, int64_t stride, int64_t padding,
                                                                 bool relu_input, bool relu_output) {
    const gpu::OnDeviceOf device(x);
    const Layer layer(x, weight, norm_weight, norm_bias, stride, padding, relu_input, relu_output);
    const Tensor z = layer.convolved();
    Tensor y = empty_images(z, layer.format);
    const auto [_, mean, invstd] = forward(layer, z, y, checked_images(total_any, z, layer.format, "total"), eps);
    return {y, z, mean, invstd};
}

// The layout in which a sum is added to.
void check_sum(const Tensor& total, const Tensor& like, MemoryFormat format) {
    check_target(total, like, "total");
    STD_TORCH_CHECK(format == MemoryFormat::ChannelsLast ? is_channels_last(total) : total.is_contiguous(),
                    "total: expected the layout of x");
}

std::tuple<Tensor, Tensor, Tensor> conv_batch_norm_train_onto(const Tensor& x, const Tensor& weight,
                                                              const OptionalTensor norm_weight,
                                                              const OptionalTensor norm_bias, const Tensor& total,
                                                              double eps, int64_t stride, int64_t padding,
                                                              bool relu_input, bool relu_output) {
    const gpu::OnDeviceOf device(x);
    const Layer layer(x, weight, norm_weight, norm_bias, stride, padding, relu_input, relu_output);
    const Tensor z = layer.convolved();
    check_sum(total, z, layer.format);
    return forward(layer, z, total, total, eps);
}

// The arguments of a backward call, and the gradient of z.
struct Backward {
    gpu::OnDeviceOf device;
    Layer layer;
    Tensor z, grad_z, grad_norm_weight, grad_norm_bias;

    Backward(const Tensor& grad_any, const Tensor& x_any, const Tensor& z_any, const Tensor& weight_any,
             const OptionalTensor& norm_weight_any, const OptionalTensor& norm_bias_any, const Tensor& mean,
             const Tensor& invstd, int64_t stride, int64_t padding, bool relu_input, bool relu_output)
        : device(x_any),
          layer(x_any, weight_any, norm_weight_any, norm_bias_any, stride, padding, relu_input, relu_output),
          z(torch::stable::contiguous(z_any, layer.format)),
          grad_z(empty_images(z, layer.format)),
          grad_norm_weight(new_vector(z, z.size(1), ScalarType::Float)),
          grad_norm_bias(new_vector(z, z.size(1), ScalarType::Float)) {
        STD_TORCH_CHECK(z.scalar_type() == ScalarType::Float && z.dim() == 4 && z.size(1) == layer.weight.size(0),
                        "z: expected the convolution's output");
        check_device(z, x_any, "z");
        check_statistics(mean, z.size(1), z, "mean");
        check_statistics(invstd, z.size(1), z, "invstd");
        const Tensor grad = *checked_images(grad_any, z, layer.format, "grad");
        gpu::normalise_backward<float>(grad_z, grad_norm_weight, grad_norm_bias, grad, z, layer.norm_weight,
                                       layer.norm_bias, mean, invstd, relu_output, gpu::images_of(z, layer.format),
                                       device.stream());
    }

    // The gradients of the convolution's input and weights; one that is not wanted is undefined.
    std::tuple<Tensor, Tensor> of_convolution(bool of_x, bool of_weight) const {
        const Tensor in = of_weight && layer.relu_input ? gpu::relu(layer.x) : layer.x;
        return gpu::convolution_backward(grad_z, in, layer.weight, layer.stride, layer.padding, of_x, of_weight);
    }

    // Takes the gradient of what the ReLU returned to what entered it.
    Tensor through_relu(const Tensor& grad) const {
        const Tensor g = torch::stable::contiguous(grad, layer.format);
        if (layer.relu_input) pass(g, g, false);
        return g;
    }

    void add_through_relu(const Tensor& total, const Tensor& grad) const {
        check_sum(total, layer.x, layer.format);
        pass(total, torch::stable::contiguous(grad, layer.format), true);
    }

    // The gradients of the weights and the norm's parameters, and the sums of z times its gradient with `outputs`.
    std::tuple<Tensor, Tensor, Tensor, Tensor> of_parameters(const Tensor& grad_weight, bool outputs) const {
        Tensor products = outputs ? gpu::product_sums_of(z, grad_z) : new_matrix(z, 0, z.size(1), ScalarType::Double);
        return {torch::stable::contiguous(grad_weight), grad_norm_weight, grad_norm_bias, products};
    }

  private:
    void pass(const Tensor& to, const Tensor& grad, bool onto) const {
        gpu::relu_gradient(to.mutable_data_ptr<float>(), grad.const_data_ptr<float>(),
                           layer.relu_input ? layer.x.const_data_ptr<float>() : nullptr, onto, grad.numel(),
                           device.stream());
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
    return call.through_relu(std::get<0>(call.of_convolution(true, false)));
}

void conv_batch_norm_train_backward_onto(const Tensor& grad, const Tensor& x, const Tensor& z, const Tensor& weight,
                                         const OptionalTensor norm_weight, const OptionalTensor norm_bias,
                                         const Tensor& mean, const Tensor& invstd, const Tensor& total, int64_t stride,
                                         int64_t padding, bool relu_input, bool relu_output) {
    const Backward call(grad, x, z, weight, norm_weight, norm_bias, mean, invstd, stride, padding, relu_input,
                        relu_output);
    call.add_through_relu(total, std::get<0>(call.of_convolution(true, false)));
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> conv_batch_norm_train_gradients(
    const Tensor& grad, const Tensor& x, const Tensor& z, const Tensor& weight, const OptionalTensor norm_weight,
    const OptionalTensor norm_bias, const Tensor& mean, const Tensor& invstd, int64_t stride, int64_t padding,
    bool relu_input, bool relu_output, bool input, bool outputs) {
    const Backward call(grad, x, z, weight, norm_weight, norm_bias, mean, invstd, stride, padding, relu_input,
                        relu_output);
    const auto [of_x, of_weight] = call.of_convolution(input, true);
    const Tensor grad_x =
        input ? call.through_relu(of_x) : torch::stable::new_empty(x, {0, x.size(1), x.size(2), x.size(3)});
    const auto [grad_weight, grad_norm_weight, grad_norm_bias, products] = call.of_parameters(of_weight, outputs);
    return {grad_x, grad_weight, grad_norm_weight, grad_norm_bias, products};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> conv_batch_norm_train_gradients_onto(
    const Tensor& grad, const Tensor& x, const Tensor& z, const Tensor& weight, const OptionalTensor norm_weight,
    const OptionalTensor norm_bias, const Tensor& mean, const Tensor& invstd, const Tensor& total, int64_t stride,
    int64_t padding, bool relu_input, bool relu_output, bool outputs) {
    const Backward call(grad, x, z, weight, norm_weight, norm_bias, mean, invstd, stride, padding, relu_input,
                        relu_output);
    const auto [of_x, of_weight] = call.of_convolution(true, true);
    call.add_through_relu(total, of_x);
    return call.of_parameters(of_weight, outputs);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(zcpipe, CUDA, m) {
    m.impl("conv_batch_norm_train", TORCH_BOX(&conv_batch_norm_train));
    m.impl("conv_batch_norm_train_backward", TORCH_BOX(&conv_batch_norm_train_backward));
    m.impl("conv_batch_norm_train_gradients", TORCH_BOX(&conv_batch_norm_train_gradients));
    m.impl("conv_batch_norm_train_gradients_onto", TORCH_BOX(&conv_batch_norm_train_gradients_onto));
    m.impl("conv_batch_norm_train_onto", TORCH_BOX(&conv_batch_norm_train_onto));
    m.impl("conv_batch_norm_train_backward_onto", TORCH_BOX(&conv_batch_norm_train_backward_onto));
}
