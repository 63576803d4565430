// The inner loops of convolutions for the CPU: sums of outer products of pixels' channels and kernels. Free of torch.
//
// Channels lie in blocks of 16; a panel is one block of the result's channels, or two where the processor has enough
// vector registers. Weights of a panel are [tap][source channel][channel of the panel], at a multiple of 64 bytes.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/ahead.h"

namespace zcpipe {

constexpr int64_t kBlock = 16;  // channels

// Neighbouring pixels of one row of the result, in one panel of its channels.
struct Tile {
    float* result;
    int64_t pixel_stride;  // of the result
    int64_t valid;         // channels of the panel that the result has
    const float* source;   // in the scratch
    int64_t block_stride;  // of the scratch, from one block of channels to the next
    int64_t channels;      // of the source
    const int64_t* offsets;
    int64_t taps;
    const float* weights;
    Ahead* ahead;  // is stepped on at every tap of every tile
};

// `pixels` neighbours that read `stride` pixels apart, in a panel of `blocks` blocks. Each result is a sum over taps,
// then channels, in that order, wherever its pixel lies.
void convolve_row(const Tile& t, int64_t pixels, int64_t blocks, int64_t stride);

// Pixels of a source and of a gradient, block by block, whose outer products are added up.
struct Outer {
    float* sums;                       // [source channel][channel of the panel]
    const float* source;               // one block
    int64_t source_row, source_pixel;  // strides
    const float* gradient;             // one panel; neighbouring pixels lie 16 apart
    int64_t gradient_row, gradient_block;
    int64_t rows, columns;
};

// Adds the outer products of the first `channels` channels of the source's block, at most 16, and a panel of `blocks`
// blocks. Each sum goes over rows, then columns. Sums of further channels, up to 16, may receive what the source holds.
void add_outer_products(const Outer& o, int64_t channels, int64_t blocks);

int64_t most_blocks();                // of a panel
int64_t tile_pixels(int64_t blocks);  // of a tile in a panel of so many blocks

inline int64_t blocks_of(int64_t channels) { return (channels + kBlock - 1) / kBlock; }

// Calls f(first channel, blocks) for every panel of result channels.
template <typename F>
void for_panels(int64_t channels, const F& f) {
    const int64_t most = most_blocks();
    for (int64_t c = 0; c < channels;) {
        const int64_t blocks = std::min(most, blocks_of(channels - c));
        f(c, blocks);
        c += blocks * kBlock;
    }
}

// How many tiles make `pixels` neighbours of all the result's channels, about.
inline int64_t tiles_of(int64_t pixels, int64_t channels) {
    int64_t tiles = 0;
    for_panels(channels, [&](int64_t, int64_t blocks) {
        const int64_t size = tile_pixels(blocks);
        tiles += (pixels + size - 1) / size;
    });
    return tiles;
}

}  // namespace zcpipe
