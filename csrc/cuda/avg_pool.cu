// torch's side of avg_pool3x3 and its backward.

#include <torch/csrc/stable/library.h>

#include "common/layout.h"
#include "cuda/avg_pool.cuh"
#include "cuda/device.h"

namespace {

using namespace zcpipe;
using gpu::PoolDirection;

template <PoolDirection kDirection>
Tensor pool(const Tensor& x) {
    const MemoryFormat format = format_of(x);
    const gpu::OnDeviceOf device(x);
    const Tensor in = torch::stable::contiguous(x, format);
    Tensor out = empty_images(in, format);
    if (in.numel() == 0) return out;
    const gpu::Images shape = gpu::images_of(in, format);
    if (in.scalar_type() == ScalarType::Float)
        gpu::avg_pool3x3<kDirection>(out.mutable_data_ptr<float>(), in.const_data_ptr<float>(), shape, device.stream());
    else
        gpu::avg_pool3x3<kDirection>(out.mutable_data_ptr<double>(), in.const_data_ptr<double>(), shape,
                                     device.stream());
    return out;
}

Tensor avg_pool3x3(const Tensor& x) {  // [N, C, H, W]
    check_images(x, "x");
    return pool<PoolDirection::kForward>(x);
}

Tensor avg_pool3x3_backward(const Tensor& grad) {  // [N, C, H, W]
    check_images(grad, "grad");
    return pool<PoolDirection::kBackward>(grad);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(zcpipe, CUDA, m) {
    m.impl("avg_pool3x3", TORCH_BOX(&avg_pool3x3));
    m.impl("avg_pool3x3_backward", TORCH_BOX(&avg_pool3x3_backward));
}
