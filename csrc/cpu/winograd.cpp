#include "cpu/winograd.h"

#include <algorithm>
#include <vector>

#include "common/simd.h"
#include "cpu/conv_tiles.h"

// Vectors are passed between functions that are inlined, so that no calling convention matters.
#pragma GCC diagnostic ignored "-Wpsabi"

namespace zcpipe {
namespace {

constexpr int64_t kPlaces = 16;  // of a 4x4 square

// Tiles at once, at least, so that the products fill the vector registers.
int64_t tiles_at_once(int64_t result_channels) { return most_blocks() > 1 && result_channels > kBlock ? 8 : 16; }

// A block's channels side by side; the compiler splits it where vectors are shorter.
typedef float Channels __attribute__((vector_size(kBlock * sizeof(float)), aligned(sizeof(float)), may_alias));

ZCPIPE_INLINE const Channels& at(const float* p) { return *reinterpret_cast<const Channels*>(p); }
ZCPIPE_INLINE Channels& at(float* p) { return *reinterpret_cast<Channels*>(p); }

// One row of tiles of one block of channels: B^T d B of each, place by place.
ZCPIPE_CLONES void scatter(float* places, int64_t place_stride, const float* source, int64_t row_stride,
                           int64_t tiles) {
    for (int64_t t = 0; t < tiles; ++t, source += 2 * kBlock, places += kBlock) {
        Channels rows[4][4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            const float* d = source + j * kBlock;
            const Channels d0 = at(d), d1 = at(d + row_stride), d2 = at(d + 2 * row_stride),
                           d3 = at(d + 3 * row_stride);
            rows[0][j] = d0 - d2;
            rows[1][j] = d1 + d2;
            rows[2][j] = d2 - d1;
            rows[3][j] = d1 - d3;
        }
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
            float* to = places + 4 * i * place_stride;
            at(to) = rows[i][0] - rows[i][2];
            at(to + place_stride) = rows[i][1] + rows[i][2];
            at(to + 2 * place_stride) = rows[i][2] - rows[i][1];
            at(to + 3 * place_stride) = rows[i][1] - rows[i][3];
        }
    }
}

// One row of tiles of one block of channels: A y A^T of each, place by place.
ZCPIPE_CLONES void scatter_gradients(float* places, int64_t place_stride, const float* gradient, int64_t row_stride,
                                     int64_t tiles) {
    for (int64_t t = 0; t < tiles; ++t, gradient += 2 * kBlock, places += kBlock) {
        Channels rows[4][2];
#pragma GCC unroll 2
        for (int j = 0; j < 2; ++j) {
            const Channels y0 = at(gradient + j * kBlock), y1 = at(gradient + j * kBlock + row_stride);
            rows[0][j] = y0;
            rows[1][j] = y0 + y1;
            rows[2][j] = y0 - y1;
            rows[3][j] = -y1;
        }
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
            float* to = places + 4 * i * place_stride;
            at(to) = rows[i][0];
            at(to + place_stride) = rows[i][0] + rows[i][1];
            at(to + 2 * place_stride) = rows[i][0] - rows[i][1];
            at(to + 3 * place_stride) = -rows[i][1];
        }
    }
}

// The 2x2 pixels of one tile of one block of channels, A^T m A, given to write(i, j, pixel).
template <typename F>
ZCPIPE_INLINE void gather_tile(const float* products, int64_t place_stride, const F& write) {
    Channels rows[2][4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
        const float* m = products + j * place_stride;
        const Channels m1 = at(m + 4 * place_stride), m2 = at(m + 8 * place_stride);
        rows[0][j] = at(m) + m1 + m2;
        rows[1][j] = m1 - m2 - at(m + 12 * place_stride);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
        write(i, 0, rows[i][0] + rows[i][1] + rows[i][2]);
        write(i, 1, rows[i][1] - rows[i][2] - rows[i][3]);
    }
}

// One row of tiles of one block of channels in the result.
struct TileRow {
    const float* products;
    int64_t place_stride, tile_stride;  // of the products
    int64_t pixel_stride, row_stride;   // of the target
    int64_t channels, rows, columns;    // of the block, of pixels: what belongs to the target
};

template <bool kAdd, bool kMask>
ZCPIPE_INLINE Channels combined(const Channels& there, const Channels& mask, const Channels& pixel) {
    const Channels value = kMask ? (mask > 0 ? pixel : Channels{}) : pixel;
    return kAdd ? there + value : value;
}

template <bool kAdd, bool kMask>
ZCPIPE_INLINE void gather_row(Target target, TileRow t) {
    int64_t first = 0;
    if (t.channels == kBlock && t.rows >= 2) {
        for (; first + 2 <= t.columns; first += 2, t.products += t.tile_stride)
            gather_tile(t.products, t.place_stride, [&](int i, int j, Channels pixel) ZCPIPE_INLINED {
                const int64_t offset = i * t.row_stride + (first + j) * t.pixel_stride;
                float* to = target.image + offset;
                at(to) = combined<kAdd, kMask>(at(to), kMask ? at(target.mask + offset) : pixel, pixel);
            });
    }
    for (; first < t.columns; first += 2, t.products += t.tile_stride)
        gather_tile(t.products, t.place_stride, [&](int i, int j, Channels pixel) ZCPIPE_INLINED {
            if (i >= t.rows || first + j >= t.columns) return;
            const int64_t offset = i * t.row_stride + (first + j) * t.pixel_stride;
            const size_t size = size_t(t.channels) * sizeof(float);
            Channels there = {}, mask = {};
            if (kAdd) __builtin_memcpy(&there, target.image + offset, size);
            if (kMask) __builtin_memcpy(&mask, target.mask + offset, size);
            pixel = combined<kAdd, kMask>(there, mask, pixel);
            __builtin_memcpy(target.image + offset, &pixel, size);
        });
}

ZCPIPE_CLONES void gather(Target target, const TileRow& t) {
    if (target.mask == nullptr)
        target.add ? gather_row<true, false>(target, t) : gather_row<false, false>(target, t);
    else
        target.add ? gather_row<true, true>(target, t) : gather_row<false, true>(target, t);
}

// G g G^T of the kernels of one source channel and one panel: [9][width] to 16 places of [width].
ZCPIPE_CLONES void transform_kernels(float* places, int64_t place_stride, const float* g, int64_t width) {
#pragma omp simd
    for (int64_t l = 0; l < width; ++l) {
        float rows[4][3];
#pragma GCC unroll 3
        for (int j = 0; j < 3; ++j) {
            const float a = g[j * width + l], b = g[(3 + j) * width + l], c = g[(6 + j) * width + l];
            rows[0][j] = a;
            rows[1][j] = 0.5f * (a + b + c);
            rows[2][j] = 0.5f * (a - b + c);
            rows[3][j] = c;
        }
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
            const float a = rows[i][0], b = rows[i][1], c = rows[i][2];
            float* to = places + 4 * i * place_stride + l;
            to[0] = a;
            to[place_stride] = 0.5f * (a + b + c);
            to[2 * place_stride] = 0.5f * (a - b + c);
            to[3 * place_stride] = c;
        }
    }
}

ZCPIPE_CLONES void gather_taps(float* taps, const double* places, int64_t place_stride, int64_t width) {
#pragma omp simd
    for (int64_t l = 0; l < width; ++l) {
        double rows[3][4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            const double* s = places + j * place_stride + l;
            const double a = 0.5 * s[4 * place_stride], b = 0.5 * s[8 * place_stride];
            rows[0][j] = s[0] + (a + b);
            rows[1][j] = a - b;
            rows[2][j] = (a + b) + s[12 * place_stride];
        }
#pragma GCC unroll 3
        for (int i = 0; i < 3; ++i) {
            const double a = 0.5 * rows[i][1], b = 0.5 * rows[i][2];
            float* to = taps + 3 * i * width + l;
            to[0] = float(rows[i][0] + (a + b));
            to[width] = float(a - b);
            to[2 * width] = float((a + b) + rows[i][3]);
        }
    }
}

}  // namespace

void transform_sources(float* places, int64_t place_stride, const float* source, int64_t row_stride, int64_t tiles) {
    scatter(places, place_stride, source, row_stride, tiles);
}

void transform_gradients(float* places, int64_t place_stride, const float* gradient, int64_t row_stride,
                         int64_t tiles) {
    scatter_gradients(places, place_stride, gradient, row_stride, tiles);
}

void gather_kernels(float* taps, const double* places, int64_t place_stride, int64_t width) {
    gather_taps(taps, places, place_stride, width);
}

Winograd::Winograd(int64_t source_channels, int64_t result_channels, int64_t height, int64_t width, Kernels kernels)
    : source_channels_(source_channels),
      result_channels_(result_channels),
      height_(height),
      width_(width),
      tile_rows_((height + 1) / 2),
      tile_columns_((width + 1) / 2),
      rows_at_once_(std::min(tile_rows_, (tiles_at_once(result_channels) + tile_columns_ - 1) / tile_columns_)),
      weights_(kPlaces * source_channels * blocks_of(result_channels) * kBlock) {
    float* panel = weights_.data();
    for_panels(result_channels, [&](int64_t first, int64_t blocks) {
        const int64_t panel_width = blocks * kBlock, valid = std::min(panel_width, result_channels - first);
        std::vector<float> taps(9 * panel_width);
        for (int64_t s = 0; s < source_channels; ++s) {
            for (int64_t r = 0; r < valid; ++r) {
                const float* g = kernels.weights + s * kernels.source_stride + (first + r) * kernels.result_stride;
                for (int64_t k = 0; k < 9; ++k) taps[k * panel_width + r] = g[kernels.reversed ? 8 - k : k];
            }
            transform_kernels(panel + s * panel_width, source_channels * panel_width, taps.data(), panel_width);
        }
        panel += kPlaces * source_channels * panel_width;
    });
}

int64_t Winograd::work_size() const {
    return kPlaces * rows_at_once_ * tile_columns_ * kBlock * (blocks_of(source_channels_) + most_blocks());
}

void Winograd::run(Target target, const float* source, int64_t row_stride, int64_t block_stride, float* work,
                   Ahead ahead) const {
    const int64_t groups = (tile_rows_ + rows_at_once_ - 1) / rows_at_once_;
    ahead.divide(groups * kPlaces * tiles_of(rows_at_once_ * tile_columns_, result_channels_));
    const int64_t source_blocks = blocks_of(source_channels_), channels = result_channels_;
    for (int64_t top = 0; top < tile_rows_; top += rows_at_once_) {
        const int64_t rows = std::min(rows_at_once_, tile_rows_ - top), tiles = rows * tile_columns_;
        const int64_t place_stride = source_blocks * tiles * kBlock;
        float* products = work + kPlaces * place_stride;
        for (int64_t i = 0; i < rows; ++i)
            for (int64_t b = 0; b < source_blocks; ++b)
                scatter(work + (b * tiles + i * tile_columns_) * kBlock, place_stride,
                        source + 2 * (top + i) * row_stride + b * block_stride, row_stride, tile_columns_);
        const float* weights = weights_.data();
        for_panels(channels, [&](int64_t first, int64_t blocks) {
            const int64_t width = blocks * kBlock;
            constexpr int64_t kNoOffset = 0;
            for (int64_t p = 0; p < kPlaces; ++p, weights += source_channels_ * width)
                convolve_row({products + p * tiles * width, width, width, work + p * place_stride, tiles * kBlock,
                              source_channels_, &kNoOffset, 1, weights, &ahead},
                             tiles, blocks, 1);
            for (int64_t i = 0; i < rows; ++i) {
                const int64_t row = 2 * (top + i);
                for (int64_t b = 0; b < blocks && first + b * kBlock < channels; ++b) {
                    const int64_t offset = row * width_ * channels + first + b * kBlock;
                    const float* mask = target.mask == nullptr ? nullptr : target.mask + offset;
                    gather({target.image + offset, target.add, mask},
                           {products + i * tile_columns_ * width + b * kBlock, tiles * width, width, channels,
                            width_ * channels, std::min(kBlock, channels - first - b * kBlock), height_ - row, width_});
                }
            }
        });
    }
}

}  // namespace zcpipe
