#include "cpu/bits.h"

#include <algorithm>
#include <bit>

#include "common/simd.h"

// Clang knows no pragma that changes the instruction set.
#if ZCPIPE_HAS_CLONES && !defined(__clang__)
#define ZCPIPE_BIT_VERSIONS 1
#include <immintrin.h>
#else
#define ZCPIPE_BIT_VERSIONS 0
#endif

namespace zcpipe {
namespace {

#if ZCPIPE_BIT_VERSIONS

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")
namespace v4 {
inline uint64_t signs(const float* x, int64_t n) {
    uint64_t bits = 0;
    for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 there = n - i < 16 ? __mmask16((1u << (n - i)) - 1) : __mmask16(0xFFFF);
        const __m512 v = _mm512_maskz_loadu_ps(there, x + i);
        bits |= uint64_t{_mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_GT_OQ)} << i;
    }
    return bits;
}
inline uint64_t signs(const double* x, int64_t n) {
    uint64_t bits = 0;
    for (int64_t i = 0; i < n; i += 8) {
        const __mmask8 there = n - i < 8 ? __mmask8((1u << (n - i)) - 1) : __mmask8(0xFF);
        const __m512d v = _mm512_maskz_loadu_pd(there, x + i);
        bits |= uint64_t{_mm512_cmp_pd_mask(v, _mm512_setzero_pd(), _CMP_GT_OQ)} << i;
    }
    return bits;
}
#include "cpu/bits.inc"
}  // namespace v4
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
namespace v3 {
inline uint64_t signs(const float* x, int64_t n) {
    uint64_t bits = 0;
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const __m256 positive = _mm256_cmp_ps(_mm256_loadu_ps(x + i), _mm256_setzero_ps(), _CMP_GT_OQ);
        bits |= uint64_t(_mm256_movemask_ps(positive)) << i;
    }
    for (; i < n; ++i) bits |= uint64_t{x[i] > 0} << i;
    return bits;
}
inline uint64_t signs(const double* x, int64_t n) {
    uint64_t bits = 0;
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) {
        const __m256d positive = _mm256_cmp_pd(_mm256_loadu_pd(x + i), _mm256_setzero_pd(), _CMP_GT_OQ);
        bits |= uint64_t(_mm256_movemask_pd(positive)) << i;
    }
    for (; i < n; ++i) bits |= uint64_t{x[i] > 0} << i;
    return bits;
}
#include "cpu/bits.inc"
}  // namespace v3
#pragma GCC pop_options

#endif

namespace baseline {
template <typename T>
inline uint64_t signs(const T* x, int64_t n) {
    uint64_t bits = 0;
    for (int64_t i = 0; i < n; ++i) bits |= uint64_t{x[i] > 0} << i;
    return bits;
}
#include "cpu/bits.inc"
}  // namespace baseline

ZCPIPE_INLINE void count_differences(int64_t* distances, const uint64_t* code, const uint64_t* rows, int64_t count,
                                     int64_t stride, int64_t words) {
    for (int64_t k = 0; k < count; ++k) {
        int64_t sum = 0;
        for (int64_t i = 0; i < words; ++i) sum += std::popcount(code[i] ^ rows[k * stride + i]);
        distances[k] += sum;
    }
}

ZCPIPE_CLONES void count_each(int64_t* distances, const uint64_t* code, const uint64_t* rows, int64_t count,
                              int64_t stride, int64_t words) {
    count_differences(distances, code, rows, count, stride, words);
}

#if ZCPIPE_BIT_VERSIONS
// No level of x86-64 has this instruction, which counts eight words at a time, and GCC chooses no version by it.
__attribute__((target("avx512vpopcntdq"))) void count_vectors(int64_t* distances, const uint64_t* code,
                                                              const uint64_t* rows, int64_t count, int64_t stride,
                                                              int64_t words) {
    count_differences(distances, code, rows, count, stride, words);
}
const bool kCountsVectors = __builtin_cpu_supports("avx512vpopcntdq");
#endif

#define ZCPIPE_SIGNS(attributes, version, T)                                                               \
    attributes void row(uint64_t* code, const T* x, int64_t count) { version::write_row(code, x, count); } \
    attributes void by_channel(uint64_t* code, const T* x, int64_t pixels, int64_t channels) {             \
        version::write_by_channel(code, x, pixels, channels);                                              \
    }

#if ZCPIPE_BIT_VERSIONS
ZCPIPE_SIGNS(__attribute__((target("default"))), baseline, float)
ZCPIPE_SIGNS(__attribute__((target("default"))), baseline, double)
ZCPIPE_SIGNS(__attribute__((target("arch=x86-64-v3"))), v3, float)
ZCPIPE_SIGNS(__attribute__((target("arch=x86-64-v3"))), v3, double)
ZCPIPE_SIGNS(__attribute__((target("arch=x86-64-v4"))), v4, float)
ZCPIPE_SIGNS(__attribute__((target("arch=x86-64-v4"))), v4, double)
#else
ZCPIPE_SIGNS(, baseline, float)
ZCPIPE_SIGNS(, baseline, double)
#endif

}  // namespace

void write_signs(uint64_t* code, const float* x, int64_t count) { row(code, x, count); }
void write_signs(uint64_t* code, const double* x, int64_t count) { row(code, x, count); }

void write_signs_by_channel(uint64_t* code, const float* x, int64_t pixels, int64_t channels) {
    by_channel(code, x, pixels, channels);
}
void write_signs_by_channel(uint64_t* code, const double* x, int64_t pixels, int64_t channels) {
    by_channel(code, x, pixels, channels);
}

void add_distances(int64_t* distances, const uint64_t* code, const uint64_t* rows, int64_t count, int64_t stride,
                   int64_t words) {
#if ZCPIPE_BIT_VERSIONS
    if (kCountsVectors) {
        count_vectors(distances, code, rows, count, stride, words);
        return;
    }
#endif
    count_each(distances, code, rows, count, stride, words);
}

}  // namespace zcpipe
