#include "cpu/philox_blocks.h"

// GCC does not find the instruction that multiplies the low halves of 64-bit lanes; Clang does.
#if ZCPIPE_HAS_CLONES && !defined(__clang__)

// GCC 12 warns about its own header's deliberately undefined operands.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

namespace zcpipe {
namespace {

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")
namespace v4 {
constexpr int64_t kBytes = 64;
typedef uint64_t Lanes __attribute__((vector_size(kBytes)));
inline Lanes multiply(Lanes a, Lanes b) { return Lanes(_mm512_mul_epu32(__m512i(a), __m512i(b))); }
#include "cpu/philox_lanes.inc"
}  // namespace v4
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
namespace v3 {
constexpr int64_t kBytes = 32;
typedef uint64_t Lanes __attribute__((vector_size(kBytes)));
inline Lanes multiply(Lanes a, Lanes b) { return Lanes(_mm256_mul_epu32(__m256i(a), __m256i(b))); }
#include "cpu/philox_lanes.inc"
}  // namespace v3
#pragma GCC pop_options

namespace baseline {
constexpr int64_t kBytes = 16;
typedef uint64_t Lanes __attribute__((vector_size(kBytes)));
inline Lanes multiply(Lanes a, Lanes b) { return Lanes(_mm_mul_epu32(__m128i(a), __m128i(b))); }
#include "cpu/philox_lanes.inc"
}  // namespace baseline

#define ZCPIPE_BLOCKS(arch, version)                                                                      \
    __attribute__((target(arch))) void chosen(uint64_t* low, uint64_t* high, StreamId id, uint64_t first, \
                                              int64_t count) {                                            \
        version::blocks(low, high, id, first, count);                                                     \
    }
ZCPIPE_BLOCKS("default", baseline)
ZCPIPE_BLOCKS("arch=x86-64-v3", v3)
ZCPIPE_BLOCKS("arch=x86-64-v4", v4)

}  // namespace

void philox_blocks(uint64_t* low, uint64_t* high, StreamId id, uint64_t first, int64_t count) {
    chosen(low, high, id, first, count);
}

}  // namespace zcpipe

#else

namespace zcpipe {

ZCPIPE_CLONES void philox_blocks(uint64_t* low, uint64_t* high, StreamId id, uint64_t first, int64_t count) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
        const Block b = philox(id, first + uint64_t(i));
        low[i] = b.w0 | uint64_t{b.w1} << 32;
        high[i] = b.w2 | uint64_t{b.w3} << 32;
    }
}

}  // namespace zcpipe

#endif
