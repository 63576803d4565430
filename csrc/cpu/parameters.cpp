// Statistics of the parameters of all layers in one call, for the proxies that read weights and their gradients.
//
// Each tensor is read once, in its logical order: tiles of it where they lie, or copied to the first cache where it is
// not contiguous. The order of every sum depends on the shape alone, never on the strides, the instruction set or the
// number of threads.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "common/lanes.h"
#include "common/layout.h"
#include "common/simd.h"

namespace {

using namespace zcpipe;

constexpr int64_t kGrain = 1 << 15;  // elements: less is not worth a second thread
constexpr int64_t kChunk = 1 << 14;  // elements that have sums of their own
constexpr int64_t kTile = 1 << 10;   // elements, in the first cache
constexpr int64_t kRun = 16;         // elements copied in a row
constexpr int64_t kStatistics = 4;   // sums of g g, g w, |g w| and w w

static_assert(kChunk % kTile == 0 && kTile % (2 * kLanes) == 0);

// A tensor's elements in logical order, whatever its strides.
template <typename T>
class Elements {
  public:
    explicit Elements(const Tensor& t) : data_(t.const_data_ptr<T>()), dimensions_{{1, 0}} {
        for (int64_t d = 0; d < t.dim(); ++d) {
            if (t.size(d) == 1) continue;
            Dimension& last = dimensions_.back();
            if (dimensions_.size() > 1 && last.stride == t.size(d) * t.stride(d))
                last = {last.size * t.size(d), t.stride(d)};
            else
                dimensions_.push_back({t.size(d), t.stride(d)});
        }
        if (dimensions_.size() == 1) dimensions_.push_back({1, 1});
    }

    // Elements begin .. begin + count: where they lie, or in `buffer`.
    const T* tile(T* buffer, int64_t begin, int64_t count) const {
        const Dimension column = dimensions_.back(), row = dimensions_[dimensions_.size() - 2];
        if (dimensions_.size() == 2 && column.stride == 1) return data_ + begin;
        for (int64_t i = 0; i < count;) {
            const int64_t r = (begin + i) / column.size, c = (begin + i) % column.size;
            const int64_t columns = std::min(column.size - c, count - i);
            const int64_t rows = columns < column.size ? 1 : std::min((count - i) / columns, row.size - r % row.size);
            copy(buffer + i, row_start(r) + c * column.stride, {rows, row.stride}, {columns, column.stride});
            i += rows * columns;
        }
        return buffer;
    }

  private:
    struct Dimension {
        int64_t size, stride;
    };

    const T* row_start(int64_t r) const {
        int64_t offset = 0;
        for (size_t d = dimensions_.size() - 1; d-- > 0;) {
            offset += r % dimensions_[d].size * dimensions_[d].stride;
            r /= dimensions_[d].size;
        }
        return data_ + offset;
    }

    // Reads along the smaller stride, few elements at a time, which keeps a strided write in few lines.
    static void copy(T* to, const T* from, Dimension row, Dimension column) {
        const bool by_column = row.stride < column.stride;
        const int64_t row_step = column.size;
        const Dimension inner = by_column ? row : column, outer = by_column ? column : row;
        const int64_t inner_step = by_column ? row_step : 1, outer_step = by_column ? 1 : row_step;
        for (int64_t first = 0; first < inner.size; first += kRun) {
            const int64_t n = std::min(kRun, inner.size - first);
            for (int64_t o = 0; o < outer.size; ++o) {
                T* t = to + first * inner_step + o * outer_step;
                const T* f = from + first * inner.stride + o * outer.stride;
                for (int64_t i = 0; i < n; ++i) t[i * inner_step] = f[i * inner.stride];
            }
        }
    }

    const T* data_;
    std::vector<Dimension> dimensions_;  // neighbours that one stride serves are one; two at least
};

// Two rows of lanes at a time, because loading and storing the sums would cost more than the adding.
template <typename T>
ZCPIPE_INLINE void statistic_lanes(double* sums, const T* w, const T* g, int64_t count) {
    double *gg = sums, *gw = sums + kLanes, *magnitude = sums + 2 * kLanes, *ww = sums + 3 * kLanes;
    int64_t i = 0;
    for (; i + 2 * kLanes <= count; i += 2 * kLanes) {
        const T *w0 = w + i, *w1 = w0 + kLanes, *g0 = g + i, *g1 = g0 + kLanes;
#pragma omp simd
        for (int64_t l = 0; l < kLanes; ++l) {
            const double v0 = double(w0[l]), v1 = double(w1[l]), d0 = double(g0[l]), d1 = double(g1[l]);
            const double p0 = d0 * v0, p1 = d1 * v1;
            gg[l] += d0 * d0 + d1 * d1;
            gw[l] += p0 + p1;
            magnitude[l] += std::abs(p0) + std::abs(p1);
            ww[l] += v0 * v0 + v1 * v1;
        }
    }
    for (; i < count; i += kLanes) {
        const int64_t n = std::min(kLanes, count - i);
#pragma omp simd
        for (int64_t l = 0; l < n; ++l) {
            const double v = double(w[i + l]), d = double(g[i + l]), p = d * v;
            gg[l] += d * d;
            gw[l] += p;
            magnitude[l] += std::abs(p);
            ww[l] += v * v;
        }
    }
}

ZCPIPE_CLONES void add_statistics(double* sums, const float* w, const float* g, int64_t count) {
    statistic_lanes(sums, w, g, count);
}
ZCPIPE_CLONES void add_statistics(double* sums, const double* w, const double* g, int64_t count) {
    statistic_lanes(sums, w, g, count);
}

// Elements begin .. end of a pair of tensors.
struct Chunk {
    size_t pair;
    int64_t begin, end;
};

template <typename T>
void chunk_statistics(double* out, const Tensor& weight, const Tensor& grad, const Chunk& chunk) {
    const Elements<T> w(weight), g(grad);
    T w_buffer[kTile], g_buffer[kTile];
    double lanes[kStatistics * kLanes] = {};
    for (int64_t i = chunk.begin; i < chunk.end; i += kTile) {
        const int64_t n = std::min(kTile, chunk.end - i);
        add_statistics(lanes, w.tile(w_buffer, i, n), g.tile(g_buffer, i, n), n);
    }
    for (int64_t s = 0; s < kStatistics; ++s) fold(out + s, lanes + s * kLanes, 1, kLanes);
}

void check_pair(const Tensor& weight, const Tensor& grad) {
    check_float(weight, "weights");
    STD_TORCH_CHECK(grad.scalar_type() == weight.scalar_type(), "grads: expected the dtypes of weights");
    STD_TORCH_CHECK(grad.sizes() == weight.sizes(), "grads: expected the shapes of weights");
}

Tensor parameter_statistics(std::vector<Tensor> weights, std::vector<Tensor> grads) {  // -> [n, 4]
    STD_TORCH_CHECK(!weights.empty(), "weights: expected at least one tensor");
    STD_TORCH_CHECK(grads.size() == weights.size(), "grads: expected as many tensors as weights");
    Tensor out = torch::stable::new_zeros(weights[0], {int64_t(weights.size()), kStatistics}, ScalarType::Double);
    std::vector<Chunk> chunks;
    int64_t elements = 0;
    for (size_t k = 0; k < weights.size(); ++k) {
        check_pair(weights[k], grads[k]);
        const int64_t count = weights[k].numel();
        for (int64_t i = 0; i < count; i += kChunk) chunks.push_back({k, i, std::min(count, i + kChunk)});
        elements += count;
    }
    if (elements == 0) return out;

    const int64_t count = int64_t(chunks.size());
    std::vector<double> sums(count * kStatistics);
    torch::stable::parallel_for(0, count, kGrain * count / elements + 1, [&](int64_t begin, int64_t end) {
        for (int64_t k = begin; k < end; ++k) {
            const Tensor &w = weights[chunks[k].pair], &g = grads[chunks[k].pair];
            if (w.scalar_type() == ScalarType::Float)
                chunk_statistics<float>(&sums[k * kStatistics], w, g, chunks[k]);
            else
                chunk_statistics<double>(&sums[k * kStatistics], w, g, chunks[k]);
        }
    });
    double* rows = out.mutable_data_ptr<double>();
    for (int64_t k = 0; k < count; ++k)
        for (int64_t s = 0; s < kStatistics; ++s)
            rows[int64_t(chunks[k].pair) * kStatistics + s] += sums[k * kStatistics + s];
    return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(zcpipe, CPU, m) { m.impl("parameter_statistics", TORCH_BOX(&parameter_statistics)); }
