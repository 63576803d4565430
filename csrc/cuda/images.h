// The shape of images in either layout, for the functions that launch kernels. Free of torch.
#pragma once

#include <cstdint>

namespace zcpipe::gpu {

struct Images {
    int64_t samples, channels, height, width;
    bool channels_last;

    int64_t pixels() const { return height * width; }
    int64_t numel() const { return samples * channels * height * width; }
};

}  // namespace zcpipe::gpu
