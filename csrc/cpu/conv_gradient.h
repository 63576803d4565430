// Gradients of convolutions' weights in float32 for the CPU, image by image. Free of torch.
#pragma once

#include <cstdint>
#include <vector>

#include "common/buffer.h"
#include "cpu/conv.h"
#include "cpu/conv_tiles.h"

namespace zcpipe {

// The gradient of a weight is a sum over images and pixels of outer products of what a tap reads and the gradient of
// the convolution's result. The sums are [panel of result channels][place][source channel][channel of the panel], where
// places are the kernel's taps or, where the convolution itself goes that way, the 16 of Winograd's squares.
//
// The products of about two thousand pixels, or of one image, are added up in float32, fused where the processor can;
// further sums are in double precision.
class WeightGradient {
  public:
    explicit WeightGradient(const Convolution& c);

    int64_t size() const { return places_ * blocks_of(c_.in_channels) * kBlock * padded_results(); }

    // Images that are added up one after another, so that the result does not depend on the number of threads.
    int64_t images_at_once(int64_t images) const;

    // Writes [out_channels, in_channels, kernel, kernel], from sums of `count` ranges of images: [range][size()].
    void write(float* weight, const double* sums, int64_t count) const;

  private:
    friend class WeightSums;

    int64_t padded_results() const { return blocks_of(c_.out_channels) * kBlock; }
    int64_t source_stride() const { return columns_ * kBlock; }  // from block to block of a row
    int64_t tile_columns() const { return (c_.out_width() + 1) / 2; }
    int64_t place_stride() const { return (slots_ + 1) * kBlock; }      // no power of 2, which would share cache lines
    int64_t square_stride() const { return places_ * place_stride(); }  // from block to block of squares

    Convolution c_;
    bool winograd_;
    int64_t places_;
    int64_t rows_, columns_;  // of a padded image
    int64_t slots_ = 0;       // of squares that are multiplied at once
};

// The sums of one thread.
class WeightSums {
  public:
    explicit WeightSums(const WeightGradient& gradient);

    // Adds an NHWC image (with `relu`, its negative elements count as zero) and the gradient of its result, which has
    // zeros around it that make its height and width even. Everything added between two calls of `finish` goes to the
    // same `sums`.
    void add(double* sums, const float* image, bool relu, Blocks gradient);

    // Adds to `sums` what is still under way.
    void finish(double* sums);

  private:
    void add_squares(Blocks gradient);
    void multiply_squares();
    void add_pixels(Blocks gradient);

    const WeightGradient& g_;
    Buffer<float> image_;                // [row][block][column][16]
    Buffer<float> sources_, gradients_;  // squares: [block][place][slot][16]
    Buffer<float> part_;                 // sums in float32
    int64_t filled_ = 0;                 // slots
    int64_t pixels_ = 0;                 // in part_ and slots
};

}  // namespace zcpipe
