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
using OptionalTensor = std::optional<Tensor>;

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

// New memory of x's device. torch::stable::new_empty goes through the dispatcher's boxes, which costs as much as the
// launch of a small kernel.
inline Tensor new_strided(const Tensor& x, torch::headeronly::IntHeaderOnlyArrayRef sizes, const int64_t* strides,
                          ScalarType dtype) {
    int32_t device = 0;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(x.get(), &device));
    const int32_t code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
    AtenTensorHandle made = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(int64_t(sizes.size()), sizes.data(), strides, code, device,
                                                           x.get_device_index(), &made));
    return Tensor(made);
}

inline Tensor new_vector(const Tensor& x, int64_t count, ScalarType dtype) {
    const int64_t one = 1;
    return new_strided(x, {&count, 1}, &one, dtype);
}

inline Tensor new_matrix(const Tensor& x, int64_t rows, int64_t columns, ScalarType dtype) {
    const int64_t sizes[] = {rows, columns}, strides[] = {columns, 1};
    return new_strided(x, {sizes, 2}, strides, dtype);
}

inline Tensor empty_images(const Tensor& like, MemoryFormat format) {
    if (like.dim() != 4)
        return torch::stable::empty(like.sizes(), like.scalar_type(), std::nullopt, like.device(), std::nullopt,
                                    format);
    const int64_t c = like.size(1), h = like.size(2), w = like.size(3);
    const int64_t rows[] = {c * h * w, h * w, w, 1}, pixels[] = {h * w * c, 1, w * c, c};
    return new_strided(like, like.sizes(), format == MemoryFormat::ChannelsLast ? pixels : rows, like.scalar_type());
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

inline void check_device(const Tensor& t, const Tensor& x, const char* name) {
    STD_TORCH_CHECK(t.device() == x.device(), name, ": expected the device of x");
}

// Images that belong to x: of its dtype and shape, and made to have its layout.
inline OptionalTensor checked_images(const OptionalTensor& t, const Tensor& x, MemoryFormat format, const char* name) {
    if (!t.has_value()) return t;
    STD_TORCH_CHECK(t->scalar_type() == x.scalar_type(), name, ": expected the dtype of x");
    STD_TORCH_CHECK(t->sizes() == x.sizes(), name, ": expected the shape of x");
    check_device(*t, x, name);
    return torch::stable::contiguous(*t, format);
}

// A parameter with a value per channel, of x's dtype.
inline OptionalTensor checked_channels(const OptionalTensor& t, int64_t channels, const Tensor& x, const char* name) {
    if (!t.has_value()) return t;
    STD_TORCH_CHECK(t->scalar_type() == x.scalar_type(), name, ": expected the dtype of x");
    STD_TORCH_CHECK(t->dim() == 1 && t->size(0) == channels, name, ": expected one value per channel");
    check_device(*t, x, name);
    return torch::stable::contiguous(*t);
}

template <typename T>
const T* data_or_null(const OptionalTensor& t) {
    return t.has_value() ? t->const_data_ptr<T>() : nullptr;
}

inline void check_statistics(const Tensor& t, int64_t channels, const Tensor& x, const char* name) {
    STD_TORCH_CHECK(t.scalar_type() == ScalarType::Double, name, ": expected float64");
    check_device(t, x, name);
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
    check_device(t, like, name);
    STD_TORCH_CHECK(t.is_contiguous() || is_channels_last(t), name, ": expected contiguous or channels_last images");
}

// The arguments of a convolution that is made with its batch norm.
inline void check_convolution(const Tensor& x, const Tensor& weight, int64_t stride, int64_t padding) {
    STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float, "x: got ", torch::headeronly::toString(x.scalar_type()),
                    ", expected float32");
    STD_TORCH_CHECK(x.dim() == 4, "x: got ", x.dim(), " dimensions, expected 4 (N, C, H, W)");
    STD_TORCH_CHECK(x.numel() > 0, "x: expected at least one element");
    STD_TORCH_CHECK(weight.scalar_type() == ScalarType::Float, "weight: expected the dtype of x");
    STD_TORCH_CHECK(
        weight.dim() == 4 && weight.size(1) == x.size(1) && weight.size(2) == weight.size(3) && weight.numel() > 0,
        "weight: expected (channels, channels of x, k, k)");
    check_device(weight, x, "weight");
    STD_TORCH_CHECK(stride == 1 || stride == 2, "stride: got ", stride, ", expected 1 or 2");
    STD_TORCH_CHECK(padding >= 0, "padding: got ", padding, ", expected 0 or more");
    STD_TORCH_CHECK(x.size(2) + 2 * padding >= weight.size(2) && x.size(3) + 2 * padding >= weight.size(2),
                    "weight: the kernel is larger than the padded image");
}

}  // namespace zcpipe
