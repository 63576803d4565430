// Channels side by side as lanes of vector loops. Free of torch.
//
// An image is `count` elements in which a channel's values are `channels` apart: an NHWC sample, or one NCHW plane as
// an image of one channel. Element i belongs to lane i % width, where width is a multiple of `channels`, so that a lane
// never mixes channels and few channels still fill the vector registers. Sums over lanes are added in an order that
// depends on the shape alone, never on the instruction set or the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/simd.h"

namespace zcpipe {

constexpr int64_t kLanes = 64;  // enough to hide the latency of an addition

inline int64_t lane_width(int64_t channels) { return channels * ((kLanes + channels - 1) / channels); }

// Gives every lane its channel's value, in copies that double; `channels` may be the first lanes.
template <typename T>
inline void spread(T* lanes, const T* channels, int64_t n, int64_t width) {
    if (channels != lanes) std::copy_n(channels, n, lanes);
    for (int64_t filled = n; filled < width; filled *= 2)
        std::copy_n(lanes, std::min(filled, width - filled), lanes + filled);
}

// Adds up each channel's lanes in halves, spending the lanes.
inline void fold(double* channels, double* lanes, int64_t n, int64_t width) {
    for (int64_t groups = width / n; groups > 1; groups -= groups / 2) {
        const int64_t half = groups / 2 * n;
        const double* upper = lanes + groups * n - half;
#pragma omp simd
        for (int64_t l = 0; l < half; ++l) lanes[l] += upper[l];
    }
    std::copy_n(lanes, n, channels);
}

}  // namespace zcpipe
