// product_sums for the ops that have it inside.
#pragma once

#include <torch/csrc/stable/tensor.h>

namespace zcpipe::gpu {

// [N, C, H, W], [N, T, C] or [N, C] -> [N, C] float64
torch::stable::Tensor product_sums_of(const torch::stable::Tensor& z, const torch::stable::Tensor& dz);

}  // namespace zcpipe::gpu
