// What the ops of a convolution with batch normalisation share: their arguments' checks, and the batches as images.
#pragma once

#include <torch/csrc/stable/library.h>

#include "common/layout.h"
#include "cpu/conv.h"
#include "cpu/conv_tiles.h"
#include "cpu/norm.h"

namespace zcpipe {

constexpr int64_t kGrain = 1 << 21;  // multiply-accumulates: less is not worth a second thread

// A convolution with the batches that enter and leave it.
struct Layer {
    Convolution convolution;
    Images in, out;

    Layer(const Tensor& x, const Tensor& weight, int64_t stride, int64_t padding)
        : convolution{x.size(1), weight.size(0), x.size(2), x.size(3), weight.size(2), stride, padding},
          in{x.size(0), x.size(1), x.size(2) * x.size(3), false},
          out{x.size(0), weight.size(0), convolution.out_height() * convolution.out_width(), false} {}

    // Calls f(begin, end) for ranges of images.
    template <typename F>
    void for_ranges(int64_t first, const F& f) const {
        const int64_t kernel = convolution.kernel * convolution.kernel;
        const int64_t work = out.size() * in.channels * kernel + 1;
        torch::stable::parallel_for(first, in.samples, kGrain / work + 1, f);
    }

    Tensor empty_output(const Tensor& x) const {
        const int64_t shape[] = {out.samples, out.channels, convolution.out_height(), convolution.out_width()};
        return torch::stable::empty(torch::headeronly::IntHeaderOnlyArrayRef(shape, 4), ScalarType::Float, std::nullopt,
                                    x.device(), std::nullopt, MemoryFormat::ChannelsLast);
    }
};

// Where a result like `like` is added.
inline float* target_of(const Tensor& total, const Tensor& like, const char* name = "total") {
    check_target(total, like, name);
    STD_TORCH_CHECK(is_channels_last(total), name, ": expected channels_last images");
    return total.mutable_data_ptr<float>();
}

}  // namespace zcpipe
