// The arithmetic of batch normalisation between its passes over memory (cpu/channels.h). Free of torch.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "cpu/channels.h"

namespace zcpipe {

// A batch as equal images of interleaved channels: its samples in NHWC, their planes in NCHW.
struct Images {
    int64_t samples, channels, pixels;
    bool planes;

    int64_t count() const { return planes ? samples * channels : samples; }
    int64_t depth() const { return planes ? 1 : channels; }  // channels of an image
    int64_t size() const { return depth() * pixels; }
    int64_t first_channel(int64_t image) const { return planes ? image % channels : 0; }
    double values_per_channel() const { return double(samples * pixels); }
};

// Two sums for each sample and channel.
struct Sums {
    explicit Sums(const Images& i) : images(i), first(i.samples * i.channels), second(i.samples * i.channels) {}

    double* first_of(int64_t image) { return &first[image * images.depth()]; }
    double* second_of(int64_t image) { return &second[image * images.depth()]; }

    // A channel's sum over the samples, in their order.
    double total(const std::vector<double>& sums, int64_t channel) const {
        double sum = 0;
        for (int64_t n = 0; n < images.samples; ++n) sum += sums[n * images.channels + channel];
        return sum;
    }

    Images images;
    std::vector<double> first, second;
};

// The mean of each channel in the first sample: so near the batch's mean that moments about it lose nothing, since its
// squared distance from that mean is at most (number of samples) variances.
template <typename T>
std::vector<T> centre_of(const T* x, const Images& images) {
    std::vector<double> sums(images.channels), squares(images.channels);
    const std::vector<T> zero(images.channels);
    for (int64_t i = 0; i < images.count() / images.samples; ++i)
        add_moments(&sums[images.first_channel(i)], &squares[images.first_channel(i)], x + i * images.size(),
                    zero.data(), images.pixels, images.depth());
    std::vector<T> centre(images.channels);
    for (int64_t c = 0; c < images.channels; ++c) centre[c] = T(sums[c] / double(images.pixels));
    return centre;
}

// From moments about `centre` to each channel's mean and 1 / sqrt(biased variance + eps).
template <typename T>
void finish_statistics(double* mean, double* invstd, const Sums& moments, const std::vector<T>& centre, double eps) {
    const double count = moments.images.values_per_channel();
    for (int64_t c = 0; c < moments.images.channels; ++c) {
        const double offset = moments.total(moments.first, c) / count;
        const double variance = std::max(0.0, moments.total(moments.second, c) / count - offset * offset);
        mean[c] = double(centre[c]) + offset;
        invstd[c] = 1.0 / std::sqrt(variance + eps);
    }
}

// (x - mean) scale + shift per channel in type T. The part of the mean that T cannot hold goes into the shift, so that
// images far from 0 lose nothing.
template <typename T>
class Norm {
  public:
    // `weight` and `bias` may be null: 1 and 0.
    Norm(const double* mean, const double* invstd, const T* weight, const T* bias, int64_t channels)
        : centre_(channels), scale_(channels), shift_(channels) {
        for (int64_t c = 0; c < channels; ++c) {
            const double scale = (weight == nullptr ? 1.0 : double(weight[c])) * invstd[c];
            centre_[c] = T(mean[c]);
            scale_[c] = T(scale);
            shift_[c] = T((bias == nullptr ? 0.0 : double(bias[c])) - (mean[c] - double(centre_[c])) * scale);
        }
    }

    Affine<T> at(int64_t channel) const { return {&centre_[channel], &scale_[channel], &shift_[channel]}; }

  private:
    std::vector<T> centre_, scale_, shift_;
};

// The gradient of x: g gain + (x - centre) scale + shift, from the sums of g and of g (x - centre) over the batch.
template <typename T>
class NormGradient {
  public:
    // grad_weight and grad_bias receive the parameters' gradients.
    NormGradient(T* grad_weight, T* grad_bias, const double* mean, const double* invstd, const T* weight,
                 const Sums& gradients)
        : gain_(gradients.images.channels), scale_(gain_.size()), shift_(gain_.size()) {
        const double count = gradients.images.values_per_channel();
        for (size_t c = 0; c < gain_.size(); ++c) {
            // The sums are about the mean as T holds it; d is what that leaves.
            const double d = mean[c] - double(T(mean[c])), r = invstd[c];
            const double sum = gradients.total(gradients.first, int64_t(c));
            const double product = gradients.total(gradients.second, int64_t(c)) - d * sum;
            grad_weight[c] = T(product * r);
            grad_bias[c] = T(sum);
            const double gain = (weight == nullptr ? 1.0 : double(weight[c])) * r;
            const double scale = -gain * (r * r) * (product / count);
            gain_[c] = T(gain);
            scale_[c] = T(scale);
            shift_[c] = T(-gain * (sum / count) - d * scale);
        }
    }

    GradientMap<T> at(int64_t channel) const { return {&gain_[channel], &scale_[channel], &shift_[channel]}; }

  private:
    std::vector<T> gain_, scale_, shift_;
};

}  // namespace zcpipe
