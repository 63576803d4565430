#include "cpu/conv_gradient.h"

#include <algorithm>

#include "common/simd.h"
#include "cpu/conv_tiles.h"
#include "cpu/winograd.h"

namespace zcpipe {
namespace {

constexpr int64_t kSquarePlaces = 16;
// Squares that are multiplied at once: those of a place and their sums stay in the nearest cache, or, where the sums
// are in memory, there are enough of them for each time that the sums are read and written.
constexpr int64_t kSlots = 32, kWideSlots = 128, kWide = 128 * 128;

constexpr int64_t kPixelsAtOnce = 256;  // stay in the nearest cache
constexpr int64_t kPixelsInFloat = 2048;

// Ranges have sums of their own to fill and to add up, which takes some thousand pixels to be worth it.
constexpr int64_t kMostRanges = 4, kPixelsOfRange = 4096;

ZCPIPE_CLONES void add_parts(double* sums, const float* values, int64_t count) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) sums[i] += double(values[i]);
}

ZCPIPE_CLONES void add_sums(double* sums, const double* values, int64_t count) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) sums[i] += values[i];
}

}  // namespace

WeightGradient::WeightGradient(const Convolution& c)
    : c_(c),
      winograd_(c.kernel == 3 && c.stride == 1 && c.out_height() * c.out_width() >= kLeastPixels),
      places_(winograd_ ? kSquarePlaces : c.kernel * c.kernel),
      rows_(c.in_height + 2 * c.padding + winograd_),
      columns_(c.in_width + 2 * c.padding + winograd_) {
    if (winograd_) slots_ = std::max(c.in_channels * c.out_channels < kWide ? kSlots : kWideSlots, tile_columns());
}

int64_t WeightGradient::images_at_once(int64_t images) const {
    const int64_t pixels = c_.out_height() * c_.out_width();
    return std::max((images + kMostRanges - 1) / kMostRanges, (kPixelsOfRange + pixels - 1) / pixels);
}

void WeightGradient::write(float* weight, const double* sums, int64_t count) const {
    std::vector<double> total(sums, sums + size());
    for (int64_t i = 1; i < count; ++i) add_sums(total.data(), sums + i * size(), size());
    const int64_t taps = c_.kernel * c_.kernel, sources = blocks_of(c_.in_channels) * kBlock;
    std::vector<float> kernels(taps * kBlock * most_blocks());
    const double* panel = total.data();
    for_panels(c_.out_channels, [&](int64_t first, int64_t blocks) {
        const int64_t width = blocks * kBlock, valid = std::min(width, c_.out_channels - first);
        for (int64_t s = 0; s < c_.in_channels; ++s) {
            const double* from = panel + s * width;
            if (winograd_) {
                gather_kernels(kernels.data(), from, sources * width, width);
            } else {
                for (int64_t k = 0; k < taps; ++k)
                    for (int64_t r = 0; r < width; ++r) kernels[k * width + r] = float(from[k * sources * width + r]);
            }
            for (int64_t r = 0; r < valid; ++r) {
                float* to = weight + ((first + r) * c_.in_channels + s) * taps;
                for (int64_t k = 0; k < taps; ++k) to[k] = kernels[k * width + r];
            }
        }
        panel += places_ * sources * width;
    });
}

WeightSums::WeightSums(const WeightGradient& gradient)
    : g_(gradient),
      image_(g_.rows_ * blocks_of(g_.c_.in_channels) * g_.source_stride()),
      sources_(blocks_of(g_.c_.in_channels) * g_.square_stride()),
      gradients_(blocks_of(g_.c_.out_channels) * g_.square_stride()),
      part_(g_.size()) {}

void WeightSums::add(double* sums, const float* image, bool relu, Blocks gradient) {
    const Convolution& c = g_.c_;
    const int64_t row_stride = blocks_of(c.in_channels) * g_.source_stride();
    load_blocks({image_.data() + c.padding * (row_stride + kBlock), row_stride, g_.source_stride()}, image, c.in_height,
                c.in_width, c.in_channels, relu);
    if (g_.winograd_)
        add_squares(gradient);
    else
        add_pixels(gradient);
    pixels_ += c.out_height() * c.out_width();
    if (pixels_ >= kPixelsInFloat) finish(sums);
}

void WeightSums::finish(double* sums) {
    multiply_squares();
    add_parts(sums, part_.data(), g_.size());
    std::fill_n(part_.data(), g_.size(), 0.0f);
    pixels_ = 0;
}

void WeightSums::add_squares(Blocks gradient) {
    const Convolution& c = g_.c_;
    const int64_t columns = g_.tile_columns(), block_stride = g_.source_stride();
    const int64_t row_stride = blocks_of(c.in_channels) * block_stride;
    for (int64_t i = 0; i < c.out_height(); i += 2) {
        if (filled_ + columns > g_.slots_) multiply_squares();
        for (int64_t b = 0; b < blocks_of(c.in_channels); ++b)
            transform_sources(sources_.data() + b * g_.square_stride() + filled_ * kBlock, g_.place_stride(),
                              image_.data() + i * row_stride + b * block_stride, row_stride, columns);
        for (int64_t b = 0; b < blocks_of(c.out_channels); ++b)
            transform_gradients(gradients_.data() + b * g_.square_stride() + filled_ * kBlock, g_.place_stride(),
                                gradient.data + i * gradient.row_stride + b * gradient.block_stride,
                                gradient.row_stride, columns);
        filled_ += columns;
    }
}

void WeightSums::multiply_squares() {
    if (filled_ == 0) return;
    const Convolution& c = g_.c_;
    float* sums = part_.data();
    for_panels(c.out_channels, [&](int64_t first, int64_t blocks) {
        for (int64_t p = 0; p < kSquarePlaces; ++p) {
            const float* right = gradients_.data() + first / kBlock * g_.square_stride() + p * g_.place_stride();
            for (int64_t b = 0; b < blocks_of(c.in_channels); ++b, sums += kBlock * kBlock * blocks)
                add_outer_products({sums, sources_.data() + b * g_.square_stride() + p * g_.place_stride(), 0, kBlock,
                                    right, 0, g_.square_stride(), 1, filled_},
                                   std::min(kBlock, c.in_channels - b * kBlock), blocks);
        }
    });
    filled_ = 0;
}

void WeightSums::add_pixels(Blocks gradient) {
    const Convolution& c = g_.c_;
    const int64_t height = c.out_height(), width = c.out_width(), block_stride = g_.source_stride();
    const int64_t row_stride = blocks_of(c.in_channels) * block_stride;
    const int64_t rows_at_once = std::max<int64_t>(1, kPixelsAtOnce / width);
    for (int64_t row = 0; row < height; row += rows_at_once) {
        const int64_t rows = std::min(rows_at_once, height - row);
        const float* source = image_.data() + row * c.stride * row_stride;
        float* sums = part_.data();
        for_panels(c.out_channels, [&](int64_t first, int64_t blocks) {
            const float* right = gradient.data + row * gradient.row_stride + first / kBlock * gradient.block_stride;
            for (int64_t i = 0; i < c.kernel; ++i)
                for (int64_t j = 0; j < c.kernel; ++j)
                    for (int64_t b = 0; b < blocks_of(c.in_channels); ++b, sums += kBlock * kBlock * blocks)
                        add_outer_products(
                            {sums, source + i * row_stride + b * block_stride + j * kBlock, c.stride * row_stride,
                             c.stride * kBlock, right, gradient.row_stride, gradient.block_stride, rows, width},
                            std::min(kBlock, c.in_channels - b * kBlock), blocks);
        });
    }
}

}  // namespace zcpipe
