// Tables of tensors that one launch works on, blocks numbered through. Free of torch.
#pragma once

#include "cuda/launch.h"

namespace zcpipe::gpu {

// The last of `count` entries whose first block is not after `block`; first[0] is 0, and `first` does not fall.
__device__ __forceinline__ uint32_t entry_of(const uint32_t* first, uint32_t count, uint32_t block) {
    uint32_t low = 0, high = count;  // it is in low .. high - 1
    while (high - low > 1) {
        const uint32_t middle = (low + high) / 2;
        if (first[middle] <= block)
            low = middle;
        else
            high = middle;
    }
    return low;
}

}  // namespace zcpipe::gpu
