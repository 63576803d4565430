#include "cpu/panels.h"

#include "common/simd.h"

// Clang knows no pragma that changes the instruction set.
#if ZCPIPE_HAS_CLONES && !defined(__clang__)
#define ZCPIPE_PANEL_VERSIONS 1
#else
#define ZCPIPE_PANEL_VERSIONS 0
#endif

#if ZCPIPE_PANEL_VERSIONS
// GCC 12 warns about its own header's deliberately undefined operands.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#endif

namespace zcpipe {
namespace {

#if ZCPIPE_PANEL_VERSIONS

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")
namespace v4 {
constexpr int kBytes = 64, kRows = 8, kPanels = 2;
inline __m512d broadcast(double x) { return _mm512_set1_pd(x); }
inline __m512 broadcast(float x) { return _mm512_set1_ps(x); }
inline __m512d multiply_add(__m512d a, __m512d b, __m512d c) { return _mm512_fmadd_pd(a, b, c); }
inline __m512 multiply_add(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }
#include "cpu/panels.inc"
}  // namespace v4
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
namespace v3 {
constexpr int kBytes = 32, kRows = 4, kPanels = 1;
inline __m256d broadcast(double x) { return _mm256_set1_pd(x); }
inline __m256 broadcast(float x) { return _mm256_set1_ps(x); }
inline __m256d multiply_add(__m256d a, __m256d b, __m256d c) { return _mm256_fmadd_pd(a, b, c); }
inline __m256 multiply_add(__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); }
#include "cpu/panels.inc"
}  // namespace v3
#pragma GCC pop_options

#endif

namespace baseline {
constexpr int kBytes = 16, kRows = 2, kPanels = 1;
typedef double Doubles __attribute__((vector_size(kBytes)));
typedef float Floats __attribute__((vector_size(kBytes)));
inline Doubles broadcast(double x) { return Doubles{x, x}; }
inline Floats broadcast(float x) { return Floats{x, x, x, x}; }
inline Doubles multiply_add(Doubles a, Doubles b, Doubles c) { return c + a * b; }
inline Floats multiply_add(Floats a, Floats b, Floats c) { return c + a * b; }
#include "cpu/panels.inc"
}  // namespace baseline

#if ZCPIPE_PANEL_VERSIONS
#define ZCPIPE_PRODUCTS(T, arch, version)                                                                     \
    __attribute__((target(arch))) void chosen(double* product, Panels<T> left, Panels<T> right, int64_t rows, \
                                              Part part, Ahead next) {                                        \
        version::add_blocks(product, left, right, rows, part, next);                                          \
    }
#define ZCPIPE_PRODUCTS_OF(T)                \
    ZCPIPE_PRODUCTS(T, "default", baseline)  \
    ZCPIPE_PRODUCTS(T, "arch=x86-64-v3", v3) \
    ZCPIPE_PRODUCTS(T, "arch=x86-64-v4", v4)
#else
#define ZCPIPE_PRODUCTS_OF(T)                                                                            \
    void chosen(double* product, Panels<T> left, Panels<T> right, int64_t rows, Part part, Ahead next) { \
        baseline::add_blocks(product, left, right, rows, part, next);                                    \
    }
#endif

ZCPIPE_PRODUCTS_OF(float)
ZCPIPE_PRODUCTS_OF(double)

}  // namespace

void add_products(double* product, Panels<float> left, Panels<float> right, int64_t rows, Part part, Ahead next) {
    chosen(product, left, right, rows, part, next);
}

void add_products(double* product, Panels<double> left, Panels<double> right, int64_t rows, Part part, Ahead next) {
    chosen(product, left, right, rows, part, next);
}

}  // namespace zcpipe
