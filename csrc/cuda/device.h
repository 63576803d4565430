// What the ops' torch side shares: the device and the stream that a tensor's kernels run on.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#include "common/layout.h"
#include "cuda/images.h"

namespace zcpipe::gpu {

// Makes the tensor's device the current one while it lives, and names the stream that torch uses there.
class OnDeviceOf {
  public:
    explicit OnDeviceOf(const Tensor& t)
        : guard_(t.get_device_index()), stream_(torch::stable::accelerator::getCurrentStream(t.get_device_index())) {}

    cudaStream_t stream() const { return static_cast<cudaStream_t>(stream_.nativeHandle()); }

  private:
    torch::stable::accelerator::DeviceGuard guard_;
    torch::stable::accelerator::Stream stream_;
};

inline Images images_of(const Tensor& t, MemoryFormat format) {  // [N, C, H, W]
    return {t.size(0), t.size(1), t.size(2), t.size(3), format == MemoryFormat::ChannelsLast};
}

}  // namespace zcpipe::gpu
