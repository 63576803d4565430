// Batch normalisation with the batch's own statistics, forward and backward. All sums are taken in double precision.

#include <torch/csrc/stable/library.h>

#include <cmath>
#include <optional>
#include <tuple>
#include <vector>

#include "common/lanes.h"
#include "common/layout.h"
#include "common/simd.h"

namespace {

using namespace zcpipe;
using Doubles = std::vector<double>;

constexpr int64_t kGrain = 1 << 15;  // elements: less is not worth a second thread

// Sums of x - centre and of its square. The sums read two rows of lanes at a time, because loading and storing the
// lanes would cost more than the adding.
template <typename T>
ZCPIPE_INLINE void moment_lanes(double* sums, double* squares, const T* x, const double* centre, int64_t count,
                                int64_t width) {
    int64_t i = 0;
    for (; i + 2 * width <= count; i += 2 * width) {
        const T *x0 = x + i, *x1 = x0 + width;
#pragma omp simd
        for (int64_t l = 0; l < width; ++l) {
            const double a = double(x0[l]) - centre[l], b = double(x1[l]) - centre[l];
            sums[l] += a + b;
            squares[l] += a * a + b * b;
        }
    }
    for (; i < count; i += width) {
        const int64_t n = std::min(width, count - i);
#pragma omp simd
        for (int64_t l = 0; l < n; ++l) {
            const double a = double(x[i + l]) - centre[l];
            sums[l] += a;
            squares[l] += a * a;
        }
    }
}

// Sums of g and of g (x - mean): all that the backward needs to know about the batch.
template <typename T>
ZCPIPE_INLINE void gradient_lanes(double* sums, double* products, const T* g, const T* x, const double* mean,
                                  int64_t count, int64_t width) {
    int64_t i = 0;
    for (; i + 2 * width <= count; i += 2 * width) {
        const T *g0 = g + i, *g1 = g0 + width, *x0 = x + i, *x1 = x0 + width;
#pragma omp simd
        for (int64_t l = 0; l < width; ++l) {
            const double a = double(g0[l]), b = double(g1[l]), m = mean[l];
            sums[l] += a + b;
            products[l] += a * (double(x0[l]) - m) + b * (double(x1[l]) - m);
        }
    }
    for (; i < count; i += width) {
        const int64_t n = std::min(width, count - i);
#pragma omp simd
        for (int64_t l = 0; l < n; ++l) {
            const double a = double(g[i + l]);
            sums[l] += a;
            products[l] += a * (double(x[i + l]) - mean[l]);
        }
    }
}

// out = (x - centre) scale + shift
template <typename T>
ZCPIPE_INLINE void apply_lanes(T* out, const T* x, const T* centre, const T* scale, const T* shift, int64_t count,
                               int64_t width) {
    for (int64_t i = 0; i < count; i += width) {
        const int64_t n = std::min(width, count - i);
#pragma omp simd
        for (int64_t l = 0; l < n; ++l) out[i + l] = (x[i + l] - centre[l]) * scale[l] + shift[l];
    }
}

// out = g gain + (x - centre) scale + shift
template <typename T>
ZCPIPE_INLINE void apply_gradient_lanes(T* out, const T* g, const T* x, const T* gain, const T* centre, const T* scale,
                                        const T* shift, int64_t count, int64_t width) {
    for (int64_t i = 0; i < count; i += width) {
        const int64_t n = std::min(width, count - i);
#pragma omp simd
        for (int64_t l = 0; l < n; ++l)
            out[i + l] = g[i + l] * gain[l] + ((x[i + l] - centre[l]) * scale[l] + shift[l]);
    }
}

#define ZCPIPE_BATCH_NORM_KERNELS(T)                                                                                  \
    ZCPIPE_CLONES void add_moments(double* sums, double* squares, const T* x, const double* centre, int64_t count,    \
                                   int64_t width) {                                                                   \
        moment_lanes(sums, squares, x, centre, count, width);                                                         \
    }                                                                                                                 \
    ZCPIPE_CLONES void add_gradients(double* sums, double* products, const T* g, const T* x, const double* mean,      \
                                     int64_t count, int64_t width) {                                                  \
        gradient_lanes(sums, products, g, x, mean, count, width);                                                     \
    }                                                                                                                 \
    ZCPIPE_CLONES void apply(T* out, const T* x, const T* centre, const T* scale, const T* shift, int64_t count,      \
                             int64_t width) {                                                                         \
        apply_lanes(out, x, centre, scale, shift, count, width);                                                      \
    }                                                                                                                 \
    ZCPIPE_CLONES void apply_gradient(T* out, const T* g, const T* x, const T* gain, const T* centre, const T* scale, \
                                      const T* shift, int64_t count, int64_t width) {                                 \
        apply_gradient_lanes(out, g, x, gain, centre, scale, shift, count, width);                                    \
    }

ZCPIPE_BATCH_NORM_KERNELS(float)
ZCPIPE_BATCH_NORM_KERNELS(double)

// A batch as equal images of interleaved channels: N images of C channels in NHWC, N C images of one in NCHW.
struct Batch {
    int64_t samples, channels, pixels;  // of the tensor
    int64_t images, interleaved;        // of the memory

    Batch(const Tensor& x, MemoryFormat format)
        : samples(x.size(0)),
          channels(x.size(1)),
          pixels(x.size(2) * x.size(3)),
          images(format == MemoryFormat::ChannelsLast ? samples : samples * channels),
          interleaved(format == MemoryFormat::ChannelsLast ? channels : 1) {}

    int64_t size() const { return interleaved * pixels; }
    int64_t width() const { return lane_width(interleaved); }
    int64_t first_channel(int64_t image) const { return interleaved == 1 ? image % channels : 0; }

    template <typename F>
    void for_images(const F& f) const {
        torch::stable::parallel_for(0, images, kGrain / size() + 1, f);
    }
};

// Two sums per channel over the images begin .. end, one pair for each image and channel: what `kernel` adds to the
// lanes when it is given the image's first element and the channels' centres.
template <typename Kernel>
void sum_images(Doubles& first, Doubles& second, const Doubles& centre, const Batch& b, int64_t begin, int64_t end,
                const Kernel& kernel) {
    Doubles lanes(b.width()), more_lanes(b.width()), centres(b.width());
    for (int64_t i = begin; i < end; ++i) {
        std::fill(lanes.begin(), lanes.end(), 0.0);
        std::fill(more_lanes.begin(), more_lanes.end(), 0.0);
        spread(centres.data(), centre.data() + b.first_channel(i), b.interleaved, b.width());
        kernel(lanes.data(), more_lanes.data(), i * b.size(), centres.data());
        fold(first.data() + i * b.interleaved, lanes.data(), b.interleaved, b.width());
        fold(second.data() + i * b.interleaved, more_lanes.data(), b.interleaved, b.width());
    }
}

// Adds up each channel's sums over the samples, in their order.
double over_samples(const Doubles& sums, int64_t channel, const Batch& b) {
    double sum = 0;
    for (int64_t n = 0; n < b.samples; ++n) sum += sums[n * b.channels + channel];
    return sum;
}

// The channels' mean and biased variance in one read, as moments about the first sample's mean. That mean is so near
// that nothing is lost: its squared distance from the batch's mean is at most (number of samples) variances.
template <typename T>
void statistics(double* mean, double* variance, const T* x, const Batch& b) {
    Doubles sums(b.samples * b.channels), squares(b.samples * b.channels), centre(b.channels);
    const auto moments = [&](double* lanes, double* more_lanes, int64_t image, const double* centres) {
        add_moments(lanes, more_lanes, x + image, centres, b.size(), b.width());
    };
    sum_images(sums, squares, centre, b, 0, b.images / b.samples, moments);
    for (int64_t c = 0; c < b.channels; ++c) centre[c] = sums[c] / double(b.pixels);
    b.for_images([&](int64_t begin, int64_t end) { sum_images(sums, squares, centre, b, begin, end, moments); });
    const double count = double(b.samples * b.pixels);
    for (int64_t c = 0; c < b.channels; ++c) {
        const double offset = over_samples(sums, c, b) / count;
        mean[c] = centre[c] + offset;
        variance[c] = std::max(0.0, over_samples(squares, c, b) / count - offset * offset);
    }
}

// (x - mean) scale + shift in type T per channel, spread over lanes. The part of the mean that T cannot hold goes into
// the shift, so that images far from 0 lose nothing.
template <typename T>
struct Affine {
    std::vector<T> centre, scale, shift;

    explicit Affine(const Batch& b) : centre(b.width()), scale(b.width()), shift(b.width()) {}

    void set(const double* mean, const double* scales, const double* shifts, int64_t channels) {
        for (int64_t c = 0; c < channels; ++c) {
            centre[c] = T(mean[c]);
            scale[c] = T(scales[c]);
            shift[c] = T(shifts[c] - (mean[c] - double(centre[c])) * scales[c]);
        }
        for (std::vector<T>* lanes : {&centre, &scale, &shift})
            spread(lanes->data(), lanes->data(), channels, int64_t(lanes->size()));
    }
};

template <typename T>
double value_or(const std::optional<Tensor>& t, int64_t c, double otherwise) {
    return t.has_value() ? double(t->const_data_ptr<T>()[c]) : otherwise;
}

template <typename T>
void forward(const Tensor& y, const Tensor& mean, const Tensor& invstd, const Tensor& x,
             const std::optional<Tensor>& weight, const std::optional<Tensor>& bias, double eps, const Batch& b) {
    double* m = mean.mutable_data_ptr<double>();
    double* r = invstd.mutable_data_ptr<double>();
    const T* from = x.const_data_ptr<T>();
    T* to = y.mutable_data_ptr<T>();
    statistics(m, r, from, b);
    Doubles scale(b.channels), shift(b.channels);
    for (int64_t c = 0; c < b.channels; ++c) {
        r[c] = 1.0 / std::sqrt(r[c] + eps);
        scale[c] = value_or<T>(weight, c, 1.0) * r[c];
        shift[c] = value_or<T>(bias, c, 0.0);
    }
    b.for_images([&](int64_t begin, int64_t end) {
        Affine<T> a(b);
        for (int64_t i = begin; i < end; ++i) {
            const int64_t c = b.first_channel(i);
            if (i == begin || b.interleaved == 1) a.set(m + c, &scale[c], &shift[c], b.interleaved);
            apply(to + i * b.size(), from + i * b.size(), a.centre.data(), a.scale.data(), a.shift.data(), b.size(),
                  b.width());
        }
    });
}

template <typename T>
void backward(const Tensor& grad_x, const Tensor& grad_weight, const Tensor& grad_bias, const Tensor& grad,
              const Tensor& x, const std::optional<Tensor>& weight, const Tensor& mean, const Tensor& invstd,
              const Batch& b) {
    const double* m = mean.const_data_ptr<double>();
    const double* r = invstd.const_data_ptr<double>();
    const T* g = grad.const_data_ptr<T>();
    const T* from = x.const_data_ptr<T>();
    T* to = grad_x.mutable_data_ptr<T>();

    Doubles sums(b.samples * b.channels), products(b.samples * b.channels);
    const Doubles centre(m, m + b.channels);
    b.for_images([&](int64_t begin, int64_t end) {
        sum_images(sums, products, centre, b, begin, end,
                   [&](double* lanes, double* more_lanes, int64_t image, const double* centres) {
                       add_gradients(lanes, more_lanes, g + image, from + image, centres, b.size(), b.width());
                   });
    });

    const double count = double(b.samples * b.pixels);
    Doubles gain(b.channels), scale(b.channels), shift(b.channels);
    for (int64_t c = 0; c < b.channels; ++c) {
        const double sum = over_samples(sums, c, b), product = over_samples(products, c, b);
        grad_weight.mutable_data_ptr<T>()[c] = T(product * r[c]);
        grad_bias.mutable_data_ptr<T>()[c] = T(sum);
        gain[c] = value_or<T>(weight, c, 1.0) * r[c];
        scale[c] = -gain[c] * (r[c] * r[c]) * (product / count);
        shift[c] = -gain[c] * (sum / count);
    }
    b.for_images([&](int64_t begin, int64_t end) {
        Affine<T> a(b);
        std::vector<T> gains(b.width());
        for (int64_t i = begin; i < end; ++i) {
            const int64_t c = b.first_channel(i);
            if (i == begin || b.interleaved == 1) {
                a.set(m + c, &scale[c], &shift[c], b.interleaved);
                std::copy_n(&gain[c], b.interleaved, gains.data());
                spread(gains.data(), gains.data(), b.interleaved, b.width());
            }
            apply_gradient(to + i * b.size(), g + i * b.size(), from + i * b.size(), gains.data(), a.centre.data(),
                           a.scale.data(), a.shift.data(), b.size(), b.width());
        }
    });
}

Tensor channel_tensor(const Tensor& x, ScalarType dtype) { return torch::stable::new_zeros(x, {x.size(1)}, dtype); }

std::optional<Tensor> checked_channels(const std::optional<Tensor>& t, const Tensor& x, const char* name) {
    if (!t.has_value()) return t;
    STD_TORCH_CHECK(t->scalar_type() == x.scalar_type(), name, ": expected the dtype of x");
    STD_TORCH_CHECK(t->dim() == 1 && t->size(0) == x.size(1), name, ": expected one value per channel");
    return torch::stable::contiguous(*t);
}

std::tuple<Tensor, Tensor, Tensor> batch_norm_train(const Tensor& x_any,               // [N, C, H, W]
                                                    std::optional<Tensor> weight_any,  // [C]
                                                    std::optional<Tensor> bias_any,    // [C]
                                                    double eps) {
    check_images(x_any, "x");
    const std::optional<Tensor> weight = checked_channels(weight_any, x_any, "weight");
    const std::optional<Tensor> bias = checked_channels(bias_any, x_any, "bias");
    const MemoryFormat format = format_of(x_any);
    const Tensor x = torch::stable::contiguous(x_any, format);
    Tensor y = empty_images(x, format);
    Tensor mean = channel_tensor(x, ScalarType::Double), invstd = channel_tensor(x, ScalarType::Double);
    if (x.numel() == 0) return {y, mean, invstd};
    const Batch batch(x, format);
    if (x.scalar_type() == ScalarType::Float)
        forward<float>(y, mean, invstd, x, weight, bias, eps, batch);
    else
        forward<double>(y, mean, invstd, x, weight, bias, eps, batch);
    return {y, mean, invstd};
}

std::tuple<Tensor, Tensor, Tensor> batch_norm_train_backward(const Tensor& grad_any,            // [N, C, H, W]
                                                             const Tensor& x_any,               // [N, C, H, W]
                                                             std::optional<Tensor> weight_any,  // [C]
                                                             const Tensor& mean,                // [C] float64
                                                             const Tensor& invstd) {            // [C] float64
    check_images(x_any, "x");
    check_images(grad_any, "grad");
    STD_TORCH_CHECK(grad_any.scalar_type() == x_any.scalar_type(), "grad: expected the dtype of x");
    STD_TORCH_CHECK(grad_any.sizes() == x_any.sizes(), "grad: expected the shape of x");
    const std::optional<Tensor> weight = checked_channels(weight_any, x_any, "weight");
    const MemoryFormat format = format_of(x_any);
    const Tensor x = torch::stable::contiguous(x_any, format), grad = torch::stable::contiguous(grad_any, format);
    Tensor grad_x = empty_images(x, format);
    Tensor grad_weight = channel_tensor(x, x.scalar_type()), grad_bias = channel_tensor(x, x.scalar_type());
    if (x.numel() == 0) return {grad_x, grad_weight, grad_bias};
    STD_TORCH_CHECK(mean.is_contiguous() && mean.numel() == x.size(1), "mean: expected one value per channel");
    STD_TORCH_CHECK(invstd.is_contiguous() && invstd.numel() == x.size(1), "invstd: expected one value per channel");
    const Batch batch(x, format);
    if (x.scalar_type() == ScalarType::Float)
        backward<float>(grad_x, grad_weight, grad_bias, grad, x, weight, mean, invstd, batch);
    else
        backward<double>(grad_x, grad_weight, grad_bias, grad, x, weight, mean, invstd, batch);
    return {grad_x, grad_weight, grad_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(zcpipe, CPU, m) {
    m.impl("batch_norm_train", TORCH_BOX(&batch_norm_train));
    m.impl("batch_norm_train_backward", TORCH_BOX(&batch_norm_train_backward));
}
