#include "cpu/channels.h"

#include <algorithm>

#include "common/simd.h"

namespace zcpipe {
namespace {

// The loops run over rows of at most kRow elements in memory: as many pixels of few channels as fit, or a strip of many
// channels of one pixel. Lane l of a row belongs to channel l % channels, so that what is needed per channel is spread
// over a row once. Whole rows take the loops with constant bounds, whose sums stay in registers.
constexpr int64_t kRow = 64;
constexpr int64_t kRowsAtOnce = 32;  // are added up in type T

// Calls f(offset in the image, first channel, lanes, rows, row stride) for every strip of rows of one width.
template <typename F>
ZCPIPE_INLINE void for_strips(int64_t pixels, int64_t channels, const F& f) {
    if (channels > kRow) {
        for (int64_t c = 0; c < channels; c += kRow) f(c, c, std::min(kRow, channels - c), pixels, channels);
        return;
    }
    const int64_t group = kRow / channels, width = group * channels, rows = pixels / group;
    f(0, 0, width, rows, width);
    if (pixels % group != 0) f(rows * width, 0, pixels % group * channels, 1, width);
}

template <typename T>
ZCPIPE_INLINE void spread(T* lanes, const T* values, int64_t first_channel, int64_t width, int64_t channels) {
    for (int64_t l = 0; l < width; ++l) lanes[l] = values[first_channel + l % channels];
}

// Adds two sums per lane over the rows: f(l, place, a, b) adds to a and b what the element of lane l at `place` gives.
template <typename T, typename F>
ZCPIPE_INLINE void sum_rows(double* first, double* second, int64_t lanes, int64_t rows, int64_t stride, const F& f) {
    for (int64_t r = 0; r < rows; r += kRowsAtOnce) {
        T a[kRow] = {}, b[kRow] = {};
        const int64_t last = std::min(rows, r + kRowsAtOnce);
        for (int64_t i = r; i < last; ++i) {
#pragma omp simd
            for (int64_t l = 0; l < lanes; ++l) f(l, i * stride + l, a[l], b[l]);
        }
#pragma omp simd
        for (int64_t l = 0; l < lanes; ++l) {
            first[l] += double(a[l]);
            second[l] += double(b[l]);
        }
    }
}

template <typename T, typename F>
ZCPIPE_INLINE void sum_strip(double* first, double* second, int64_t first_channel, int64_t channels, int64_t lanes,
                             int64_t rows, int64_t stride, const F& f) {
    double a[kRow] = {}, b[kRow] = {};
    if (lanes == kRow)
        sum_rows<T>(a, b, kRow, rows, stride, f);
    else
        sum_rows<T>(a, b, lanes, rows, stride, f);
    for (int64_t l = 0; l < lanes; ++l) {
        first[first_channel + l % channels] += a[l];
        second[first_channel + l % channels] += b[l];
    }
}

template <typename T>
ZCPIPE_INLINE void moments(double* sums, double* squares, const T* x, const T* centre, int64_t pixels,
                           int64_t channels) {
    for_strips(pixels, channels,
               [&](int64_t at, int64_t c, int64_t lanes, int64_t rows, int64_t stride) ZCPIPE_INLINED {
                   T m[kRow];
                   spread(m, centre, c, lanes, channels);
                   sum_strip<T>(sums, squares, c, channels, lanes, rows, stride,
                                [&](int64_t l, int64_t i, T& a, T& b) ZCPIPE_INLINED {
                                    const T d = x[at + i] - m[l];
                                    a += d;
                                    b += d * d;
                                });
               });
}

template <bool kRelu, typename T>
ZCPIPE_INLINE void gradients(double* sums, double* products, const T* g, const T* x, Affine<T> norm, int64_t pixels,
                             int64_t channels) {
    for_strips(pixels, channels,
               [&](int64_t at, int64_t c, int64_t lanes, int64_t rows, int64_t stride) ZCPIPE_INLINED {
                   T m[kRow], s[kRow], t[kRow];
                   spread(m, norm.centre, c, lanes, channels);
                   spread(s, norm.scale, c, lanes, channels);
                   spread(t, norm.shift, c, lanes, channels);
                   sum_strip<T>(sums, products, c, channels, lanes, rows, stride,
                                [&](int64_t l, int64_t i, T& a, T& b) ZCPIPE_INLINED {
                                    const T d = x[at + i] - m[l];
                                    const T h = !kRelu || d * s[l] + t[l] > T(0) ? g[at + i] : T(0);
                                    a += h;
                                    b += h * d;
                                });
               });
}

// Calls f(lane, place) for every element of a strip.
template <typename F>
ZCPIPE_INLINE void for_elements(int64_t at, int64_t lanes, int64_t rows, int64_t stride, const F& f) {
    if (lanes == kRow) {
        for (int64_t i = 0; i < rows; ++i) {
#pragma omp simd
            for (int64_t l = 0; l < kRow; ++l) f(l, at + i * stride + l);
        }
    } else {
        for (int64_t i = 0; i < rows; ++i) {
#pragma omp simd
            for (int64_t l = 0; l < lanes; ++l) f(l, at + i * stride + l);
        }
    }
}

template <bool kRelu, bool kTotal, typename T>
ZCPIPE_INLINE void map(T* out, const T* x, const T* total, Affine<T> norm, int64_t pixels, int64_t channels) {
    for_strips(pixels, channels,
               [&](int64_t at, int64_t c, int64_t lanes, int64_t rows, int64_t stride) ZCPIPE_INLINED {
                   T m[kRow], s[kRow], t[kRow];
                   spread(m, norm.centre, c, lanes, channels);
                   spread(s, norm.scale, c, lanes, channels);
                   spread(t, norm.shift, c, lanes, channels);
                   for_elements(at, lanes, rows, stride, [&](int64_t l, int64_t i) ZCPIPE_INLINED {
                       const T y = (x[i] - m[l]) * s[l] + t[l];
                       const T z = kRelu && y < T(0) ? T(0) : y;  // keeps NaN
                       out[i] = kTotal ? total[i] + z : z;
                   });
               });
}

template <bool kRelu, bool kTotal, typename T>
ZCPIPE_INLINE void map_gradient(T* out, const T* g, const T* x, const T* total, GradientMap<T> gradient, Affine<T> norm,
                                int64_t pixels, int64_t channels) {
    for_strips(pixels, channels,
               [&](int64_t at, int64_t c, int64_t lanes, int64_t rows, int64_t stride) ZCPIPE_INLINED {
                   T m[kRow], s[kRow], t[kRow], gain[kRow], scale[kRow], shift[kRow];
                   spread(m, norm.centre, c, lanes, channels);
                   spread(s, norm.scale, c, lanes, channels);
                   spread(t, norm.shift, c, lanes, channels);
                   spread(gain, gradient.gain, c, lanes, channels);
                   spread(scale, gradient.scale, c, lanes, channels);
                   spread(shift, gradient.shift, c, lanes, channels);
                   for_elements(at, lanes, rows, stride, [&](int64_t l, int64_t i) ZCPIPE_INLINED {
                       const T d = x[i] - m[l];
                       const T h = !kRelu || d * s[l] + t[l] > T(0) ? g[i] : T(0);
                       const T y = h * gain[l] + (d * scale[l] + shift[l]);
                       out[i] = kTotal ? total[i] + y : y;
                   });
               });
}

template <bool kRelu>
ZCPIPE_INLINE void map_gradient_to_blocks(Blocks out, const float* g, const float* x, GradientMap<float> map,
                                          Affine<float> norm, int64_t rows, int64_t columns, int64_t channels) {
    constexpr int64_t kBlock = 16;
    for (int64_t c = 0; c < channels; c += kBlock, out.data += out.block_stride) {
        const int64_t n = std::min(kBlock, channels - c);
        // Copies, which nothing written can change: they stay in registers.
        float m[kBlock] = {}, s[kBlock] = {}, t[kBlock] = {}, gain[kBlock] = {}, scale[kBlock] = {}, shift[kBlock] = {};
        std::copy_n(norm.centre + c, n, m);
        std::copy_n(norm.scale + c, n, s);
        std::copy_n(norm.shift + c, n, t);
        std::copy_n(map.gain + c, n, gain);
        std::copy_n(map.scale + c, n, scale);
        std::copy_n(map.shift + c, n, shift);
        const auto value = [&](int64_t i, int64_t l) ZCPIPE_INLINED {
            const float d = x[i + l] - m[l];
            const float h = !kRelu || d * s[l] + t[l] > 0 ? g[i + l] : 0.0f;
            return h * gain[l] + (d * scale[l] + shift[l]);
        };
        for (int64_t row = 0; row < rows; ++row) {
            float* to = out.data + row * out.row_stride;
            const int64_t first = row * columns * channels + c;
            if (n == kBlock) {
                for (int64_t p = 0; p < columns; ++p) {
#pragma omp simd
                    for (int64_t l = 0; l < kBlock; ++l) to[p * kBlock + l] = value(first + p * channels, l);
                }
            } else {
                for (int64_t p = 0; p < columns; ++p)
                    for (int64_t l = 0; l < n; ++l) to[p * kBlock + l] = value(first + p * channels, l);
            }
        }
    }
}

ZCPIPE_CLONES void map_gradient_to_blocks_of(Blocks out, const float* g, const float* x, GradientMap<float> map,
                                             Affine<float> norm, bool relu, int64_t rows, int64_t columns,
                                             int64_t channels) {
    if (relu)
        map_gradient_to_blocks<true>(out, g, x, map, norm, rows, columns, channels);
    else
        map_gradient_to_blocks<false>(out, g, x, map, norm, rows, columns, channels);
}

ZCPIPE_CLONES void map_tangent_gradient_to_blocks(TangentBlocks out, TangentImages from, TangentGradientMap map,
                                                  int64_t rows, int64_t columns, int64_t channels) {
    constexpr int64_t kBlock = 16;
    for (int64_t c = 0; c < channels; c += kBlock) {
        const int64_t n = std::min(kBlock, channels - c);
        float m[kBlock] = {}, gain[kBlock] = {}, cross[kBlock] = {}, tangent[kBlock] = {}, scale[kBlock] = {},
              shift[kBlock] = {}, scale_dot[kBlock] = {}, shift_dot[kBlock] = {};
        std::copy_n(map.centre + c, n, m);
        std::copy_n(map.gain + c, n, gain);
        std::copy_n(map.cross + c, n, cross);
        std::copy_n(map.tangent + c, n, tangent);
        std::copy_n(map.scale + c, n, scale);
        std::copy_n(map.shift + c, n, shift);
        std::copy_n(map.scale_dot + c, n, scale_dot);
        std::copy_n(map.shift_dot + c, n, shift_dot);
        for (int64_t row = 0; row < rows; ++row) {
            float* to = out.gradient.data + row * out.gradient.row_stride;
            float* to_dot = out.gradient_dot.data + row * out.gradient_dot.row_stride;
            float* again = out.again.data + row * out.again.row_stride;
            const auto pixel = [&](int64_t p, int64_t l) ZCPIPE_INLINED {
                const int64_t i = (row * columns + p) * channels + c + l;
                const float d = from.x[i] - m[l], g_dot = from.g_dot[i];
                to[p * kBlock + l] =
                    from.g[i] * gain[l] + g_dot * cross[l] + (from.x_dot[i] * tangent[l] + (d * scale[l] + shift[l]));
                const float h = g_dot * gain[l] + (d * scale_dot[l] + shift_dot[l]);
                to_dot[p * kBlock + l] = h;
                again[p * kBlock + l] = h;
            };
            if (n == kBlock) {
                for (int64_t p = 0; p < columns; ++p) {
#pragma omp simd
                    for (int64_t l = 0; l < kBlock; ++l) pixel(p, l);
                }
            } else {
                for (int64_t p = 0; p < columns; ++p)
                    for (int64_t l = 0; l < n; ++l) pixel(p, l);
            }
        }
        out.gradient.data += out.gradient.block_stride;
        out.gradient_dot.data += out.gradient_dot.block_stride;
        out.again.data += out.again.block_stride;
    }
}

template <bool kAdd>
ZCPIPE_INLINE double products(float* out, const float* values, const float* x, int64_t count) {
    double sums[kRow] = {};
    for (int64_t first = 0; first < count; first += kRow * kRowsAtOnce) {
        const int64_t last = std::min(count, first + kRow * kRowsAtOnce);
        float part[kRow] = {};
        int64_t i = first;
        for (; i + kRow <= last; i += kRow) {
#pragma omp simd
            for (int64_t l = 0; l < kRow; ++l) {
                part[l] += values[i + l] * x[i + l];
                if (kAdd) out[i + l] += values[i + l];
            }
        }
        for (int64_t l = 0; i + l < last; ++l) {
            part[l] += values[i + l] * x[i + l];
            if (kAdd) out[i + l] += values[i + l];
        }
#pragma omp simd
        for (int64_t l = 0; l < kRow; ++l) sums[l] += double(part[l]);
    }
    double sum = 0;
    for (const double s : sums) sum += s;
    return sum;
}

ZCPIPE_CLONES double products_of(float* out, const float* values, const float* x, int64_t count) {
    return out == nullptr ? products<false>(out, values, x, count) : products<true>(out, values, x, count);
}

ZCPIPE_CLONES void block_products(double* sums, Blocks a, const float* b, int64_t rows, int64_t columns,
                                  int64_t channels) {
    constexpr int64_t kBlock = 16;
    for (int64_t c = 0; c < channels; c += kBlock, a.data += a.block_stride) {
        const int64_t n = std::min(kBlock, channels - c);
        double even[kBlock] = {}, odd[kBlock] = {};  // pixels in turn, which hides the latency of an addition
        for (int64_t row = 0; row < rows; ++row) {
            const float *left = a.data + row * a.row_stride, *right = b + row * columns * channels + c;
            int64_t p = 0;
            if (n == kBlock) {
                for (; p + 2 <= columns; p += 2) {
#pragma omp simd
                    for (int64_t l = 0; l < kBlock; ++l) {
                        even[l] += double(left[p * kBlock + l]) * double(right[p * channels + l]);
                        odd[l] += double(left[p * kBlock + kBlock + l]) * double(right[p * channels + channels + l]);
                    }
                }
            }
            for (; p < columns; ++p)
                for (int64_t l = 0; l < n; ++l)
                    even[l] += double(left[p * kBlock + l]) * double(right[p * channels + l]);
        }
        for (int64_t l = 0; l < n; ++l) sums[c + l] = even[l] + odd[l];
    }
}

ZCPIPE_CLONES void mask(float* out, const float* x, int64_t count) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) out[i] = x[i] > 0 ? out[i] : 0.0f;
}

ZCPIPE_CLONES void add(float* out, const float* values, const float* x, int64_t count) {
    if (x == nullptr) {
#pragma omp simd
        for (int64_t i = 0; i < count; ++i) out[i] += values[i];
    } else {
#pragma omp simd
        for (int64_t i = 0; i < count; ++i) out[i] += x[i] > 0 ? values[i] : 0.0f;
    }
}

#define ZCPIPE_CHANNEL_KERNELS(T)                                                                                      \
    ZCPIPE_CLONES void moments_of(double* sums, double* squares, const T* x, const T* centre, int64_t pixels,          \
                                  int64_t channels) {                                                                  \
        moments(sums, squares, x, centre, pixels, channels);                                                           \
    }                                                                                                                  \
    ZCPIPE_CLONES void gradients_of(double* sums, double* products, const T* g, const T* x, Affine<T> norm, bool relu, \
                                    int64_t pixels, int64_t channels) {                                                \
        if (relu)                                                                                                      \
            gradients<true>(sums, products, g, x, norm, pixels, channels);                                             \
        else                                                                                                           \
            gradients<false>(sums, products, g, x, norm, pixels, channels);                                            \
    }                                                                                                                  \
    ZCPIPE_CLONES void map_of(T* out, const T* x, const T* total, Affine<T> norm, bool relu, int64_t pixels,           \
                              int64_t channels) {                                                                      \
        if (relu)                                                                                                      \
            total == nullptr ? map<true, false>(out, x, total, norm, pixels, channels)                                 \
                             : map<true, true>(out, x, total, norm, pixels, channels);                                 \
        else                                                                                                           \
            total == nullptr ? map<false, false>(out, x, total, norm, pixels, channels)                                \
                             : map<false, true>(out, x, total, norm, pixels, channels);                                \
    }                                                                                                                  \
    ZCPIPE_CLONES void map_gradient_of(T* out, const T* g, const T* x, const T* total, GradientMap<T> map,             \
                                       Affine<T> norm, bool relu, int64_t pixels, int64_t channels) {                  \
        if (relu)                                                                                                      \
            total == nullptr ? map_gradient<true, false>(out, g, x, total, map, norm, pixels, channels)                \
                             : map_gradient<true, true>(out, g, x, total, map, norm, pixels, channels);                \
        else                                                                                                           \
            total == nullptr ? map_gradient<false, false>(out, g, x, total, map, norm, pixels, channels)               \
                             : map_gradient<false, true>(out, g, x, total, map, norm, pixels, channels);               \
    }

ZCPIPE_CHANNEL_KERNELS(float)
ZCPIPE_CHANNEL_KERNELS(double)

}  // namespace

template <typename T>
void add_moments(double* sums, double* squares, const T* x, const T* centre, int64_t pixels, int64_t channels) {
    moments_of(sums, squares, x, centre, pixels, channels);
}

template <typename T>
void add_gradients(double* sums, double* products, const T* g, const T* x, Affine<T> norm, bool relu, int64_t pixels,
                   int64_t channels) {
    gradients_of(sums, products, g, x, norm, relu, pixels, channels);
}

template <typename T>
void apply(T* out, const T* x, const T* total, Affine<T> norm, bool relu, int64_t pixels, int64_t channels) {
    map_of(out, x, total, norm, relu, pixels, channels);
}

template <typename T>
void apply_gradient(T* out, const T* g, const T* x, const T* total, GradientMap<T> map, Affine<T> norm, bool relu,
                    int64_t pixels, int64_t channels) {
    map_gradient_of(out, g, x, total, map, norm, relu, pixels, channels);
}

void apply_gradient_to_blocks(Blocks out, const float* g, const float* x, GradientMap<float> map, Affine<float> norm,
                              bool relu, int64_t rows, int64_t columns, int64_t channels) {
    map_gradient_to_blocks_of(out, g, x, map, norm, relu, rows, columns, channels);
}

void apply_tangent_gradient_to_blocks(TangentBlocks out, TangentImages from, TangentGradientMap map, int64_t rows,
                                      int64_t columns, int64_t channels) {
    map_tangent_gradient_to_blocks(out, from, map, rows, columns, channels);
}

double sum_products(float* out, const float* values, const float* x, int64_t count) {
    return products_of(out, values, x, count);
}

void sum_block_products(double* sums, Blocks a, const float* b, int64_t rows, int64_t columns, int64_t channels) {
    block_products(sums, a, b, rows, columns, channels);
}

void mask_negative(float* out, const float* x, int64_t count) { mask(out, x, count); }

void add_positive(float* out, const float* values, const float* x, int64_t count) { add(out, values, x, count); }

#define ZCPIPE_INSTANTIATE(T)                                                                             \
    template void add_moments(double*, double*, const T*, const T*, int64_t, int64_t);                    \
    template void add_gradients(double*, double*, const T*, const T*, Affine<T>, bool, int64_t, int64_t); \
    template void apply(T*, const T*, const T*, Affine<T>, bool, int64_t, int64_t);                       \
    template void apply_gradient(T*, const T*, const T*, const T*, GradientMap<T>, Affine<T>, bool, int64_t, int64_t);

ZCPIPE_INSTANTIATE(float)
ZCPIPE_INSTANTIATE(double)

}  // namespace zcpipe
