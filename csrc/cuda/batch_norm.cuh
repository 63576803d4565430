// Batch normalisation with the batch's own statistics, forward and backward. Free of torch.
//
// Three launches each: `sums` adds two numbers per channel over pieces of the batch, `fold` adds up the pieces and
// makes from them what a channel's elements are multiplied by and shifted by, `apply` does that. All sums are in double
// precision and in an order that depends on the shape alone. The expressions are those of cpu/batch_norm.cpp.
#pragma once

#include <algorithm>

#include "cuda/images.h"
#include "cuda/launch.h"
#include "cuda/vector.h"

namespace zcpipe::gpu {

enum BatchNormEvent { kSumVectors, kApplyVectors };

// How launches are cut. Tests, whose batches are small, take smaller pieces.
struct NormTuning {
    int64_t grain = 2048;       // elements: less is not worth another block of `sums`
    int64_t most_blocks = 512;  // of `sums`: more would only lengthen `fold`
    int threads = 256;          // of a block, a power of two from 32 on
};

// (x - centre) scale + shift. The part of the mean that T cannot hold is in the shift.
template <typename T>
struct Affine {
    T centre, scale, shift;

    __device__ __forceinline__ T operator()(T x) const { return (x - centre) * scale + shift; }
};

template <typename T>
__device__ __forceinline__ Affine<T> affine_of(double mean, double scale, double shift) {
    const T centre = T(mean);
    return {centre, T(scale), T(shift - (mean - double(centre)) * scale)};
}

// What a channel's normalisation depends on; weight and bias may be null.
template <typename T>
struct Channels {
    const double *mean, *invstd;
    const T *weight, *bias;

    __device__ __forceinline__ double gain(uint32_t c) const {
        return (weight == nullptr ? 1.0 : double(weight[c])) * invstd[c];
    }
    __device__ __forceinline__ Affine<T> normalise(uint32_t c) const {
        return affine_of<T>(mean[c], gain(c), bias == nullptr ? 0.0 : double(bias[c]));
    }
};

// The forward's two numbers: sums of x - pivot and of its square. The pivot is the channel's first element, whose
// squared distance from the mean is at most (number of elements) variances: nothing is lost.
template <typename T>
struct Moments {
    const T* x;
    uint32_t next_channel;  // from one channel's first element to the next one's

    struct Channel {
        double pivot;
    };
    __device__ __forceinline__ Channel channel(uint32_t c) const { return {double(x[size_t{c} * next_channel])}; }

    template <int kSize>
    using Unit = Vector<T, kSize>;

    template <int kSize>
    __device__ __forceinline__ Unit<kSize> unit(size_t at) const {
        return load<kSize>(x + at);
    }

    template <int kSize>
    __device__ __forceinline__ void add(double* sums, double* products, const Unit<kSize>& v, const Channel* channels,
                                        int step) const {
        ZCPIPE_UNROLL
        for (int k = 0; k < kSize; ++k) {
            const double a = double(v.data[k]) - channels[k * step].pivot;
            sums[k * step] += a;
            products[k * step] += a * a;
        }
    }
};

// The backward's: sums of g and of g (x - mean), where the ReLU lets g pass.
template <typename T>
struct Gradients {
    const T *g, *x;
    Channels<T> of;
    bool relu;

    struct Channel {
        double mean;
        Affine<T> normalise;
    };
    __device__ __forceinline__ Channel channel(uint32_t c) const { return {of.mean[c], of.normalise(c)}; }

    template <int kSize>
    struct Unit {
        Vector<T, kSize> x, g;
    };

    template <int kSize>
    __device__ __forceinline__ Unit<kSize> unit(size_t at) const {
        return {load<kSize>(x + at), load<kSize>(g + at)};
    }

    template <int kSize>
    __device__ __forceinline__ void add(double* sums, double* products, const Unit<kSize>& v, const Channel* channels,
                                        int step) const {
        ZCPIPE_UNROLL
        for (int k = 0; k < kSize; ++k) {
            const Channel& channel = channels[k * step];
            const bool stops = relu && channel.normalise(v.x.data[k]) <= T(0);
            const double a = stops ? 0.0 : double(v.g.data[k]);
            sums[k * step] += a;
            products[k * step] += a * (double(v.x.data[k]) - channel.mean);
        }
    }
};

struct NormShape {
    uint32_t channels, pixels, samples;
    uint32_t columns;  // of vectors: along the channels of a pixel in NHWC, along the pixels of a channel in NCHW
};

// Four vectors are on their way at a time. Blocks are columns of `threads.x` channel vectors (one channel in NCHW) by
// pieces of the batch; partials[s][c][piece] is the sum s of one.
template <bool kChannelsLast, int kSize, typename Terms>
__global__ void batch_norm_sums_kernel(double* partials, Terms terms, NormShape g) {
    constexpr int kChannels = kChannelsLast ? kSize : 1, kStep = kChannelsLast ? 1 : 0;
    const uint32_t column = blockIdx.x * blockDim.x + threadIdx.x, c = column * kChannels;
    const bool inside = c < g.channels;
    double sums[kChannels] = {}, products[kChannels] = {};
    if (inside) {
        typename Terms::Channel channels[kChannels];
        ZCPIPE_UNROLL
        for (int k = 0; k < kChannels; ++k) channels[k] = terms.channel(c + k);
        const uint32_t units = kChannelsLast ? g.samples * g.pixels : g.samples * g.columns;
        const auto unit = [&](uint32_t u) {
            const size_t at = kChannelsLast
                                  ? size_t{u} * g.channels + c
                                  : (size_t{u / g.columns} * g.channels + c) * g.pixels + u % g.columns * kSize;
            return terms.template unit<kSize>(at);
        };
        const auto add = [&](const auto& unit) {
            terms.template add<kSize>(sums, products, unit, channels, kStep);
            count_event(kSumVectors);
        };
        const uint32_t stride = gridDim.y * blockDim.y;
        uint32_t u = blockIdx.y * blockDim.y + threadIdx.y;
        for (; u + 3 * stride < units; u += 4 * stride) {
            const auto first = unit(u), second = unit(u + stride);
            const auto third = unit(u + 2 * stride), fourth = unit(u + 3 * stride);
            add(first);
            add(second);
            add(third);
            add(fourth);
        }
        for (; u < units; u += stride) add(unit(u));
    }

    double* const shared = shared_memory<double>();  // [2, kChannels, threads]
    const uint32_t threads = blockDim.x * blockDim.y, me = threadIdx.y * blockDim.x + threadIdx.x;
    ZCPIPE_UNROLL
    for (int k = 0; k < kChannels; ++k) {
        shared[k * threads + me] = sums[k];
        shared[(kChannels + k) * threads + me] = products[k];
    }
    for (uint32_t half = blockDim.y / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.y >= half) continue;
        ZCPIPE_UNROLL
        for (int k = 0; k < 2 * kChannels; ++k)
            shared[k * threads + me] += shared[k * threads + me + half * blockDim.x];
    }
    if (threadIdx.y > 0 || !inside) return;
    ZCPIPE_UNROLL
    for (int k = 0; k < kChannels; ++k) {
        partials[size_t{c + k} * gridDim.y + blockIdx.y] = shared[k * threads + me];
        partials[size_t{g.channels + c + k} * gridDim.y + blockIdx.y] = shared[(kChannels + k) * threads + me];
    }
}

// What `fold` makes of the forward's sums.
template <typename T>
struct FinishForward {
    double *mean, *invstd;
    T* affine;  // [3, C]: centre, scale, shift
    Moments<T> moments;
    const T *weight, *bias;
    double count, eps;

    __device__ __forceinline__ void operator()(uint32_t c, uint32_t channels, double sum, double square) const {
        const double offset = sum / count, spread = square / count - offset * offset;
        mean[c] = moments.channel(c).pivot + offset;
        invstd[c] = 1.0 / sqrt((spread < 0.0 ? 0.0 : spread) + eps);
        const Affine<T> a = Channels<T>{mean, invstd, weight, bias}.normalise(c);
        affine[c] = a.centre;
        affine[channels + c] = a.scale;
        affine[2 * channels + c] = a.shift;
    }
};

// And of the backward's: the channel's gradients, and grad_x = g gain + (x - centre) scale + shift.
template <typename T>
struct FinishBackward {
    T *grad_weight, *grad_bias;
    T* affine;  // [6, C]: centre, scale, shift, the normalisation's scale and shift, gain
    Channels<T> of;
    double count;

    __device__ __forceinline__ void operator()(uint32_t c, uint32_t channels, double sum, double product) const {
        const double invstd = of.invstd[c], gain = of.gain(c);
        grad_weight[c] = T(product * invstd);
        grad_bias[c] = T(sum);
        const Affine<T> normalise = of.normalise(c);
        const Affine<T> a =
            affine_of<T>(of.mean[c], -gain * (invstd * invstd) * (product / count), -gain * (sum / count));
        const T values[6] = {a.centre, a.scale, a.shift, normalise.scale, normalise.shift, T(gain)};
        ZCPIPE_UNROLL
        for (int k = 0; k < 6; ++k) affine[k * channels + c] = values[k];
    }
};

// A warp for each channel.
template <typename Finish>
__global__ void batch_norm_fold_kernel(const double* partials, Finish finish, uint32_t channels, uint32_t pieces) {
    const uint32_t c = blockIdx.x * (blockDim.x / kWarp) + threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    if (c >= channels) return;  // the whole warp
    double sum = 0, product = 0;
    const double *const sums = partials + size_t{c} * pieces, *const products = sums + size_t{channels} * pieces;
    uint32_t i = lane;
    for (; i + 3 * kWarp < pieces; i += 4 * kWarp) {
        double parts[8];
        ZCPIPE_UNROLL
        for (uint32_t k = 0; k < 4; ++k) {
            parts[k] = sums[i + k * kWarp];
            parts[4 + k] = products[i + k * kWarp];
        }
        sum += parts[0] + parts[1] + parts[2] + parts[3];
        product += parts[4] + parts[5] + parts[6] + parts[7];
    }
    for (; i < pieces; i += kWarp) {
        sum += sums[i];
        product += products[i];
    }
    for (uint32_t half = kWarp / 2; half > 0; half /= 2) {
        sum += __shfl_down_sync(kAllLanes, sum, half);
        product += __shfl_down_sync(kAllLanes, product, half);
    }
    if (lane == 0) finish(c, channels, sum, product);
}

// A channel's constants as `apply` reads them: a vector of channels in NHWC, one channel for a vector in NCHW.
template <bool kChannelsLast, int kSize, typename T>
struct Constant {
    static constexpr int kChannels = kChannelsLast ? kSize : 1;
    Vector<T, kChannels> values;

    __device__ __forceinline__ Constant(const T* from, uint32_t c) : values(load<kChannels>(from + c)) {}
    __device__ __forceinline__ T operator[](int k) const { return values.data[kChannelsLast ? k : 0]; }
};

template <bool kChannelsLast>
__device__ __forceinline__ uint32_t channel_of(uint32_t vector, int size, const NormShape& g) {
    return kChannelsLast ? vector % g.columns * uint32_t(size) : vector / g.columns % g.channels;
}

// y = [total +] [ReLU] normalised x; total may be null.
template <bool kChannelsLast, int kSize, typename T>
__global__ void batch_norm_apply_kernel(T* y, const T* x, const T* total, const T* affine, bool relu, NormShape g,
                                        uint32_t vectors) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= vectors) return;
    using Values = Constant<kChannelsLast, kSize, T>;
    const uint32_t c = channel_of<kChannelsLast>(i, kSize, g);
    const Values centre(affine, c), scale(affine + g.channels, c), shift(affine + 2 * g.channels, c);
    const size_t at = size_t{i} * kSize;
    Vector<T, kSize> v = load<kSize>(x + at), sum{};
    if (total != nullptr) sum = load<kSize>(total + at);
    ZCPIPE_UNROLL
    for (int k = 0; k < kSize; ++k) {
        T value = Affine<T>{centre[k], scale[k], shift[k]}(v.data[k]);
        if (relu && value < T(0)) value = T(0);  // NaN stays
        v.data[k] = total == nullptr ? value : sum.data[k] + value;
    }
    store(y + at, v);
    count_event(kApplyVectors);
}

template <bool kChannelsLast, int kSize, typename T>
__global__ void batch_norm_apply_gradient_kernel(T* grad_x, const T* grad, const T* x, const T* affine, bool relu,
                                                 NormShape g, uint32_t vectors) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= vectors) return;
    using Values = Constant<kChannelsLast, kSize, T>;
    const uint32_t c = channel_of<kChannelsLast>(i, kSize, g), n = g.channels;
    const Values centre(affine, c), scale(affine + n, c), shift(affine + 2 * n, c);
    const Values normal_scale(affine + 3 * n, c), normal_shift(affine + 4 * n, c), gain(affine + 5 * n, c);
    const size_t at = size_t{i} * kSize;
    const Vector<T, kSize> v = load<kSize>(x + at);
    Vector<T, kSize> gradient = load<kSize>(grad + at);
    ZCPIPE_UNROLL
    for (int k = 0; k < kSize; ++k) {
        const bool stops = relu && Affine<T>{centre[k], normal_scale[k], normal_shift[k]}(v.data[k]) <= T(0);
        const T passed = stops ? T(0) : gradient.data[k];
        gradient.data[k] = passed * gain[k] + Affine<T>{centre[k], scale[k], shift[k]}(v.data[k]);
    }
    store(grad_x + at, gradient);
    count_event(kApplyVectors);
}

// How the launches divide a batch.
struct NormPlan {
    NormShape shape;
    bool channels_last, wide;
    dim3 sums_grid, sums_block;
    int threads;
    uint32_t vectors;
    double count;

    template <typename T, typename... Pointers>
    static NormPlan of(const Images& g, const NormTuning& tuning, const T* x, const Pointers*... others) {
        const bool wide = vectorises(g.channels_last ? g.channels : g.pixels(), x, others...);
        const int64_t size = wide ? kWidest<T> : 1, columns = (g.channels_last ? g.channels : g.pixels()) / size;
        uint32_t across = 1;  // threads side by side over channels
        while (g.channels_last && across < kWarp && across < columns) across *= 2;
        const int64_t tiles = g.channels_last ? (columns + across - 1) / across : g.channels;
        const int64_t wanted = std::min(g.numel() / tuning.grain / tiles, tuning.most_blocks / tiles);
        NormPlan plan = {};
        plan.shape = {uint32_t(g.channels), uint32_t(g.pixels()), uint32_t(g.samples), uint32_t(columns)};
        plan.channels_last = g.channels_last;
        plan.wide = wide;
        plan.sums_grid = dim3(blocks_for(tiles, 1), unsigned(std::max<int64_t>(wanted, 1)));
        plan.sums_block = dim3(across, unsigned(tuning.threads) / across);
        plan.threads = tuning.threads;
        blocks_for(g.numel() / size, 1);  // refuses what 32 bits do not count
        plan.vectors = uint32_t(g.numel() / size);
        plan.count = double(g.samples * g.pixels());
        return plan;
    }

    uint32_t pieces() const { return sums_grid.y; }
    int64_t partials() const { return int64_t{2} * shape.channels * pieces(); }
};

// Doubles that a call needs beside its results, whatever the pointers' alignment.
inline int64_t batch_norm_scratch(const Images& g, const NormTuning& tuning = {}) {
    return 2 * g.channels * std::clamp<int64_t>(g.numel() / tuning.grain, 1, tuning.most_blocks) + 6 * g.channels;
}

// Calls f<kChannelsLast, kSize>() for the plan's layout and width.
template <typename T, typename F>
void for_layout(const NormPlan& plan, const F& f) {
    if (plan.channels_last)
        plan.wide ? f.template operator()<true, kWidest<T>>() : f.template operator()<true, 1>();
    else
        plan.wide ? f.template operator()<false, kWidest<T>>() : f.template operator()<false, 1>();
}

template <typename T, typename Terms, typename Finish>
void batch_norm_statistics(double* partials, const NormPlan& plan, const Terms& terms, const Finish& finish,
                           cudaStream_t stream) {
    for_layout<T>(plan, [&]<bool kChannelsLast, int kSize>() {
        const size_t shared = 2 * sizeof(double) * (kChannelsLast ? kSize : 1) * plan.threads;
        launch(batch_norm_sums_kernel<kChannelsLast, kSize, Terms>, {plan.sums_grid, plan.sums_block, shared, stream},
               partials, terms, plan.shape);
    });
    launch(batch_norm_fold_kernel<Finish>,
           {.grid = blocks_for(plan.shape.channels, plan.threads / kWarp),
            .block = plan.threads,
            .shared = 0,
            .stream = stream},
           partials, finish, plan.shape.channels, plan.pieces());
}

// weight, bias and total may be null; the batch is not empty; scratch holds batch_norm_scratch(...) doubles.
template <typename T>
void batch_norm_train(T* y, double* mean, double* invstd, double* scratch, const T* x, const T* weight, const T* bias,
                      const T* total, double eps, bool relu, const Images& g, cudaStream_t stream,
                      const NormTuning& tuning = {}) {
    const NormPlan plan = NormPlan::of(g, tuning, x, y, total);
    T* const affine = reinterpret_cast<T*>(scratch + plan.partials());
    const Moments<T> moments = {x, g.channels_last ? 1 : plan.shape.pixels};
    batch_norm_statistics<T>(scratch, plan, moments,
                             FinishForward<T>{mean, invstd, affine, moments, weight, bias, plan.count, eps}, stream);
    for_layout<T>(plan, [&]<bool kChannelsLast, int kSize>() {
        launch(batch_norm_apply_kernel<kChannelsLast, kSize, T>,
               {blocks_for(plan.vectors, plan.threads), plan.threads, 0, stream}, y, x, total,
               static_cast<const T*>(affine), relu, plan.shape, plan.vectors);
    });
}

template <typename T>
void batch_norm_train_backward(T* grad_x, T* grad_weight, T* grad_bias, double* scratch, const T* grad, const T* x,
                               const Channels<T>& of, bool relu, const Images& g, cudaStream_t stream,
                               const NormTuning& tuning = {}) {
    const NormPlan plan = NormPlan::of(g, tuning, x, grad, grad_x);
    T* const affine = reinterpret_cast<T*>(scratch + plan.partials());
    batch_norm_statistics<T>(scratch, plan, Gradients<T>{grad, x, of, relu},
                             FinishBackward<T>{grad_weight, grad_bias, affine, of, plan.count}, stream);
    for_layout<T>(plan, [&]<bool kChannelsLast, int kSize>() {
        launch(batch_norm_apply_gradient_kernel<kChannelsLast, kSize, T>,
               {blocks_for(plan.vectors, plan.threads), plan.threads, 0, stream}, grad_x, grad, x,
               static_cast<const T*>(affine), relu, plan.shape, plan.vectors);
    });
}

}  // namespace zcpipe::gpu
