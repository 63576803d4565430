// Sums of outer products of rows, for the CPU. Free of torch.
#pragma once

#include <cstdint>

namespace zcpipe {

constexpr int64_t kPanel = 8;  // columns

// Rows in double precision as panels of 8 columns: column c of row r is data[c / 8 * stride + r * 8 + c % 8], at an
// address that is a multiple of 64 for c % 8 = 0.
struct Panels {
    const double* data;
    int64_t count, stride;
};

enum class Part { kAll, kUpper };  // kUpper leaves out the panels below the diagonal

// product[i][j] += sum over the rows of left[row][i] right[row][j]; product is [8 left.count, 8 right.count]. The
// products are added in the order of the rows. `exact` promises that double precision holds every one of them exactly,
// so that a fused multiply-add gives the bits that a multiplication and an addition give, in half the time.
void add_products(double* product, Panels left, Panels right, int64_t rows, Part part, bool exact);

}  // namespace zcpipe
