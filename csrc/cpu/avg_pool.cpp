// Average pooling 3x3, stride 1, padding 1, padding not counted.
//
// The mean over a clipped 3x3 window is the mean over three rows of the means over three columns, so the op is a pair
// of three-term sums, each weighted by 1 / (number of terms inside the image). The forward weights by the size of the
// window that is written; its transpose, the backward, by the size of the windows that are read. NCHW is handled as
// N C images of one channel: the same loops, with neighbouring pixels one element apart.

#include <torch/csrc/stable/library.h>

#include <vector>

#include "common/layout.h"
#include "common/simd.h"

namespace {

using namespace zcpipe;

constexpr int64_t kGrain = 1 << 15;  // elements: less is not worth a second thread

struct Image {
    int64_t height, width, channels;
};

enum class Direction { kForward, kBackward };

// 1 / (how many of i - 1, i, i + 1 lie in 0 .. n - 1).
template <typename T>
ZCPIPE_INLINE T share(int64_t i, int64_t n) {
    return T(1) / T((i > 0) + 1 + (i < n - 1));
}

// `sums` holds one row of column sums between two margins of zeros; `zeros` is a row of them.
template <Direction kDirection, bool kOnto, typename T>
ZCPIPE_INLINE void pool_image(T* out, const T* in, T* sums, const T* zeros, Image image) {
    constexpr bool kForward = kDirection == Direction::kForward;
    const int64_t H = image.height, W = image.width, C = image.channels, row = W * C;
    // The left edge, the inside and the right edge of a row have a column share each.
    const int64_t bounds[4] = {0, std::min(C, row), std::max(C, row - C), row};
    const T shares[3] = {share<T>(0, W), T(1) / T(3), share<T>(W - 1, W)};
    T* middle = sums + C;
    for (int64_t h = 0; h < H; ++h) {
        const T* here = in + h * row;
        const T* above = h > 0 ? here - row : zeros;
        const T* below = h < H - 1 ? here + row : zeros;
        const T b = share<T>(h, H);
        const T a = kForward ? b : share<T>(h - 1, H), c = kForward ? b : share<T>(h + 1, H);
        for (int s = 0; s < 3; ++s) {
            const T column = kForward ? T(1) : shares[s];
#pragma omp simd
            for (int64_t i = bounds[s]; i < bounds[s + 1]; ++i)
                middle[i] = (above[i] * a + here[i] * b + below[i] * c) * column;
        }
        T* to = out + h * row;
        for (int s = 0; s < 3; ++s) {
            const T column = kForward ? shares[s] : T(1);
#pragma omp simd
            for (int64_t i = bounds[s]; i < bounds[s + 1]; ++i) {
                const T mean = (middle[i - C] + middle[i] + middle[i + C]) * column;
                to[i] = kOnto ? to[i] + mean : mean;
            }
        }
    }
}

#define ZCPIPE_POOL_KERNELS(T)                                                                          \
    ZCPIPE_CLONES void forward(T* out, const T* in, T* sums, const T* zeros, Image image, bool onto) {  \
        onto ? pool_image<Direction::kForward, true>(out, in, sums, zeros, image)                       \
             : pool_image<Direction::kForward, false>(out, in, sums, zeros, image);                     \
    }                                                                                                   \
    ZCPIPE_CLONES void backward(T* out, const T* in, T* sums, const T* zeros, Image image, bool onto) { \
        onto ? pool_image<Direction::kBackward, true>(out, in, sums, zeros, image)                      \
             : pool_image<Direction::kBackward, false>(out, in, sums, zeros, image);                    \
    }

ZCPIPE_POOL_KERNELS(float)
ZCPIPE_POOL_KERNELS(double)

template <typename T>
void pool(const Tensor& out, const Tensor& in, Direction direction, bool onto, bool channels_last) {
    const int64_t channels = channels_last ? in.size(1) : 1;
    const Image image = {in.size(2), in.size(3), channels};
    const int64_t row = image.width * channels, size = image.height * row;
    const T* from = in.const_data_ptr<T>();
    T* to = out.mutable_data_ptr<T>();
    torch::stable::parallel_for(0, in.numel() / size, kGrain / size + 1, [&](int64_t begin, int64_t end) {
        std::vector<T> sums(row + 2 * channels), zeros(row);
        for (int64_t i = begin; i < end; ++i) {
            if (direction == Direction::kForward)
                forward(to + i * size, from + i * size, sums.data(), zeros.data(), image, onto);
            else
                backward(to + i * size, from + i * size, sums.data(), zeros.data(), image, onto);
        }
    });
}

void pool_into(const Tensor& out, const Tensor& in, Direction direction, bool onto, MemoryFormat format) {
    if (in.numel() == 0) return;
    const bool channels_last = format == MemoryFormat::ChannelsLast;
    if (in.scalar_type() == ScalarType::Float)
        pool<float>(out, in, direction, onto, channels_last);
    else
        pool<double>(out, in, direction, onto, channels_last);
}

Tensor pool_any(const Tensor& x, Direction direction) {
    const MemoryFormat format = format_of(x);
    const Tensor in = torch::stable::contiguous(x, format);
    Tensor out = empty_images(in, format);
    pool_into(out, in, direction, false, format);
    return out;
}

void pool_onto(const Tensor& x, const Tensor& total, Direction direction) {
    const MemoryFormat format = format_of(total);
    check_target(total, x, "total");
    STD_TORCH_CHECK(total.data_ptr() != x.data_ptr(), "total: is what is added to it; expected memory of its own");
    pool_into(total, torch::stable::contiguous(x, format), direction, true, format);
}

Tensor avg_pool3x3(const Tensor& x) {  // [N, C, H, W]
    check_images(x, "x");
    return pool_any(x, Direction::kForward);
}

Tensor avg_pool3x3_backward(const Tensor& grad) {  // [N, C, H, W]
    check_images(grad, "grad");
    return pool_any(grad, Direction::kBackward);
}

void avg_pool3x3_onto(const Tensor& x, const Tensor& total) {  // [N, C, H, W] both
    check_images(x, "x");
    pool_onto(x, total, Direction::kForward);
}

void avg_pool3x3_backward_onto(const Tensor& grad, const Tensor& total) {  // [N, C, H, W] both
    check_images(grad, "grad");
    pool_onto(grad, total, Direction::kBackward);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(zcpipe, CPU, m) {
    m.impl("avg_pool3x3", TORCH_BOX(&avg_pool3x3));
    m.impl("avg_pool3x3_backward", TORCH_BOX(&avg_pool3x3_backward));
    m.impl("avg_pool3x3_onto", TORCH_BOX(&avg_pool3x3_onto));
    m.impl("avg_pool3x3_backward_onto", TORCH_BOX(&avg_pool3x3_backward_onto));
}
