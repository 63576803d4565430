// Passes over images of interleaved channels: sums per channel, and affine maps per channel. Free of torch.
//
// An image is `pixels` x `channels` elements in which a channel's values are `channels` apart: an NHWC sample, or one
// NCHW plane as an image of one channel. T is float or double.
#pragma once

#include <cstdint>

namespace zcpipe {

// (x - centre) scale + shift per channel.
template <typename T>
struct Affine {
    const T *centre, *scale, *shift;
};

// Sums of x - centre and of its square over the pixels, added to `sums` and `squares`. Few elements at a time are added
// up in type T, everything further in double precision, in an order that depends on the shape alone.
template <typename T>
void add_moments(double* sums, double* squares, const T* x, const T* centre, int64_t pixels, int64_t channels);

// Sums of g and of g (x - centre), added to `sums` and `products` in the same way. With `relu`, a gradient counts only
// where norm(x) is positive.
template <typename T>
void add_gradients(double* sums, double* products, const T* g, const T* x, Affine<T> norm, bool relu, int64_t pixels,
                   int64_t channels);

// out = norm(x), negative values as zero with `relu`, plus `total` unless that is null.
template <typename T>
void apply(T* out, const T* x, const T* total, Affine<T> norm, bool relu, int64_t pixels, int64_t channels);

// out = g gain + (x - norm.centre) scale + shift, where with `relu` g counts only where norm(x) is positive, plus
// `total` unless that is null.
template <typename T>
struct GradientMap {
    const T *gain, *scale, *shift;
};
template <typename T>
void apply_gradient(T* out, const T* g, const T* x, const T* total, GradientMap<T> map, Affine<T> norm, bool relu,
                    int64_t pixels, int64_t channels);

// The same for an image of rows and columns, into blocks of 16 channels: [row][block][column][16] with these strides.
struct Blocks {
    float* data;
    int64_t row_stride, block_stride;
};
void apply_gradient_to_blocks(Blocks out, const float* g, const float* x, GradientMap<float> map, Affine<float> norm,
                              bool relu, int64_t rows, int64_t columns, int64_t channels);

// The gradients of an image x and of its tangent: with d = x - centre,
//     gradient = g gain + g_dot cross + x_dot tangent + d scale + shift,
//     gradient_dot = g_dot gain + d scale_dot + shift_dot.
struct TangentGradientMap {
    const float *centre, *gain, *cross, *tangent, *scale, *shift, *scale_dot, *shift_dot;
};
// NHWC images, and where their gradients go; that of the tangent to two places.
struct TangentImages {
    const float *x, *x_dot, *g, *g_dot;
};
struct TangentBlocks {
    Blocks gradient, gradient_dot, again;
};
void apply_tangent_gradient_to_blocks(TangentBlocks out, TangentImages from, TangentGradientMap map, int64_t rows,
                                      int64_t columns, int64_t channels);

// The sums over the pixels of the products of such an image and of an NHWC one, in double precision.
void sum_block_products(double* sums, Blocks a, const float* b, int64_t rows, int64_t columns, int64_t channels);

// out = 0 where x is not positive. For any elements.
void mask_negative(float* out, const float* x, int64_t count);

// The sum of the products of `values` and x, for any elements; adds `values` to `out` unless that is null.
double sum_products(float* out, const float* values, const float* x, int64_t count);

// out += values; unless `x` is null, only where it is positive. For any elements.
void add_positive(float* out, const float* values, const float* x, int64_t count);

}  // namespace zcpipe
