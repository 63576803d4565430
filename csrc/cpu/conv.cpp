#include "cpu/conv.h"

#include <algorithm>

#include "common/simd.h"
#include "cpu/conv_tiles.h"

namespace zcpipe {
namespace {

// One row of pixels into the scratch, block by block.
ZCPIPE_CLONES void spread_row(float* scratch, int64_t block_stride, const float* source, int64_t pixels,
                              int64_t channels, bool relu) {
    const float least = relu ? 0.0f : -__builtin_inff();
    for (int64_t c = 0; c < channels; c += kBlock, scratch += block_stride) {
        const int64_t n = std::min(kBlock, channels - c);
        const float* from = source + c;
        if (n == kBlock) {
            for (int64_t p = 0; p < pixels; ++p) {
#pragma omp simd
                for (int64_t l = 0; l < kBlock; ++l) {
                    const float x = from[p * channels + l];
                    scratch[p * kBlock + l] = x < least ? least : x;  // keeps NaN
                }
            }
        } else {
            for (int64_t p = 0; p < pixels; ++p)
                for (int64_t l = 0; l < n; ++l) {
                    const float x = from[p * channels + l];
                    scratch[p * kBlock + l] = x < least ? least : x;
                }
        }
    }
}

ZCPIPE_CLONES void spread_masked(Blocks to, const float* image, const float* mask, int64_t rows, int64_t columns,
                                 int64_t channels) {
    for (int64_t c = 0; c < channels; c += kBlock, to.data += to.block_stride) {
        const int64_t n = std::min(kBlock, channels - c);
        for (int64_t row = 0; row < rows; ++row) {
            const float *from = image + row * columns * channels + c, *positive = mask + row * columns * channels + c;
            float* blocks = to.data + row * to.row_stride;
            if (n == kBlock) {
                for (int64_t p = 0; p < columns; ++p) {
#pragma omp simd
                    for (int64_t l = 0; l < kBlock; ++l)
                        blocks[p * kBlock + l] = positive[p * channels + l] > 0 ? from[p * channels + l] : 0.0f;
                }
            } else {
                for (int64_t p = 0; p < columns; ++p)
                    for (int64_t l = 0; l < n; ++l)
                        blocks[p * kBlock + l] = positive[p * channels + l] > 0 ? from[p * channels + l] : 0.0f;
            }
        }
    }
}

}  // namespace

void load_masked_blocks(Blocks to, const float* image, const float* mask, int64_t rows, int64_t columns,
                        int64_t channels) {
    spread_masked(to, image, mask, rows, columns, channels);
}

void load_blocks(Blocks to, const float* image, int64_t rows, int64_t columns, int64_t channels, bool relu) {
    for (int64_t i = 0; i < rows; ++i)
        spread_row(to.data + i * to.row_stride, to.block_stride, image + i * columns * channels, columns, channels,
                   relu);
}

ImageConvolution::ImageConvolution(const Convolution& c, const float* weight, bool transposed)
    : transposed_(transposed),
      source_channels_(transposed ? c.out_channels : c.in_channels),
      source_height_(transposed ? c.out_height() : c.in_height),
      source_width_(transposed ? c.out_width() : c.in_width),
      result_channels_(transposed ? c.in_channels : c.out_channels),
      result_width_(transposed ? c.in_width : c.out_width()),
      blocks_(blocks_of(source_channels_)),
      result_size_(result_channels_ * result_width_ * (transposed ? c.in_height : c.out_height())) {
    if (transposed) {
        margin_ = (c.kernel - 1) / c.stride + 1;
        for (int64_t i = 0; i < c.stride; ++i)
            for (int64_t j = 0; j < c.stride; ++j) add_part(c, i, j);
    } else {
        margin_ = c.padding;
        read_stride_ = c.stride;
        Part part{0, 0, 1, c.out_height(), c.out_width(), {}, {}};
        for (int64_t i = 0; i < c.kernel; ++i)
            for (int64_t j = 0; j < c.kernel; ++j) part.taps.push_back({i, j, i, j});
        parts_.push_back(std::move(part));
    }
    try_winograd(c, weight);
    for (Part& part : parts_) {
        for (const Tap& tap : part.taps) {
            rows_ = std::max(rows_, (part.rows - 1) * read_stride_ + tap.row + 1);
            columns_ = std::max(columns_, (part.columns - 1) * read_stride_ + tap.column + 1);
        }
        if (!winograd_) pack(part, c, weight);
    }
    rows_ = std::max(rows_, margin_ + (source_height_ + 1) / 2 * 2);
    columns_ = std::max(columns_, margin_ + (source_width_ + 1) / 2 * 2);
    work_size_ = winograd_ ? winograd_->work_size() : result_size_;
}

// The pixels (phase + stride i) of the input's gradient. Tap k of the kernel leads from output pixel o to input pixel
// stride o + k - padding, so that pixel phase + stride i takes tap k from output pixel i + (phase + padding - k) /
// stride where that is an integer.
void ImageConvolution::add_part(const Convolution& c, int64_t row_phase, int64_t column_phase) {
    Part part{row_phase,
              column_phase,
              c.stride,
              (c.in_height - row_phase + c.stride - 1) / c.stride,
              (c.in_width - column_phase + c.stride - 1) / c.stride,
              {},
              {}};
    if (part.rows <= 0 || part.columns <= 0) return;
    for (int64_t i = 0; i < c.kernel; ++i) {
        const int64_t row = row_phase + c.padding - i;
        if (row % c.stride != 0) continue;
        for (int64_t j = 0; j < c.kernel; ++j) {
            const int64_t column = column_phase + c.padding - j;
            if (column % c.stride == 0)
                part.taps.push_back({margin_ + row / c.stride, margin_ + column / c.stride, i, j});
        }
    }
    parts_.push_back(std::move(part));
}

void ImageConvolution::pack(Part& part, const Convolution& c, const float* weight) const {
    const int64_t kernel = c.kernel * c.kernel;
    part.weights = Buffer<float>(int64_t(part.taps.size()) * source_channels_ * blocks_of(result_channels_) * kBlock);
    float* to = part.weights.data();
    for_panels(result_channels_, [&](int64_t first, int64_t blocks) {
        const int64_t width = blocks * kBlock, valid = std::min(width, result_channels_ - first);
        for (const Tap& tap : part.taps) {
            const float* at = weight + tap.kernel_row * c.kernel + tap.kernel_column;
            for (int64_t s = 0; s < source_channels_; ++s, to += width)
                for (int64_t r = 0; r < valid; ++r) {
                    const int64_t out = transposed_ ? s : first + r, in = transposed_ ? first + r : s;
                    to[r] = at[(out * c.in_channels + in) * kernel];
                }
        }
    });
}

void ImageConvolution::try_winograd(const Convolution& c, const float* weight) {
    const Part& part = parts_.front();
    if (c.kernel != 3 || c.stride != 1 || part.rows * part.columns < kLeastPixels) return;
    // One block of channels is so fast with AVX-512 that the transforms cost more than they save; with AVX2 it is not.
    if (most_blocks() > 1 && std::max(c.in_channels, c.out_channels) <= kBlock) return;
    const int64_t in = 9, out = 9 * c.in_channels;  // strides of the weight; a transpose reads kernels backwards
    winograd_.emplace(source_channels_, result_channels_, part.rows, part.columns,
                      Winograd::Kernels{weight, transposed_ ? out : in, transposed_ ? in : out, transposed_});
    rows_ = first_tap(part).row + winograd_->source_rows();
    columns_ = first_tap(part).column + winograd_->source_columns();
}

const ImageConvolution::Tap& ImageConvolution::first_tap(const Part& part) const {
    return transposed_ ? part.taps.back() : part.taps.front();
}

void ImageConvolution::load(float* scratch, const float* image, bool relu) const {
    load_blocks(source(scratch), image, source_height_, source_width_, source_channels_, relu);
}

void ImageConvolution::run(Target target, float* scratch, Ahead ahead) const {
    float* work = scratch + source_size();
    if (winograd_) {
        const Tap& tap = first_tap(parts_.front());
        winograd_->run(target, scratch + tap.row * row_stride() + tap.column * kBlock, row_stride(), block_stride(),
                       work, ahead);
    } else if (target.add) {
        run_parts(work, scratch, ahead);
        add_positive(target.image, work, target.mask, result_size_);
    } else {
        run_parts(target.image, scratch, ahead);
        if (target.mask != nullptr) mask_negative(target.image, target.mask, result_size_);
    }
}

void ImageConvolution::run_parts(float* result, const float* scratch, Ahead ahead) const {
    int64_t steps = 0;
    for (const Part& part : parts_)
        steps += part.rows * tiles_of(part.columns, result_channels_) * int64_t(part.taps.size());
    ahead.divide(steps);
    for (const Part& part : parts_) {
        std::vector<int64_t> offsets;
        for (const Tap& tap : part.taps) offsets.push_back(tap.row * row_stride() + tap.column * kBlock);
        const int64_t taps = int64_t(offsets.size());
        const float* weights = part.weights.data();
        for_panels(result_channels_, [&](int64_t first, int64_t blocks) {
            const int64_t valid = std::min(blocks * kBlock, result_channels_ - first);
            for (int64_t i = 0; i < part.rows; ++i) {
                const int64_t pixel = (part.first_row + i * part.step) * result_width_ + part.first_column;
                convolve_row({result + pixel * result_channels_ + first, part.step * result_channels_, valid,
                              scratch + i * read_stride_ * row_stride(), block_stride(), source_channels_,
                              offsets.data(), taps, weights, &ahead},
                             part.columns, blocks, read_stride_);
            }
            weights += taps * source_channels_ * blocks * kBlock;
        });
    }
}

}  // namespace zcpipe
