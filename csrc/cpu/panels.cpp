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
typedef double Lanes __attribute__((vector_size(kBytes)));
inline Lanes broadcast(double x) { return Lanes(_mm512_set1_pd(x)); }
inline Lanes multiply_add(Lanes a, Lanes b, Lanes c) { return Lanes(_mm512_fmadd_pd(a, b, c)); }
#include "cpu/panels.inc"
}  // namespace v4
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
namespace v3 {
constexpr int kBytes = 32, kRows = 4, kPanels = 1;
typedef double Lanes __attribute__((vector_size(kBytes)));
inline Lanes broadcast(double x) { return Lanes(_mm256_set1_pd(x)); }
inline Lanes multiply_add(Lanes a, Lanes b, Lanes c) { return Lanes(_mm256_fmadd_pd(a, b, c)); }
#include "cpu/panels.inc"
}  // namespace v3
#pragma GCC pop_options

#endif

namespace baseline {
constexpr int kBytes = 16, kRows = 2, kPanels = 1;
typedef double Lanes __attribute__((vector_size(kBytes)));
inline Lanes broadcast(double x) { return Lanes{x, x}; }
inline Lanes multiply_add(Lanes a, Lanes b, Lanes c) { return c + a * b; }
#include "cpu/panels.inc"
}  // namespace baseline

#if ZCPIPE_PANEL_VERSIONS
#define ZCPIPE_PRODUCTS(arch, version)                                                                             \
    __attribute__((target(arch))) void chosen(double* product, Panels left, Panels right, int64_t rows, Part part, \
                                              bool exact) {                                                        \
        version::add_any(product, left, right, rows, part, exact);                                                 \
    }
ZCPIPE_PRODUCTS("default", baseline)
ZCPIPE_PRODUCTS("arch=x86-64-v3", v3)
ZCPIPE_PRODUCTS("arch=x86-64-v4", v4)
#else
void chosen(double* product, Panels left, Panels right, int64_t rows, Part part, bool exact) {
    baseline::add_any(product, left, right, rows, part, exact);
}
#endif

}  // namespace

void add_products(double* product, Panels left, Panels right, int64_t rows, Part part, bool exact) {
    chosen(product, left, right, rows, part, exact);
}

}  // namespace zcpipe
