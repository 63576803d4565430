// ReLU, convolution and batch normalisation of values and tangents along weight + t weight_dot, and their transpose,
// image by image as in conv_batch_norm.cpp.
//
// With z = weight * x, z_dot = weight * x_dot + weight_dot * x and J the batch norm's Jacobian at z, the results are
// y = norm(z) and y_dot = J z_dot. float32, channels_last, strides 1 and 2.

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cpu/conv_layer.h"

namespace {

using namespace zcpipe;

// Sums of products of two convolutions, as one of twice as many source channels; each half begins a block.
class Joined {
  public:
    // conv(first source, first weight) + conv(second source, second weight), or the same of their transposes.
    Joined(const Convolution& c, const float* first, const float* second, bool transposed)
        : blocks_(blocks_of(transposed ? c.out_channels : c.in_channels)),
          image_(wide(c, transposed, blocks_), weights(c, first, second, transposed, blocks_).data(), transposed) {}

    int64_t scratch_size() const { return image_.scratch_size(); }
    Blocks first(float* scratch) const { return image_.source(scratch); }
    Blocks second(float* scratch) const {
        const Blocks b = image_.source(scratch);
        return {b.data + blocks_ * b.block_stride, b.row_stride, b.block_stride};
    }
    void run(Target target, float* scratch) const { image_.run(target, scratch); }

  private:
    static Convolution wide(Convolution c, bool transposed, int64_t blocks) {
        (transposed ? c.out_channels : c.in_channels) += blocks * kBlock;
        return c;
    }

    // [out_channels, in_channels, kernel, kernel], and zeros between the halves.
    static std::vector<float> weights(const Convolution& c, const float* first, const float* second, bool transposed,
                                      int64_t blocks) {
        const int64_t rows = transposed ? 1 : c.out_channels;
        const int64_t size = (transposed ? c.out_channels : 1) * c.in_channels * c.kernel * c.kernel;
        const int64_t half = blocks * kBlock * size / (transposed ? c.out_channels : c.in_channels);
        std::vector<float> joined(rows * (half + size));
        for (int64_t r = 0; r < rows; ++r) {
            std::copy_n(first + r * size, size, joined.data() + r * (half + size));
            std::copy_n(second + r * size, size, joined.data() + r * (half + size) + half);
        }
        return joined;
    }

    int64_t blocks_;  // of one half
    ImageConvolution image_;
};

// The arguments of both directions in the forms that the kernels read.
struct Arguments {
    Tensor x;
    OptionalTensor x_dot;
    Tensor weight, weight_dot;
    Layer layer;
    OptionalTensor norm_weight;
    double eps;
    bool relu_input;

    Arguments(const Tensor& x_any, const OptionalTensor& x_dot_any, const Tensor& weight_any,
              const Tensor& weight_dot_any, const OptionalTensor& norm_weight_any, double eps, int64_t stride,
              int64_t padding, bool relu_input)
        : x((check_convolution(x_any, weight_any, stride, padding),
             torch::stable::contiguous(x_any, MemoryFormat::ChannelsLast))),
          x_dot(checked_images(x_dot_any, x, MemoryFormat::ChannelsLast, "x_dot")),
          weight(torch::stable::contiguous(weight_any)),
          weight_dot(torch::stable::contiguous(weight_dot_any)),
          layer(x, weight, stride, padding),
          norm_weight(checked_channels(norm_weight_any, layer.out.channels, x, "norm_weight")),
          eps(eps),
          relu_input(relu_input) {
        STD_TORCH_CHECK(weight_dot.scalar_type() == ScalarType::Float && weight_dot.sizes() == weight.sizes(),
                        "weight_dot: expected the shape and dtype of weight");
        STD_TORCH_CHECK(layer.out.values_per_channel() > 1,
                        "x: expected more than one value per channel of the result");
    }

    double scale(int64_t channel) const {
        return norm_weight.has_value() ? norm_weight->const_data_ptr<float>()[channel] : 1.0;
    }
};

// Four values per channel of z and z_dot: mean, 1 / sqrt(biased variance + eps), and the means of z_dot and of z_dot
// times the normalised z.
struct Statistics {
    double *mean, *invstd, *tangent, *slope;

    Statistics(const Tensor& t, int64_t channels)
        : mean(t.mutable_data_ptr<double>()),
          invstd(mean + channels),
          tangent(mean + 2 * channels),
          slope(mean + 3 * channels) {}
};

// The per-channel values of a map, side by side.
class Rows {
  public:
    Rows(int64_t rows, int64_t channels) : channels_(channels), values_(rows * channels) {}
    float* operator[](int64_t row) { return &values_[row * channels_]; }

  private:
    int64_t channels_;
    std::vector<float> values_;
};

struct Outputs {
    const Tensor &y, &y_dot;
    const OptionalTensor &total, &total_dot;
};

struct Forward : Arguments {
    OptionalTensor norm_bias;
    Tensor z, z_dot, statistics;

    Forward(const Arguments& arguments, const OptionalTensor& norm_bias_any)
        : Arguments(arguments),
          norm_bias(checked_channels(norm_bias_any, layer.out.channels, x, "norm_bias")),
          z(layer.empty_output(x)),
          z_dot(layer.empty_output(x)),
          statistics(torch::stable::new_zeros(x, {4, layer.out.channels}, ScalarType::Double)) {}

    void run(const Outputs& outputs) const {
        const Statistics s(statistics, layer.out.channels);
        convolve(s);
        normalise(outputs, s);
    }

  private:
    void convolve(const Statistics& s) const {
        const Images &in = layer.in, &out = layer.out;
        const int64_t rows = layer.convolution.in_height, columns = layer.convolution.in_width;
        const float *values = x.const_data_ptr<float>(), *tangents = data_or_null<float>(x_dot);
        const float *w = weight.const_data_ptr<float>(), *w_dot = weight_dot.const_data_ptr<float>();
        float *to = z.mutable_data_ptr<float>(), *to_dot = z_dot.mutable_data_ptr<float>();
        const ImageConvolution image(layer.convolution, w, false);
        std::optional<Joined> joined;            // of the tangents and the values
        std::optional<ImageConvolution> single;  // of the values alone
        if (tangents != nullptr)
            joined.emplace(layer.convolution, w, w_dot, false);
        else
            single.emplace(layer.convolution, w_dot, false);
        std::vector<float> centre;
        Sums moments(out), slopes(out);
        const auto convolve_images = [&](int64_t begin, int64_t end) {
            Buffer<float> scratch(image.scratch_size()), wide(joined ? joined->scratch_size() : 0);
            for (int64_t i = begin; i < end; ++i) {
                const float* from = values + i * in.size();
                float *result = to + i * out.size(), *result_dot = to_dot + i * out.size();
                image.load(scratch.data(), from, relu_input);
                image.run({result, false, nullptr}, scratch.data());
                if (joined) {
                    const float* from_dot = tangents + i * in.size();
                    if (relu_input)
                        load_masked_blocks(joined->first(wide.data()), from_dot, from, rows, columns, in.channels);
                    else
                        load_blocks(joined->first(wide.data()), from_dot, rows, columns, in.channels, false);
                    load_blocks(joined->second(wide.data()), from, rows, columns, in.channels, relu_input);
                    joined->run({result_dot, false, nullptr}, wide.data());
                } else {
                    single->run({result_dot, false, nullptr}, scratch.data());
                }
                if (i == 0) centre = centre_of(result, out);
                add_moments(moments.first_of(i), moments.second_of(i), result, centre.data(), out.pixels, out.channels);
                add_gradients(slopes.first_of(i), slopes.second_of(i), result_dot, result,
                              {centre.data(), centre.data(), centre.data()}, false, out.pixels, out.channels);
            }
        };
        convolve_images(0, 1);
        layer.for_ranges(1, convolve_images);
        finish_statistics(s.mean, s.invstd, moments, centre, eps);
        for (int64_t c = 0; c < out.channels; ++c) {
            const double sum = slopes.total(slopes.first, c), offset = s.mean[c] - double(centre[c]);
            s.tangent[c] = sum / out.values_per_channel();
            s.slope[c] = s.invstd[c] * (slopes.total(slopes.second, c) - offset * sum) / out.values_per_channel();
        }
    }

    void normalise(const Outputs& outputs, const Statistics& s) const {
        const Images& out = layer.out;
        const float *values = z.const_data_ptr<float>(), *tangents = z_dot.const_data_ptr<float>();
        const float *sum = data_or_null<float>(outputs.total), *sum_dot = data_or_null<float>(outputs.total_dot);
        float *to = outputs.y.mutable_data_ptr<float>(), *to_dot = outputs.y_dot.mutable_data_ptr<float>();
        const Norm<float> norm(s.mean, s.invstd, data_or_null<float>(norm_weight), data_or_null<float>(norm_bias),
                               out.channels);
        Rows map(3, out.channels);
        for (int64_t c = 0; c < out.channels; ++c) {
            // The pixels are taken about the mean as float holds it; `rest` is what that leaves.
            const double rest = s.mean[c] - double(float(s.mean[c]));
            const double gain = scale(c) * s.invstd[c], slope = -gain * s.invstd[c] * s.slope[c];
            map[0][c] = float(gain);
            map[1][c] = float(slope);
            map[2][c] = float(-gain * s.tangent[c] - slope * rest);
        }
        layer.for_ranges(0, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
                const int64_t at = i * out.size();
                apply(to + at, values + at, sum == nullptr ? nullptr : sum + at, norm.at(0), false, out.pixels,
                      out.channels);
                apply_gradient(to_dot + at, tangents + at, values + at, sum_dot == nullptr ? nullptr : sum_dot + at,
                               {map[0], map[1], map[2]}, norm.at(0), false, out.pixels, out.channels);
            }
        });
    }
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> conv_batch_norm_tangent(
    const Tensor& x,                     // [N, C, H, W]
    const OptionalTensor x_dot,          // [N, C, H, W]; None for zeros
    const Tensor& weight,                // [D, C, K, K]
    const Tensor& weight_dot,            // [D, C, K, K]
    const OptionalTensor norm_weight,    // [D]
    const OptionalTensor norm_bias,      // [D]
    const OptionalTensor total_any,      // [N, D, H', W']
    const OptionalTensor total_dot_any,  // [N, D, H', W']
    double eps, int64_t stride, int64_t padding, bool relu_input) {
    const Forward call({x, x_dot, weight, weight_dot, norm_weight, eps, stride, padding, relu_input}, norm_bias);
    Tensor y = call.layer.empty_output(call.x), y_dot = call.layer.empty_output(call.x);
    const OptionalTensor total = checked_images(total_any, y, MemoryFormat::ChannelsLast, "total");
    const OptionalTensor total_dot = checked_images(total_dot_any, y, MemoryFormat::ChannelsLast, "total_dot");
    call.run({y, y_dot, total, total_dot});
    return {y, y_dot, call.z, call.z_dot, call.statistics};
}

std::tuple<Tensor, Tensor, Tensor> conv_batch_norm_tangent_onto(const Tensor& x, const OptionalTensor x_dot,
                                                                const Tensor& weight, const Tensor& weight_dot,
                                                                const OptionalTensor norm_weight,
                                                                const OptionalTensor norm_bias, const Tensor& total,
                                                                const Tensor& total_dot, double eps, int64_t stride,
                                                                int64_t padding, bool relu_input) {
    const Forward call({x, x_dot, weight, weight_dot, norm_weight, eps, stride, padding, relu_input}, norm_bias);
    target_of(total, call.z);
    target_of(total_dot, call.z, "total_dot");
    call.run({total, total_dot, total, total_dot});
    return {call.z, call.z_dot, call.statistics};
}

struct Backward : Arguments {
    Tensor z, z_dot, grad, grad_dot, statistics;

    Backward(const Arguments& arguments, const Tensor& grad_any, const Tensor& grad_dot_any, const Tensor& z_any,
             const Tensor& z_dot_any, const Tensor& statistics)
        : Arguments(arguments),
          z(torch::stable::contiguous(z_any, MemoryFormat::ChannelsLast)),
          z_dot(*checked_images(z_dot_any, z, MemoryFormat::ChannelsLast, "z_dot")),
          grad(*checked_images(grad_any, z, MemoryFormat::ChannelsLast, "grad")),
          grad_dot(*checked_images(grad_dot_any, z, MemoryFormat::ChannelsLast, "grad_dot")),
          statistics(statistics) {
        STD_TORCH_CHECK(z.scalar_type() == ScalarType::Float && z.numel() == layer.out.size() * layer.out.samples,
                        "z: expected the convolution's output");
        check_statistics(statistics, 4 * layer.out.channels, x, "statistics");
    }

    // Fills or, with `onto`, adds to the gradients of x and x_dot, unless x_dot is None, and returns the sum of the
    // weight times its gradient.
    Tensor run(float* to, float* to_dot, bool onto) const {
        const Images& out = layer.out;
        const Statistics s(statistics, out.channels);
        Rows map(8, out.channels);
        double product = make_map(map, s);
        if (x_dot.has_value()) product += convolve(map, to, to_dot, onto);
        Tensor result = torch::stable::new_zeros(x, {}, ScalarType::Double);
        *result.mutable_data_ptr<double>() = product;
        return result;
    }

  private:
    // The maps to the gradients of z and z_dot; returns the sum of z times its gradient.
    double make_map(Rows& map, const Statistics& s) const {
        const Images& out = layer.out;
        const double count = out.values_per_channel();
        const std::vector<float> zero(out.channels);
        for (int64_t c = 0; c < out.channels; ++c) map[0][c] = float(s.mean[c]);
        const Affine<float> about_mean{map[0], map[0], map[0]}, about_zero{zero.data(), zero.data(), zero.data()};
        const float *values = z.const_data_ptr<float>(), *tangents = z_dot.const_data_ptr<float>();
        const float *g = grad.const_data_ptr<float>(), *g_dot = grad_dot.const_data_ptr<float>();
        Sums of_values(out), of_tangents(out), products(out);
        layer.for_ranges(0, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
                const int64_t at = i * out.size();
                const auto add = [&](Sums& sums, const float* left, const float* right, Affine<float> about) {
                    add_gradients(sums.first_of(i), sums.second_of(i), left + at, right + at, about, false, out.pixels,
                                  out.channels);
                };
                add(of_values, g, values, about_mean);
                add(of_tangents, g_dot, values, about_mean);
                add(products, g_dot, tangents, about_zero);
            }
        });
        double sum = 0;
        for (int64_t c = 0; c < out.channels; ++c) {
            const double r = s.invstd[c], gain = scale(c) * r, rest = s.mean[c] - double(map[0][c]);
            // Means of the gradients, alone and times the normalised z.
            const auto means = [&](const Sums& sums) {
                const double first = sums.total(sums.first, c);
                return std::pair{first / count, r * (sums.total(sums.second, c) - rest * first) / count};
            };
            const auto [g_mean, g_slope] = means(of_values);
            const auto [dot_mean, dot_slope] = means(of_tangents);
            const double a = s.tangent[c], b = s.slope[c];
            // What <grad_dot, y_dot> is but for count and gain.
            const double slope = products.total(products.second, c) / count - a * dot_mean - b * dot_slope;
            // z_dot's gradient is J grad_dot. z's is J grad and, from J's dependence on z (with z^ the normalised z and
            // r = invstd), -r (b J grad_dot + dot_slope J z_dot) - r^2 slope scale z^.
            const double along = -gain * r * (g_slope - r * (2 * b * dot_slope - slope));
            const double along_dot = -gain * r * dot_slope;
            map[1][c] = float(gain);
            map[2][c] = float(-gain * r * b);
            map[3][c] = float(along_dot);
            map[4][c] = float(along);
            map[5][c] = float(-gain * (g_mean - r * (b * dot_mean + dot_slope * a)) - along * rest);
            map[6][c] = float(along_dot);
            map[7][c] = float(-gain * dot_mean - along_dot * rest);
            // Of z only what lies about the mean counts: z's gradient sums to 0. z^ has a mean square of 1 - left.
            const double left = eps * r * r;
            sum += scale(c) * count * (left * (g_slope - 2 * r * b * dot_slope) - (1 - left) * r * slope);
        }
        return sum;
    }

    // Returns the sum of (weight * x_dot) times z_dot's gradient, as that of x_dot times its own.
    double convolve(Rows& map, float* to, float* to_dot, bool onto) const {
        const Images &in = layer.in, &out = layer.out;
        const Convolution& c = layer.convolution;
        const float *from = x.const_data_ptr<float>(), *from_dot = x_dot->const_data_ptr<float>();
        const float *values = z.const_data_ptr<float>(), *tangents = z_dot.const_data_ptr<float>();
        const float *g = grad.const_data_ptr<float>(), *g_dot = grad_dot.const_data_ptr<float>();
        const float *w = weight.const_data_ptr<float>(), *w_dot = weight_dot.const_data_ptr<float>();
        const TangentGradientMap gradients{map[0], map[1], map[2], map[3], map[4], map[5], map[6], map[7]};
        const Joined joined(c, w, w_dot, true);
        const ImageConvolution image(c, w, true);
        std::vector<double> products(in.samples);
        layer.for_ranges(0, [&](int64_t begin, int64_t end) {
            Buffer<float> wide(joined.scratch_size()), scratch(image.scratch_size()), part(onto ? in.size() : 0);
            const TangentBlocks blocks{joined.first(wide.data()), joined.second(wide.data()),
                                       image.source(scratch.data())};
            for (int64_t i = begin; i < end; ++i) {
                const int64_t at = i * out.size(), at_input = i * in.size();
                apply_tangent_gradient_to_blocks(blocks, {values + at, tangents + at, g + at, g_dot + at}, gradients,
                                                 c.out_height(), c.out_width(), out.channels);
                const float* mask = relu_input ? from + at_input : nullptr;
                joined.run({to + at_input, onto, mask}, wide.data());
                float *target = to_dot + at_input, *own = onto ? part.data() : target;
                image.run({own, false, mask}, scratch.data());
                products[i] = sum_products(onto ? target : nullptr, own, from_dot + at_input, in.size());
            }
        });
        double sum = 0;
        for (const double product : products) sum += product;
        return sum;
    }
};

std::tuple<Tensor, Tensor, Tensor> conv_batch_norm_tangent_backward(const Tensor& grad,                // [N, D, H', W']
                                                                    const Tensor& grad_dot,            // [N, D, H', W']
                                                                    const Tensor& x,                   // [N, C, H, W]
                                                                    const OptionalTensor x_dot,        // [N, C, H, W]
                                                                    const Tensor& z,                   // [N, D, H', W']
                                                                    const Tensor& z_dot,               // [N, D, H', W']
                                                                    const Tensor& weight,              // [D, C, K, K]
                                                                    const Tensor& weight_dot,          // [D, C, K, K]
                                                                    const OptionalTensor norm_weight,  // [D]
                                                                    const Tensor& statistics,          // [4, D] float64
                                                                    double eps, int64_t stride, int64_t padding,
                                                                    bool relu_input) {
    const Backward call({x, x_dot, weight, weight_dot, norm_weight, eps, stride, padding, relu_input}, grad, grad_dot,
                        z, z_dot, statistics);
    const auto make = [&] {
        return x_dot.has_value() ? empty_images(x, MemoryFormat::ChannelsLast)
                                 : torch::stable::new_zeros(x, {0, x.size(1), x.size(2), x.size(3)});
    };
    Tensor grad_x = make(), grad_x_dot = make();
    Tensor product = call.run(grad_x.mutable_data_ptr<float>(), grad_x_dot.mutable_data_ptr<float>(), false);
    return {grad_x, grad_x_dot, product};
}

Tensor conv_batch_norm_tangent_backward_onto(const Tensor& grad, const Tensor& grad_dot, const Tensor& x,
                                             const OptionalTensor x_dot, const Tensor& z, const Tensor& z_dot,
                                             const Tensor& weight, const Tensor& weight_dot,
                                             const OptionalTensor norm_weight, const Tensor& statistics,
                                             const Tensor& total, const Tensor& total_dot, double eps, int64_t stride,
                                             int64_t padding, bool relu_input) {
    STD_TORCH_CHECK(x_dot.has_value(), "x_dot: got None, which has no gradient to add");
    const Backward call({x, x_dot, weight, weight_dot, norm_weight, eps, stride, padding, relu_input}, grad, grad_dot,
                        z, z_dot, statistics);
    return call.run(target_of(total, x), target_of(total_dot, x, "total_dot"), true);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(zcpipe, CPU, m) {
    m.impl("conv_batch_norm_tangent", TORCH_BOX(&conv_batch_norm_tangent));
    m.impl("conv_batch_norm_tangent_onto", TORCH_BOX(&conv_batch_norm_tangent_onto));
    m.impl("conv_batch_norm_tangent_backward", TORCH_BOX(&conv_batch_norm_tangent_backward));
    m.impl("conv_batch_norm_tangent_backward_onto", TORCH_BOX(&conv_batch_norm_tangent_backward_onto));
}
