#include "cpu/conv_tiles.h"

#include "common/simd.h"

// Clang knows no pragma that changes the instruction set.
#if ZCPIPE_HAS_CLONES && !defined(__clang__)
#define ZCPIPE_TILE_VERSIONS 1
#else
#define ZCPIPE_TILE_VERSIONS 0
#endif

#if ZCPIPE_TILE_VERSIONS
// GCC 12 warns about its own header's deliberately undefined operands.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#endif

namespace zcpipe {
namespace {

#if ZCPIPE_TILE_VERSIONS

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")
namespace v4 {
constexpr int kBytes = 64, kMostBlocks = 2, kPixels[] = {16, 8};
typedef float Lanes __attribute__((vector_size(kBytes)));
inline Lanes broadcast(float x) { return Lanes(_mm512_set1_ps(x)); }
inline Lanes multiply_add(Lanes a, Lanes b, Lanes c) { return Lanes(_mm512_fmadd_ps(a, b, c)); }
#include "cpu/conv_tiles.inc"
}  // namespace v4
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
namespace v3 {
constexpr int kBytes = 32, kMostBlocks = 1, kPixels[] = {4};
typedef float Lanes __attribute__((vector_size(kBytes)));
inline Lanes broadcast(float x) { return Lanes(_mm256_set1_ps(x)); }
inline Lanes multiply_add(Lanes a, Lanes b, Lanes c) { return Lanes(_mm256_fmadd_ps(a, b, c)); }
#include "cpu/conv_tiles.inc"
}  // namespace v3
#pragma GCC pop_options

#endif

namespace baseline {
constexpr int kBytes = 16, kMostBlocks = 1, kPixels[] = {2};
typedef float Lanes __attribute__((vector_size(kBytes)));
inline Lanes broadcast(float x) { return Lanes{x, x, x, x}; }
inline Lanes multiply_add(Lanes a, Lanes b, Lanes c) { return c + a * b; }
#include "cpu/conv_tiles.inc"
}  // namespace baseline

#if ZCPIPE_TILE_VERSIONS
#define ZCPIPE_TILES(arch, version)                                                                                \
    __attribute__((target(arch))) void chosen_row(const Tile& t, int64_t pixels, int64_t blocks, int64_t stride) { \
        version::row<version::kMostBlocks>(t, pixels, blocks, stride);                                             \
    }                                                                                                              \
    __attribute__((target(arch))) void chosen_outer(const Outer& o, int64_t channels, int64_t blocks) {            \
        version::outer<version::kMostBlocks>(o, channels, blocks);                                                 \
    }                                                                                                              \
    __attribute__((target(arch))) int64_t chosen_most_blocks() { return version::kMostBlocks; }                    \
    __attribute__((target(arch))) int64_t chosen_tile_pixels(int64_t blocks) { return version::kPixels[blocks - 1]; }
ZCPIPE_TILES("default", baseline)
ZCPIPE_TILES("arch=x86-64-v3", v3)
ZCPIPE_TILES("arch=x86-64-v4", v4)
#else
void chosen_row(const Tile& t, int64_t pixels, int64_t blocks, int64_t stride) {
    baseline::row<baseline::kMostBlocks>(t, pixels, blocks, stride);
}
void chosen_outer(const Outer& o, int64_t channels, int64_t blocks) {
    baseline::outer<baseline::kMostBlocks>(o, channels, blocks);
}
int64_t chosen_most_blocks() { return baseline::kMostBlocks; }
int64_t chosen_tile_pixels(int64_t blocks) { return baseline::kPixels[blocks - 1]; }
#endif

}  // namespace

void convolve_row(const Tile& t, int64_t pixels, int64_t blocks, int64_t stride) {
    chosen_row(t, pixels, blocks, stride);
}

void add_outer_products(const Outer& o, int64_t channels, int64_t blocks) { chosen_outer(o, channels, blocks); }

int64_t most_blocks() { return chosen_most_blocks(); }

int64_t tile_pixels(int64_t blocks) { return chosen_tile_pixels(blocks); }

}  // namespace zcpipe
