// torch's side of product_sums.

#include <torch/csrc/stable/library.h>

#include "common/layout.h"
#include "cuda/device.h"
#include "cuda/product_sums.cuh"
#include "cuda/product_sums.h"

namespace zcpipe::gpu {

Tensor product_sums_of(const Tensor& z_any, const Tensor& dz_any) {
    check_float(z_any, "z");
    const int64_t dimensions = z_any.dim();
    STD_TORCH_CHECK(dimensions >= 2 && dimensions <= 4, "z: got ", dimensions, " dimensions, expected 2, 3 or 4");
    STD_TORCH_CHECK(dz_any.scalar_type() == z_any.scalar_type(), "dz: expected the dtype of z");
    STD_TORCH_CHECK(dz_any.sizes() == z_any.sizes(), "dz: expected the shape of z");
    STD_TORCH_CHECK(dz_any.device() == z_any.device(), "dz: expected the device of z");
    const OnDeviceOf device(z_any);
    const MemoryFormat format = format_of(z_any);
    const Tensor z = torch::stable::contiguous(z_any, format), dz = torch::stable::contiguous(dz_any, format);
    const int64_t samples = z.size(0), channels = z.size(dimensions == 3 ? 2 : 1);
    if (z.numel() == 0) return torch::stable::new_zeros(z, {samples, channels}, ScalarType::Double);
    Tensor out = new_matrix(z, samples, channels, ScalarType::Double);
    const bool interleaved = dimensions < 4 || format == MemoryFormat::ChannelsLast;
    const int64_t pixels = z.numel() / (samples * channels);
    double* to = out.mutable_data_ptr<double>();
    if (z.scalar_type() == ScalarType::Float)
        product_sums(to, z.const_data_ptr<float>(), dz.const_data_ptr<float>(), samples, channels, pixels, interleaved,
                     device.stream());
    else
        product_sums(to, z.const_data_ptr<double>(), dz.const_data_ptr<double>(), samples, channels, pixels,
                     interleaved, device.stream());
    return out;
}

}  // namespace zcpipe::gpu

STABLE_TORCH_LIBRARY_IMPL(zcpipe, CUDA, m) { m.impl("product_sums", TORCH_BOX(&zcpipe::gpu::product_sums_of)); }
