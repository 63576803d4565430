// torch's side of sign_codes and hamming_distances.

#include <torch/csrc/stable/library.h>

#include "common/layout.h"
#include "cuda/codes.cuh"
#include "cuda/device.h"

namespace {

using namespace zcpipe;

Tensor sign_codes(const Tensor& x_any) {  // [N, ...] of F elements each -> [N, ceil(F / 64)]
    check_float(x_any, "x");
    STD_TORCH_CHECK(x_any.dim() >= 2, "x: got ", x_any.dim(), " dimensions, expected 2 or more");
    const gpu::OnDeviceOf device(x_any);
    const MemoryFormat format = format_of(x_any);
    const Tensor x = torch::stable::contiguous(x_any, format);
    const int64_t samples = x.size(0);
    int64_t size = 1;
    for (int64_t d = 1; d < x.dim(); ++d) size *= x.size(d);
    Tensor codes = torch::stable::new_empty(x, {samples, (size + 63) / 64}, ScalarType::Long);
    if (x.numel() == 0) return codes;  // without samples or without words
    const bool interleaved = format == MemoryFormat::ChannelsLast;
    const int64_t channels = interleaved ? x.size(1) : 1, pixels = size / channels;
    auto* to = reinterpret_cast<uint64_t*>(codes.mutable_data_ptr<int64_t>());
    if (x.scalar_type() == ScalarType::Float)
        gpu::sign_codes(to, x.const_data_ptr<float>(), samples, channels, pixels, interleaved, device.stream());
    else
        gpu::sign_codes(to, x.const_data_ptr<double>(), samples, channels, pixels, interleaved, device.stream());
    return codes;
}

Tensor hamming_distances(const Tensor& codes_any) {  // [N, W] -> [N, N]
    STD_TORCH_CHECK(codes_any.scalar_type() == ScalarType::Long, "codes: got ",
                    torch::headeronly::toString(codes_any.scalar_type()), ", expected int64");
    STD_TORCH_CHECK(codes_any.dim() == 2, "codes: got ", codes_any.dim(), " dimensions, expected 2");
    const gpu::OnDeviceOf device(codes_any);
    const Tensor codes = torch::stable::contiguous(codes_any);
    const int64_t samples = codes.size(0), words = codes.size(1);
    Tensor out = torch::stable::new_zeros(codes, {samples, samples}, ScalarType::Long);
    if (codes.numel() == 0) return out;
    gpu::hamming_distances(out.mutable_data_ptr<int64_t>(),
                           reinterpret_cast<const uint64_t*>(codes.const_data_ptr<int64_t>()), samples, words,
                           device.stream());
    return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(zcpipe, CUDA, m) {
    m.impl("sign_codes", TORCH_BOX(&sign_codes));
    m.impl("hamming_distances", TORCH_BOX(&hamming_distances));
}
