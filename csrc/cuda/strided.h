// Indices that run over up to three dimensions of a tensor, whatever its strides. Free of torch.
#pragma once

#include "cuda/launch.h"

namespace zcpipe::gpu {

struct Dimension {
    int64_t size, step;
};

// Dimensions as one index, the first changing fastest. Neighbours that one step serves are merged, so that what lies
// in a row in memory needs no division.
struct Strided {
    uint32_t levels, sizes[2];  // of the first two levels
    int64_t steps[3];

    __device__ __forceinline__ int64_t at(uint32_t i) const {
        if (levels == 1) return i * steps[0];
        const uint32_t rest = i / sizes[0];
        const int64_t offset = i % sizes[0] * steps[0];
        if (levels == 2) return offset + rest * steps[1];
        return offset + rest % sizes[1] * steps[1] + rest / sizes[1] * steps[2];
    }

    static Strided of(const Dimension (&dimensions)[3]) {
        Dimension kept[3] = {{1, 0}};
        uint32_t levels = 0;
        for (const Dimension& d : dimensions) {
            if (d.size == 1) continue;
            if (levels > 0 && d.step == kept[levels - 1].size * kept[levels - 1].step)
                kept[levels - 1].size *= d.size;
            else
                kept[levels++] = d;
        }
        return {levels == 0 ? 1 : levels,
                {uint32_t(kept[0].size), uint32_t(kept[1].size)},
                {kept[0].step, kept[1].step, kept[2].step}};
    }

    // Whether groups of `size` neighbouring indices are neighbours in memory that never part.
    bool in_runs_of(int64_t size) const { return steps[0] == 1 && sizes[0] % size == 0 && outer_multiples_of(size); }
    bool multiples_of(int64_t size) const { return steps[0] % size == 0 && outer_multiples_of(size); }

  private:
    bool outer_multiples_of(int64_t size) const {
        return (levels < 2 || steps[1] % size == 0) && (levels < 3 || steps[2] % size == 0);
    }
};

}  // namespace zcpipe::gpu
