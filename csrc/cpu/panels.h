// Sums of outer products of rows, for the CPU. Free of torch.
#pragma once

#include <cstdint>

#include "cpu/ahead.h"

namespace zcpipe {

// Columns of a panel: 64 bytes.
template <typename T>
constexpr int64_t kPanel = 64 / int64_t(sizeof(T));

// Rows as panels of neighbouring columns: column c of row r is starts[c / kPanel][r * row_stride + c % kPanel].
template <typename T>
struct Panels {
    const T* const* starts;
    int64_t count, row_stride;
};

enum class Part { kAll, kUpper };  // kUpper leaves out the panels below the diagonal

// product[i][j] += sum over the rows of left[row][i] right[row][j]; product is [kPanel left.count, kPanel right.count].
// The products of one call are added in type T, in the order of the rows, fused where the processor can. Meanwhile what
// is wanted next is fetched.
void add_products(double* product, Panels<float> left, Panels<float> right, int64_t rows, Part part, Ahead next);
void add_products(double* product, Panels<double> left, Panels<double> right, int64_t rows, Part part, Ahead next);

}  // namespace zcpipe
