// Sums over pixels of z dz for each sample and channel, in double precision.
//
// A channel's pixels are dealt to kGroups sums in turn, which are then added up in halves, so that vector registers are
// full whether neighbours in memory are channels or pixels. The order of every sum depends on the shape alone, never on
// the layout, the instruction set or the number of threads.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <vector>

#include "common/lanes.h"
#include "common/layout.h"
#include "common/simd.h"

namespace {

using namespace zcpipe;

constexpr int64_t kGrain = 1 << 15;     // elements: less is not worth a second thread
constexpr int64_t kGroups = 8;          // doubles in the widest vector register
constexpr int64_t kGroupedPixels = 32;  // fewer have one sum a channel

// Four rows of lanes at a time, because loading and storing the sums would cost more than the adding.
template <typename T>
ZCPIPE_INLINE void product_lanes(double* sums, const T* z, const T* dz, int64_t count, int64_t width) {
    const auto product = [=](int64_t i) { return double(z[i]) * double(dz[i]); };
    int64_t i = 0;
    for (; i + 4 * width <= count; i += 4 * width) {
#pragma omp simd
        for (int64_t l = i; l < i + width; ++l)
            sums[l - i] += (product(l) + product(l + width)) + (product(l + 2 * width) + product(l + 3 * width));
    }
    for (; i < count; i += width) {
        const int64_t n = std::min(width, count - i);
#pragma omp simd
        for (int64_t l = 0; l < n; ++l) sums[l] += product(i + l);
    }
}

// What product_lanes and fold give for one channel, to the bit (adding 0 changes no sum that began as 0): a plane is so
// short that its sums have to stay in registers.
template <int64_t kWidth, typename T>
ZCPIPE_INLINE double plane_sum(const T* z, const T* dz, int64_t pixels) {
    const auto product = [=](int64_t i) { return double(z[i]) * double(dz[i]); };
    double sums[kWidth] = {}, rest[kWidth] = {};
    int64_t i = 0;
    for (; i + 4 * kWidth <= pixels; i += 4 * kWidth) {
#pragma omp simd
        for (int64_t l = 0; l < kWidth; ++l)
            sums[l] += (product(i + l) + product(i + l + kWidth)) +
                       (product(i + l + 2 * kWidth) + product(i + l + 3 * kWidth));
    }
    for (; i + kWidth <= pixels; i += kWidth) {
#pragma omp simd
        for (int64_t l = 0; l < kWidth; ++l) sums[l] += product(i + l);
    }
    for (int64_t l = 0; l < pixels - i; ++l) rest[l] = product(i + l);
#pragma GCC unroll 8
    for (int64_t l = 0; l < kWidth; ++l) sums[l] += rest[l];
#pragma GCC unroll 8
    for (int64_t half = kWidth / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
        for (int64_t l = 0; l < half; ++l) sums[l] += sums[l + half];
    }
    return sums[0];
}

// Images of interleaved channels, one after the other: planes are images of one channel.
template <typename T>
ZCPIPE_INLINE void image_sums(double* out, double* lanes, const T* z, const T* dz, int64_t images, int64_t pixels,
                              int64_t channels, int64_t groups) {
    const int64_t size = pixels * channels, width = groups * channels;
    for (int64_t i = 0; i < images; ++i, z += size, dz += size, out += channels) {
        if (channels == 1) {
            *out = groups == 1 ? plane_sum<1>(z, dz, pixels) : plane_sum<kGroups>(z, dz, pixels);
        } else {
            std::fill_n(lanes, width, 0.0);
            product_lanes(lanes, z, dz, size, width);
            fold(out, lanes, channels, width);
        }
    }
}

#define ZCPIPE_PRODUCT_KERNEL(T)                                                                         \
    ZCPIPE_CLONES void sum_products(double* out, double* lanes, const T* z, const T* dz, int64_t images, \
                                    int64_t pixels, int64_t channels, int64_t groups) {                  \
        image_sums(out, lanes, z, dz, images, pixels, channels, groups);                                 \
    }

ZCPIPE_PRODUCT_KERNEL(float)
ZCPIPE_PRODUCT_KERNEL(double)

template <typename T>
void sum_images(double* out, const T* z, const T* dz, int64_t images, int64_t pixels, int64_t channels) {
    const int64_t size = pixels * channels, groups = pixels < kGroupedPixels ? 1 : kGroups;
    torch::stable::parallel_for(0, images, kGrain / size + 1, [&](int64_t begin, int64_t end) {
        std::vector<double> lanes(groups * channels);
        sum_products(out + begin * channels, lanes.data(), z + begin * size, dz + begin * size, end - begin, pixels,
                     channels, groups);
    });
}

Tensor product_sums(const Tensor& z_any, const Tensor& dz_any) {  // [N, C, H, W], [N, T, C] or [N, C] -> [N, C]
    check_float(z_any, "z");
    const int64_t dimensions = z_any.dim();
    STD_TORCH_CHECK(dimensions >= 2 && dimensions <= 4, "z: got ", dimensions, " dimensions, expected 2, 3 or 4");
    STD_TORCH_CHECK(dz_any.scalar_type() == z_any.scalar_type(), "dz: expected the dtype of z");
    STD_TORCH_CHECK(dz_any.sizes() == z_any.sizes(), "dz: expected the shape of z");
    const MemoryFormat format = format_of(z_any);
    const Tensor z = torch::stable::contiguous(z_any, format), dz = torch::stable::contiguous(dz_any, format);
    const int64_t samples = z.size(0), channels = z.size(dimensions == 3 ? 2 : 1);
    Tensor out = torch::stable::new_zeros(z, {samples, channels}, ScalarType::Double);
    if (z.numel() == 0) return out;
    const bool planes = dimensions == 4 && format == MemoryFormat::Contiguous;
    const int64_t pixels = z.numel() / (samples * channels);
    const int64_t images = planes ? samples * channels : samples, interleaved = planes ? 1 : channels;
    double* to = out.mutable_data_ptr<double>();
    if (z.scalar_type() == ScalarType::Float)
        sum_images(to, z.const_data_ptr<float>(), dz.const_data_ptr<float>(), images, pixels, interleaved);
    else
        sum_images(to, z.const_data_ptr<double>(), dz.const_data_ptr<double>(), images, pixels, interleaved);
    return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(zcpipe, CPU, m) { m.impl("product_sums", TORCH_BOX(&product_sums)); }
