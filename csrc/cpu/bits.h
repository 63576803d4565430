// Signs of activations as bits, and distances between codes of such bits, for the CPU. Free of torch.
//
// Bit i of a code is bit i % 64 of its word i / 64.
#pragma once

#include <cstdint>

namespace zcpipe {

// Bit i of `code` becomes x[i] > 0, and what is left of the last word 0.
void write_signs(uint64_t* code, const float* x, int64_t count);
void write_signs(uint64_t* code, const double* x, int64_t count);

// Bit c pixels + p of `code`, which is 0 before, becomes x[p channels + c] > 0: the order of planes for an NHWC image.
void write_signs_by_channel(uint64_t* code, const float* x, int64_t pixels, int64_t channels);
void write_signs_by_channel(uint64_t* code, const double* x, int64_t pixels, int64_t channels);

// distances[k] += how many bits of the first `words` words of `code` and of row k differ. Rows are `stride` apart.
void add_distances(int64_t* distances, const uint64_t* code, const uint64_t* rows, int64_t count, int64_t stride,
                   int64_t words);

}  // namespace zcpipe
