// torch's side of null: checks, allocation, stream, registration.

#include <torch/csrc/stable/library.h>

#include "common/layout.h"
#include "cuda/device.h"
#include "cuda/null.cuh"

namespace {

using namespace zcpipe;

Tensor null(const Tensor& x) {  // any shape
    check_float(x, "x");
    const MemoryFormat format = format_of(x);
    const gpu::OnDeviceOf device(x);
    const Tensor in = torch::stable::contiguous(x, format);
    Tensor out = empty_images(in, format);
    if (in.numel() == 0) return out;  // a launch without blocks is an error
    if (in.scalar_type() == ScalarType::Float)
        gpu::null(out.mutable_data_ptr<float>(), in.const_data_ptr<float>(), in.numel(), device.stream());
    else
        gpu::null(out.mutable_data_ptr<double>(), in.const_data_ptr<double>(), in.numel(), device.stream());
    return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(zcpipe, CUDA, m) { m.impl("null", TORCH_BOX(&null)); }
