// torch's side of the Philox fills.

#include <torch/csrc/stable/library.h>

#include <vector>

#include "common/layout.h"
#include "cuda/device.h"
#include "cuda/philox.cuh"

namespace {

using namespace zcpipe;

StreamId stream(int64_t key, int64_t nonce) { return {uint64_t(key), uint64_t(nonce)}; }

void check_layout(const Tensor& out) {
    STD_TORCH_CHECK(out.is_contiguous() || is_channels_last(out), "out: got other strides, expected contiguous or ",
                    "channels_last");
}

void philox_bits_(const Tensor& out, int64_t key, int64_t nonce, int64_t first_block) {  // [n] int64
    STD_TORCH_CHECK(out.scalar_type() == ScalarType::Long, "out: got ", torch::headeronly::toString(out.scalar_type()),
                    ", expected int64");
    STD_TORCH_CHECK(out.dim() == 1 && out.is_contiguous(), "out: expected one dimension, contiguous");
    if (out.numel() == 0) return;
    const gpu::OnDeviceOf device(out);
    gpu::philox_bits(out.mutable_data_ptr<int64_t>(), stream(key, nonce), uint64_t(first_block), out.numel(),
                     device.stream());
}

template <typename T>
void normal_fill(const Tensor& out, StreamId id, cudaStream_t on) {
    T* const data = out.mutable_data_ptr<T>();
    if (out.is_contiguous()) return gpu::philox_normal(data, id, out.numel(), on);
    gpu::philox_normal_nhwc(data, id, gpu::images_of(out, MemoryFormat::ChannelsLast), on);
}

template <typename T>
void uniform_fill(const Tensor& out, StreamId id, cudaStream_t on) {
    T* const data = out.mutable_data_ptr<T>();
    if (out.is_contiguous()) return gpu::philox_uniform(data, id, out.numel(), on);
    gpu::philox_uniform_nhwc(data, id, gpu::images_of(out, MemoryFormat::ChannelsLast), on);
}

template <typename T>
void rademacher_fill(const Tensor& out, StreamId id, cudaStream_t on) {
    T* const data = out.mutable_data_ptr<T>();
    if (out.is_contiguous()) return gpu::philox_rademacher(data, id, out.numel(), on);
    gpu::philox_rademacher_nhwc(data, id, gpu::images_of(out, MemoryFormat::ChannelsLast), on);
}

void philox_normal_(const Tensor& out, int64_t key, int64_t nonce) {  // any shape
    check_float(out, "out");
    check_layout(out);
    if (out.numel() == 0) return;
    const gpu::OnDeviceOf device(out);
    if (out.scalar_type() == ScalarType::Float)
        normal_fill<float>(out, stream(key, nonce), device.stream());
    else
        normal_fill<double>(out, stream(key, nonce), device.stream());
}

void philox_uniform_(const Tensor& out, int64_t key, int64_t nonce) {  // any shape
    check_float(out, "out");
    check_layout(out);
    if (out.numel() == 0) return;
    const gpu::OnDeviceOf device(out);
    if (out.scalar_type() == ScalarType::Float)
        uniform_fill<float>(out, stream(key, nonce), device.stream());
    else
        uniform_fill<double>(out, stream(key, nonce), device.stream());
}

void philox_rademacher_(const Tensor& out, int64_t key, int64_t nonce) {  // any shape
    check_float(out, "out");
    check_layout(out);
    if (out.numel() == 0) return;
    const gpu::OnDeviceOf device(out);
    if (out.scalar_type() == ScalarType::Float)
        rademacher_fill<float>(out, stream(key, nonce), device.stream());
    else
        rademacher_fill<double>(out, stream(key, nonce), device.stream());
}

void philox_fills_(std::vector<Tensor> outs, std::vector<int64_t> keys, std::vector<int64_t> nonces,
                   std::vector<double> scales, bool normal) {
    STD_TORCH_CHECK(keys.size() == outs.size() && nonces.size() == outs.size() && scales.size() == outs.size(),
                    "outs: expected as many tensors as keys, nonces and scales");
    const gpu::OnDeviceOf device(outs[0]);
    std::vector<gpu::Fill> fills;
    for (size_t k = 0; k < outs.size(); ++k) {
        const Tensor& out = outs[k];
        check_float(out, "outs");
        STD_TORCH_CHECK(out.is_contiguous(), "outs: got other strides, expected contiguous");
        STD_TORCH_CHECK(out.device() == outs[0].device(), "outs: expected all tensors on one device");
        const bool is_double = out.scalar_type() == ScalarType::Double;
        void* const data =
            is_double ? static_cast<void*>(out.mutable_data_ptr<double>()) : out.mutable_data_ptr<float>();
        fills.push_back({data, stream(keys[k], nonces[k]), scales[k], uint64_t(out.numel()), is_double});
    }
    if (normal)
        gpu::philox_fills<true>(fills, device.stream());
    else
        gpu::philox_fills<false>(fills, device.stream());
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(zcpipe, CUDA, m) {
    m.impl("philox_bits_", TORCH_BOX(&philox_bits_));
    m.impl("philox_normal_", TORCH_BOX(&philox_normal_));
    m.impl("philox_uniform_", TORCH_BOX(&philox_uniform_));
    m.impl("philox_fills_", TORCH_BOX(&philox_fills_));
    m.impl("philox_rademacher_", TORCH_BOX(&philox_rademacher_));
}
