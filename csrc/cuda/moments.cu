// torch's side of covariance and cross_moment. Maps are read where they lie, whatever their strides.

#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "common/layout.h"
#include "cuda/device.h"
#include "cuda/moments.cuh"

namespace {

using namespace zcpipe;

void check_rows(const Tensor& x, const char* name) {
    check_float(x, name);
    STD_TORCH_CHECK(x.dim() == 2 || x.dim() == 4, name, ": got ", x.dim(), " dimensions, expected 2 or 4");
}

template <typename T>
gpu::Side<T> side_of(const Tensor& x, int64_t fold) {
    gpu::Map map = {x.size(0), x.size(1), 1, 1, x.stride(0), x.stride(1), 0, 0};
    if (x.dim() == 4)
        map = {x.size(0), x.size(1), x.size(2), x.size(3), x.stride(0), x.stride(1), x.stride(2), x.stride(3)};
    return gpu::Side<T>::of(x.const_data_ptr<T>(), map, fold);
}

Tensor scratch_for(const Tensor& out, int64_t count) {
    return new_vector(out, gpu::moments_scratch(count, out.size(0), out.size(1)), ScalarType::Double);
}

template <typename T>
void covariance_of(const Tensor& out, const Tensor& x, cudaStream_t stream) {
    const auto side = side_of<T>(x, 1);
    const Tensor scratch = scratch_for(out, side.count);
    gpu::covariance(out.mutable_data_ptr<double>(), scratch.mutable_data_ptr<double>(), side, stream);
}

template <typename T>
void cross_moment_of(const Tensor& out, const Tensor& a, const Tensor& b, int64_t fold, cudaStream_t stream) {
    const auto left = side_of<T>(a, fold), right = side_of<T>(b, 1);
    const Tensor scratch = scratch_for(out, left.count);
    gpu::cross_moment(out.mutable_data_ptr<double>(), scratch.mutable_data_ptr<double>(), left, right, stream);
}

Tensor covariance(const Tensor& x) {  // [N, C, H, W] or [R, C] -> [C, C]
    check_rows(x, "x");
    const gpu::OnDeviceOf device(x);
    const int64_t channels = x.size(1);
    Tensor out = new_matrix(x, channels, channels, ScalarType::Double);
    if (channels == 0) return out;
    STD_TORCH_CHECK(x.numel() > 0, "x: expected at least one position");
    if (x.scalar_type() == ScalarType::Float)
        covariance_of<float>(out, x, device.stream());
    else
        covariance_of<double>(out, x, device.stream());
    return out;
}

// [R, Ca], [R, Cb] -> [Ca, Cb]; [N, Ca, fold H, fold W], [N, Cb, H, W] -> [fold fold Ca, Cb]
Tensor cross_moment(const Tensor& a, const Tensor& b) {
    check_rows(a, "a");
    check_rows(b, "b");
    STD_TORCH_CHECK(b.dim() == a.dim(), "b: expected as many dimensions as a");
    STD_TORCH_CHECK(b.scalar_type() == a.scalar_type(), "b: expected the dtype of a");
    STD_TORCH_CHECK(b.device() == a.device(), "b: expected the device of a");
    STD_TORCH_CHECK(b.size(0) == a.size(0), "b: expected the rows of a");
    const bool images = a.dim() == 4;
    const int64_t fold = images ? a.size(2) / std::max<int64_t>(1, b.size(2)) : 1;
    STD_TORCH_CHECK(!images || (a.size(2) == fold * b.size(2) && a.size(3) == fold * b.size(3)),
                    "a: expected an integer multiple of b's resolution");
    const gpu::OnDeviceOf device(a);
    Tensor out = new_matrix(a, fold * fold * a.size(1), b.size(1), ScalarType::Double);
    if (out.numel() == 0) return out;
    STD_TORCH_CHECK(a.numel() > 0 && b.numel() > 0, "a: expected at least one row");
    if (a.scalar_type() == ScalarType::Float)
        cross_moment_of<float>(out, a, b, fold, device.stream());
    else
        cross_moment_of<double>(out, a, b, fold, device.stream());
    return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(zcpipe, CUDA, m) {
    m.impl("covariance", TORCH_BOX(&covariance));
    m.impl("cross_moment", TORCH_BOX(&cross_moment));
}
