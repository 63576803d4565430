// 3x3 convolutions of stride 1 by Winograd's F(2x2, 3x3): 16 products for four pixels instead of 36. Free of torch.
//
// Lavin & Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016: a square of 4x4 source pixels d and a
// kernel g give 2x2 pixels A^T ((G g G^T) * (B^T d B)) A, where * multiplies place by place and adds up the channels.
// All coefficients are 0, +-1 and 1/2, so that little accuracy is lost.
#pragma once

#include <cstdint>

#include "common/buffer.h"
#include "cpu/ahead.h"

namespace zcpipe {

// Where a result goes, an NHWC image: it replaces what is there or is added to it, and counts as 0 where `mask`, an
// image of the same shape, is not positive; a null mask leaves it as it is.
struct Target {
    float* image;
    bool add;
    const float* mask;
};

class Winograd {
  public:
    // Kernels of nine neighbouring weights: the one from source channel s to result channel r begins at
    // weights[s * source_stride + r * result_stride], in reading order or, with `reversed`, backwards.
    struct Kernels {
        const float* weights;
        int64_t source_stride, result_stride;
        bool reversed;
    };

    Winograd(int64_t source_channels, int64_t result_channels, int64_t height, int64_t width, Kernels kernels);

    // What the source must have, from the first pixel that the first result reads: rows and columns past the result's.
    int64_t source_rows() const { return 2 * tile_rows_ + 2; }
    int64_t source_columns() const { return 2 * tile_columns_ + 2; }

    int64_t work_size() const;  // floats

    // `source` is [row][block of 16 channels][column][16] with the strides given, the target [height, width,
    // result_channels]. `work` lies at a multiple of 64 bytes. Meanwhile fetches what is wanted next.
    void run(Target target, const float* source, int64_t row_stride, int64_t block_stride, float* work,
             Ahead ahead) const;

  private:
    int64_t source_channels_, result_channels_, height_, width_;
    int64_t tile_rows_, tile_columns_;  // of 2x2 result pixels
    int64_t rows_at_once_;              // of tiles
    Buffer<float> weights_;             // [panel of result channels][16 places][source channel][channel of the panel]
};

// The same for the kernels' gradients, from the transpose of the formula above: g' = G^T ((A y' A^T) * (B^T d B)) G,
// where * adds up all squares, y' being the gradient of y. Rows of `tiles` squares of one block of channels, whose 16
// places lie `place_stride` apart.
void transform_sources(float* places, int64_t place_stride, const float* source, int64_t row_stride, int64_t tiles);
void transform_gradients(float* places, int64_t place_stride, const float* gradient, int64_t row_stride, int64_t tiles);

// G^T s G of `width` neighbouring kernels: 16 places to taps[9][width].
void gather_kernels(float* taps, const double* places, int64_t place_stride, int64_t width);

}  // namespace zcpipe
