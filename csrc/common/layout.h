// The memory layouts that the kernels read: contiguous, and channels_last for four dimensions.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>

namespace zcpipe {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Dimensions of size 1 may have any stride, so this is not a comparison of strides.
inline bool is_channels_last(const Tensor& t) {  // [N, C, H, W]
    if (t.dim() != 4) return false;
    int64_t expected = 1;
    for (int64_t d : {1, 3, 2, 0}) {
        if (t.size(d) != 1 && t.stride(d) != expected) return false;
        expected *= t.size(d);
    }
    return true;
}

// Contiguous wins where a tensor is both (one channel, one pixel).
inline MemoryFormat format_of(const Tensor& t) {
    return !t.is_contiguous() && is_channels_last(t) ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

inline Tensor empty_images(const Tensor& like, MemoryFormat format) {
    return torch::stable::empty(like.sizes(), like.scalar_type(), std::nullopt, like.device(), std::nullopt, format);
}

// The ops' Python face checks first, with better words; this guards direct calls.
inline void check_float(const Tensor& t, const char* name) {
    const ScalarType dtype = t.scalar_type();
    STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, name, ": got ",
                    torch::headeronly::toString(dtype), ", expected float32 or float64");
}

inline void check_images(const Tensor& t, const char* name) {
    check_float(t, name);
    STD_TORCH_CHECK(t.dim() == 4, name, ": got ", t.dim(), " dimensions, expected 4 (N, C, H, W)");
}

// Images that belong to x: of its dtype and shape, and made to have its layout.
inline std::optional<Tensor> checked_images(const std::optional<Tensor>& t, const Tensor& x, MemoryFormat format,
                                            const char* name) {
    if (!t.has_value()) return t;
    STD_TORCH_CHECK(t->scalar_type() == x.scalar_type(), name, ": expected the dtype of x");
    STD_TORCH_CHECK(t->sizes() == x.sizes(), name, ": expected the shape of x");
    return torch::stable::contiguous(*t, format);
}

// A parameter with a value per channel, of x's dtype.
inline std::optional<Tensor> checked_channels(const std::optional<Tensor>& t, int64_t channels, const Tensor& x,
                                              const char* name) {
    if (!t.has_value()) return t;
    STD_TORCH_CHECK(t->scalar_type() == x.scalar_type(), name, ": expected the dtype of x");
    STD_TORCH_CHECK(t->dim() == 1 && t->size(0) == channels, name, ": expected one value per channel");
    return torch::stable::contiguous(*t);
}

inline void check_statistics(const Tensor& t, int64_t channels, const char* name) {
    STD_TORCH_CHECK(t.scalar_type() == ScalarType::Double, name, ": expected float64");
    STD_TORCH_CHECK(t.is_contiguous() && t.numel() == channels, name, ": expected one value per channel");
}

inline Tensor channel_tensor(const Tensor& x, int64_t channels, ScalarType dtype) {
    return torch::stable::new_zeros(x, {channels}, dtype);
}

// Images that a kernel adds to where they lie.
inline void check_target(const Tensor& t, const Tensor& like, const char* name) {
    STD_TORCH_CHECK(t.scalar_type() == like.scalar_type(), name, ": got ", torch::headeronly::toString(t.scalar_type()),
                    ", expected ", torch::headeronly::toString(like.scalar_type()));
    STD_TORCH_CHECK(t.sizes() == like.sizes(), name, ": got another shape than what is added to it");
    STD_TORCH_CHECK(t.is_contiguous() || is_channels_last(t), name, ": expected contiguous or channels_last images");
}

}  // namespace zcpipe
