// torch's side of avg_pool3x3 and its backward.

#include <torch/csrc/stable/library.h>

#include "common/layout.h"
#include "cuda/avg_pool.cuh"
#include "cuda/device.h"

namespace {

using namespace zcpipe;
using gpu::PoolDirection;

// Both of one layout and not empty.
template <PoolDirection kDirection>
void launch_pool(const Tensor& out, const Tensor& in, bool onto, MemoryFormat format) {
    const gpu::OnDeviceOf device(in);
    const gpu::Images shape = gpu::images_of(in, format);
    if (in.scalar_type() == ScalarType::Float)
        gpu::avg_pool3x3<kDirection>(out.mutable_data_ptr<float>(), in.const_data_ptr<float>(), onto, shape,
                                     device.stream());
    else
        gpu::avg_pool3x3<kDirection>(out.mutable_data_ptr<double>(), in.const_data_ptr<double>(), onto, shape,
                                     device.stream());
}

template <PoolDirection kDirection>
Tensor pool(const Tensor& x) {
    const MemoryFormat format = format_of(x);
    const Tensor in = torch::stable::contiguous(x, format);
    Tensor out = empty_images(in, format);
    if (in.numel() > 0) launch_pool<kDirection>(out, in, false, format);
    return out;
}

template <PoolDirection kDirection>
void pool_onto(const Tensor& x, const Tensor& total) {
    check_target(total, x, "total");
    const MemoryFormat format = format_of(total);
    if (x.numel() > 0) launch_pool<kDirection>(total, torch::stable::contiguous(x, format), true, format);
}

Tensor avg_pool3x3(const Tensor& x) {  // [N, C, H, W]
    check_images(x, "x");
    return pool<PoolDirection::kForward>(x);
}

Tensor avg_pool3x3_backward(const Tensor& grad) {  // [N, C, H, W]
    check_images(grad, "grad");
    return pool<PoolDirection::kBackward>(grad);
}

void avg_pool3x3_onto(const Tensor& x, const Tensor& total) {  // [N, C, H, W]
    check_images(x, "x");
    pool_onto<PoolDirection::kForward>(x, total);
}

void avg_pool3x3_backward_onto(const Tensor& grad, const Tensor& total) {  // [N, C, H, W]
    check_images(grad, "grad");
    pool_onto<PoolDirection::kBackward>(grad, total);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(zcpipe, CUDA, m) {
    m.impl("avg_pool3x3", TORCH_BOX(&avg_pool3x3));
    m.impl("avg_pool3x3_backward", TORCH_BOX(&avg_pool3x3_backward));
    m.impl("avg_pool3x3_onto", TORCH_BOX(&avg_pool3x3_onto));
    m.impl("avg_pool3x3_backward_onto", TORCH_BOX(&avg_pool3x3_backward_onto));
}
