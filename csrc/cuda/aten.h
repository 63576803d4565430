// torch's own operations that ours are made of on a device, by way of its dispatcher.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <tuple>

#include "common/layout.h"

namespace zcpipe::gpu {

// What a call is made with and what comes back, as the dispatcher takes it: an argument is one that it then owns.
template <size_t kArguments>
void call(const char* op, std::array<StableIValue, kArguments>& stack) {
    STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(op, "", stack.data(), TORCH_ABI_VERSION));
}

inline StableIValue pair(int64_t value) {
    const int64_t both[] = {value, value};
    return torch::stable::detail::from(torch::headeronly::IntHeaderOnlyArrayRef(both, 2));
}

inline Tensor relu(const Tensor& x) {
    std::array<StableIValue, 1> stack = {torch::stable::detail::from(x)};
    call("aten::relu", stack);
    return torch::stable::detail::to<Tensor>(stack[0]);
}

// Without bias, dilation and groups.
inline Tensor convolution(const Tensor& x, const Tensor& weight, int64_t stride, int64_t padding) {
    using torch::stable::detail::from;
    std::array<StableIValue, 9> stack = {from(x),      from(weight),  from(std::nullopt),
                                         pair(stride), pair(padding), pair(1),
                                         from(false),  pair(0),       from(int64_t{1})};
    call("aten::convolution", stack);
    return torch::stable::detail::to<Tensor>(stack[0]);
}

// The gradients of what enters and of the weights; one that is not wanted is undefined. For the first alone only the
// shape of x counts.
inline std::tuple<Tensor, Tensor> convolution_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                                       int64_t stride, int64_t padding, bool of_x, bool of_weight) {
    using torch::stable::detail::from;
    using torch::stable::detail::to;
    const bool wanted[] = {of_x, of_weight, false};
    std::array<StableIValue, 11> stack = {from(grad),
                                          from(x),
                                          from(weight),
                                          from(std::nullopt),
                                          pair(stride),
                                          pair(padding),
                                          pair(1),
                                          from(false),
                                          pair(0),
                                          from(int64_t{1}),
                                          from(torch::headeronly::HeaderOnlyArrayRef<bool>(wanted, 3))};
    call("aten::convolution_backward", stack);
    std::tuple<Tensor, Tensor> found = {to<Tensor>(stack[0]), to<Tensor>(stack[1])};
    to<Tensor>(stack[2]);  // nobody else would free it
    return found;
}

}  // namespace zcpipe::gpu
