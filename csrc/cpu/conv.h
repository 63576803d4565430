// Convolutions of single NHWC images in float32 for the CPU, and their transposes. Free of torch.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "common/buffer.h"
#include "cpu/ahead.h"
#include "cpu/channels.h"
#include "cpu/winograd.h"

namespace zcpipe {

// A square convolution without dilation and groups.
struct Convolution {
    int64_t in_channels, out_channels, in_height, in_width;
    int64_t kernel, stride, padding;

    int64_t out_height() const { return (in_height + 2 * padding - kernel) / stride + 1; }
    int64_t out_width() const { return (in_width + 2 * padding - kernel) / stride + 1; }
};

constexpr int64_t kLeastPixels = 16;  // of a result that Winograd's transforms are worth it for

// Fills blocks of 16 channels from an NHWC image; with `relu`, its negative elements count as zero.
void load_blocks(Blocks to, const float* image, int64_t rows, int64_t columns, int64_t channels, bool relu);

// The same where `mask`, an image of the same shape, is positive, and zeros elsewhere.
void load_masked_blocks(Blocks to, const float* image, const float* mask, int64_t rows, int64_t columns,
                        int64_t channels);

// One image after another through a convolution (source: its input, result: its output) or through the transpose of
// its matrix (source: a gradient of its output, result: the gradient of its input).
//
// The source is copied into `scratch` first, with its margins, as [row][block of 16 channels][column][16], so that
// neighbouring pixels of a block lie one vector apart whatever the number of channels. The result is made of parts:
// one for a convolution and for the transpose of stride 1, stride^2 for other transposes, whose pixels take other taps
// of the kernel according to their row and column modulo the stride.
//
// 3x3 kernels of stride 1 go Winograd's way where that is faster, others tap by tap.
class ImageConvolution {
  public:
    // `weight` is [out_channels, in_channels, kernel, kernel], contiguous.
    ImageConvolution(const Convolution& c, const float* weight, bool transposed);

    int64_t scratch_size() const { return source_size() + work_size_; }  // floats

    // Where the source goes in the scratch, which is zero before the first image and lies at a multiple of 64 bytes.
    // Around it there are zeros, which make its height and width even at least.
    Blocks source(float* scratch) const {
        return {scratch + margin_ * (row_stride() + 16), row_stride(), block_stride()};
    }

    // Fills the source from an NHWC image; with `relu`, its negative elements count as zero.
    void load(float* scratch, const float* image, bool relu) const;

    // Makes the result once the source is in the scratch, and meanwhile fetches what is wanted next.
    void run(Target target, float* scratch, Ahead ahead = {}) const;

  private:
    struct Tap {
        int64_t row, column;  // where it reads, from the place in the scratch that belongs to a pixel of the result
        int64_t kernel_row, kernel_column;
    };
    struct Part {
        int64_t first_row, first_column, step;  // pixels (first_row + i step, first_column + j step) of the result
        int64_t rows, columns;
        std::vector<Tap> taps;
        Buffer<float> weights;  // [panel of result channels][tap][source channel][channel of the panel]
    };

    int64_t source_size() const { return rows_ * row_stride(); }
    int64_t row_stride() const { return blocks_ * block_stride(); }
    int64_t block_stride() const { return columns_ * 16; }
    void add_part(const Convolution& c, int64_t row_phase, int64_t column_phase);
    void pack(Part& part, const Convolution& c, const float* weight) const;
    void try_winograd(const Convolution& c, const float* weight);
    const Tap& first_tap(const Part& part) const;  // the one that reads furthest up and left
    void run_parts(float* result, const float* scratch, Ahead ahead) const;

    bool transposed_;
    int64_t source_channels_, source_height_, source_width_, result_channels_, result_width_;
    int64_t margin_ = 0, read_stride_ = 1;
    int64_t rows_ = 0, columns_ = 0, blocks_ = 0;  // of the scratch
    int64_t work_size_ = 0, result_size_;
    std::vector<Part> parts_;
    std::optional<Winograd> winograd_;  // instead of the only part
};

}  // namespace zcpipe
