// Second moments over positions: the covariance of channels, the cross moment of two sets of columns.
//
// Memory is read once, tile by tile: a tile of rows is written as panels of doubles that stay in the first cache, and
// the sums of its outer products and of its columns are taken from there. The order of every sum depends on the shape
// alone, never on the layout, the instruction set or the number of threads.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <bit>
#include <type_traits>
#include <vector>

#include "common/buffer.h"
#include "common/layout.h"
#include "common/simd.h"
#include "cpu/panels.h"

namespace {

using namespace zcpipe;
using Doubles = std::vector<double>;

constexpr int64_t kTileDoubles = 4096;  // of all panels of a tile: two thirds of a first cache
constexpr int64_t kPackedRows = 16;
constexpr int64_t kChunkRows = 2048;    // at least this many rows for each thread
constexpr int64_t kChunkMost = 8;       // chunks: each has sums of its own
constexpr int64_t kRowsPerChannel = 4;  // in a chunk, so that adding up chunks is little of the work

// A deviation in double precision, for float32 data rounded to 26 bits: the product of two is exact then, which lets
// add_products fuse. The rounding is at most 2^-27 of the deviation, an eighth of what float32 itself rounds off.
template <typename T>
ZCPIPE_INLINE double deviation(T x, double origin) {
    const double d = double(x) - origin;
    if constexpr (std::is_same_v<T, double>) return d;
    constexpr uint64_t kUnit = uint64_t{1} << 27;  // of the last bit that stays
    return std::bit_cast<double>((std::bit_cast<uint64_t>(d) + kUnit / 2) & ~(kUnit - 1));
}

// Rows with their columns side by side, `columns` apart. Few rows at a time, so that memory is read in its order and
// yet the loop over rows is worth its start.
template <bool kShift, typename T>
ZCPIPE_INLINE void pack_rows(double* panels, int64_t stride, const T* x, const double* origin, int64_t rows,
                             int64_t columns) {
    const auto value = [&](int64_t t, int64_t c) {
        const T v = x[t * columns + c];
        return kShift ? deviation(v, origin[c]) : double(v);
    };
    const int64_t full = columns / kPanel * kPanel;
    for (int64_t first = 0; first < rows; first += kPackedRows) {
        const int64_t last = std::min(rows, first + kPackedRows);
        for (int64_t c = 0; c < full; c += kPanel) {
            double* to = panels + c / kPanel * stride;
            for (int64_t t = first; t < last; ++t) {
#pragma omp simd
                for (int64_t l = 0; l < kPanel; ++l) to[t * kPanel + l] = value(t, c + l);
            }
        }
        double* to = panels + full / kPanel * stride;
        for (int64_t t = first; t < last; ++t)
            for (int64_t c = full; c < columns; ++c) to[t * kPanel + c - full] = value(t, c);
    }
}

// Rows whose columns are planes of `pixels` elements.
template <typename T>
ZCPIPE_INLINE void pack_planes(double* panels, int64_t stride, const T* x, const double* origin, int64_t rows,
                               int64_t columns, int64_t pixels) {
    const int64_t full = columns / kPanel * kPanel;
    for (int64_t c = 0; c < full; c += kPanel) {
        double* to = panels + c / kPanel * stride;
        const T* from = x + c * pixels;
#pragma omp simd
        for (int64_t t = 0; t < rows; ++t) {
#pragma GCC unroll 8
            for (int64_t l = 0; l < kPanel; ++l) to[t * kPanel + l] = deviation(from[l * pixels + t], origin[c + l]);
        }
    }
    for (int64_t c = full; c < columns; ++c) {
        double* to = panels + c / kPanel * stride + c % kPanel;
        for (int64_t t = 0; t < rows; ++t) to[t * kPanel] = deviation(x[c * pixels + t], origin[c]);
    }
}

// Four rows at a time, because loading and storing the sums would cost more than the adding.
ZCPIPE_INLINE void sum_columns(double* sums, const double* panel, int64_t rows) {
    int64_t t = 0;
    for (; t + 4 <= rows; t += 4) {
        const double* x = panel + t * kPanel;
#pragma omp simd
        for (int64_t l = 0; l < kPanel; ++l)
            sums[l] += (x[l] + x[l + kPanel]) + (x[l + 2 * kPanel] + x[l + 3 * kPanel]);
    }
    for (; t < rows; ++t) {
#pragma omp simd
        for (int64_t l = 0; l < kPanel; ++l) sums[l] += panel[t * kPanel + l];
    }
}

#define ZCPIPE_PACK_KERNELS(T)                                                                              \
    ZCPIPE_CLONES void pack(double* panels, int64_t stride, const T* x, const double* origin, int64_t rows, \
                            int64_t columns) {                                                              \
        if (origin != nullptr)                                                                              \
            pack_rows<true>(panels, stride, x, origin, rows, columns);                                      \
        else                                                                                                \
            pack_rows<false>(panels, stride, x, origin, rows, columns);                                     \
    }                                                                                                       \
    ZCPIPE_CLONES void pack(double* panels, int64_t stride, const T* x, const double* origin, int64_t rows, \
                            int64_t columns, int64_t pixels) {                                              \
        pack_planes(panels, stride, x, origin, rows, columns, pixels);                                      \
    }

ZCPIPE_PACK_KERNELS(float)
ZCPIPE_PACK_KERNELS(double)

ZCPIPE_CLONES void add_columns(double* sums, Panels tile, int64_t rows) {
    for (int64_t p = 0; p < tile.count; ++p) sum_columns(sums + p * kPanel, tile.data + p * tile.stride, rows);
}

int64_t panels_of(int64_t columns) { return (columns + kPanel - 1) / kPanel; }

// Positions x channels in memory: rows (an NHWC map among them), or the planes of an NCHW map.
template <typename T>
struct Positions {
    const T* data;
    int64_t count, columns;
    int64_t pixels;  // of a plane; 1 for rows

    Positions(const Tensor& x, bool planes)
        : data(x.const_data_ptr<T>()),
          count(x.dim() == 2 ? x.size(0) : x.size(0) * x.size(2) * x.size(3)),
          columns(x.size(1)),
          pixels(planes ? x.size(2) * x.size(3) : 1) {}

    T at_first(int64_t column) const { return data[column * pixels]; }

    // Writes the deviations of positions begin .. end from `origin`, or rows as they are for none.
    void pack_tile(double* panels, int64_t stride, const double* origin, int64_t begin, int64_t end) const {
        if (pixels == 1) {
            pack(panels, stride, data + begin * columns, origin, end - begin, columns);
            return;
        }
        for (int64_t i = begin; i < end;) {
            const int64_t sample = i / pixels, pixel = i % pixels, n = std::min(end - i, pixels - pixel);
            pack(panels + (i - begin) * kPanel, stride, data + sample * columns * pixels + pixel, origin, n, columns,
                 pixels);
            i += n;
        }
    }
};

// How positions are divided: into chunks, which threads share, of tiles.
struct Division {
    int64_t tile, chunk, chunks;

    Division(int64_t count, int64_t left_panels, int64_t right_panels, int64_t packed_panels) {
        tile = std::clamp<int64_t>(kTileDoubles / (packed_panels * kPanel), 32, 256);
        const int64_t least = std::max(kChunkRows, kRowsPerChannel * kPanel * std::max(left_panels, right_panels));
        const int64_t wanted = std::clamp<int64_t>(count / least, 1, kChunkMost);
        chunk = ((count + wanted - 1) / wanted + tile - 1) / tile * tile;
        chunks = (count + chunk - 1) / chunk;
    }

    // Calls f(chunk, begin, end) for every chunk.
    template <typename F>
    void for_chunks(int64_t count, const F& f) const {
        torch::stable::parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) {
            for (int64_t k = first; k < last; ++k) f(k, k * chunk, std::min(count, (k + 1) * chunk));
        });
    }
};

// Adds up what the chunks hold, in their order, in the first.
void fold_chunks(double* sums, int64_t size, int64_t chunks) {
    for (int64_t k = 1; k < chunks; ++k) {
#pragma omp simd
        for (int64_t i = 0; i < size; ++i) sums[i] += sums[k * size + i];
    }
}

// Moments about the first position, which nothing constant survives.
template <typename T>
void covariance_of(double* out, const Positions<T>& x) {  // out: [C, C]
    const int64_t panels = panels_of(x.columns), width = panels * kPanel, square = width * width;
    const Division division(x.count, panels, panels, panels);
    Doubles origin(width);
    for (int64_t c = 0; c < x.columns; ++c) origin[c] = double(x.at_first(c));
    Buffer<double> products(division.chunks * square), sums(division.chunks * width);
    double *g = products.data(), *s = sums.data();
    division.for_chunks(x.count, [&](int64_t k, int64_t begin, int64_t end) {
        Buffer<double> buffer(division.tile * width);
        const Panels tile = {buffer.data(), panels, division.tile * kPanel};
        for (int64_t i = begin; i < end; i += division.tile) {
            const int64_t rows = std::min(division.tile, end - i);
            x.pack_tile(buffer.data(), tile.stride, origin.data(), i, i + rows);
            add_columns(s + k * width, tile, rows);
            add_products(g + k * square, tile, tile, rows, Part::kUpper, std::is_same_v<T, float>);
        }
    });
    fold_chunks(g, square, division.chunks);
    fold_chunks(s, width, division.chunks);
    const double count = double(x.count);
    for (int64_t i = 0; i < x.columns; ++i) {
        const double mean = s[i] / count;
        for (int64_t j = i; j < x.columns; ++j)
            out[i * x.columns + j] = out[j * x.columns + i] = g[i * width + j] / count - mean * (s[j] / count);
    }
}

template <typename T>
void cross_moment_of(double* out, const Positions<T>& a, const Positions<T>& b) {  // out: [Ca, Cb]
    const int64_t left_panels = panels_of(a.columns), right_panels = panels_of(b.columns);
    const int64_t width = right_panels * kPanel, size = left_panels * kPanel * width;
    const Division division(a.count, left_panels, right_panels, left_panels + right_panels);
    Buffer<double> products(division.chunks * size);
    double* g = products.data();
    division.for_chunks(a.count, [&](int64_t k, int64_t begin, int64_t end) {
        Buffer<double> a_buffer(division.tile * left_panels * kPanel), b_buffer(division.tile * width);
        const Panels left = {a_buffer.data(), left_panels, division.tile * kPanel};
        const Panels right = {b_buffer.data(), right_panels, division.tile * kPanel};
        for (int64_t i = begin; i < end; i += division.tile) {
            const int64_t rows = std::min(division.tile, end - i);
            a.pack_tile(a_buffer.data(), left.stride, nullptr, i, i + rows);
            b.pack_tile(b_buffer.data(), right.stride, nullptr, i, i + rows);
            add_products(g + k * size, left, right, rows, Part::kAll, std::is_same_v<T, float>);
        }
    });
    fold_chunks(g, size, division.chunks);
    for (int64_t i = 0; i < a.columns; ++i)
        for (int64_t j = 0; j < b.columns; ++j) out[i * b.columns + j] = g[i * width + j] / double(a.count);
}

Tensor covariance(const Tensor& x_any) {  // [N, C, H, W] or [R, C] -> [C, C]
    check_float(x_any, "x");
    STD_TORCH_CHECK(x_any.dim() == 2 || x_any.dim() == 4, "x: got ", x_any.dim(), " dimensions, expected 2 or 4");
    const int64_t channels = x_any.size(1);
    const bool planes = x_any.dim() == 4 && !is_channels_last(x_any);
    const Tensor x = planes || x_any.dim() == 2 ? torch::stable::contiguous(x_any) : x_any;
    Tensor out = torch::stable::new_zeros(x, {channels, channels}, ScalarType::Double);
    if (channels == 0) return out;
    STD_TORCH_CHECK(x.numel() > 0, "x: expected at least one position");
    if (x.scalar_type() == ScalarType::Float)
        covariance_of(out.mutable_data_ptr<double>(), Positions<float>(x, planes));
    else
        covariance_of(out.mutable_data_ptr<double>(), Positions<double>(x, planes));
    return out;
}

Tensor cross_moment(const Tensor& a_any, const Tensor& b_any) {  // [R, Ca], [R, Cb] -> [Ca, Cb]
    check_float(a_any, "a");
    STD_TORCH_CHECK(a_any.dim() == 2, "a: got ", a_any.dim(), " dimensions, expected 2");
    STD_TORCH_CHECK(b_any.dim() == 2, "b: got ", b_any.dim(), " dimensions, expected 2");
    STD_TORCH_CHECK(b_any.scalar_type() == a_any.scalar_type(), "b: expected the dtype of a");
    STD_TORCH_CHECK(b_any.size(0) == a_any.size(0), "b: expected the rows of a");
    const Tensor a = torch::stable::contiguous(a_any), b = torch::stable::contiguous(b_any);
    Tensor out = torch::stable::new_zeros(a, {a.size(1), b.size(1)}, ScalarType::Double);
    if (out.numel() == 0) return out;
    STD_TORCH_CHECK(a.size(0) > 0, "a: expected at least one row");
    if (a.scalar_type() == ScalarType::Float)
        cross_moment_of(out.mutable_data_ptr<double>(), Positions<float>(a, false), Positions<float>(b, false));
    else
        cross_moment_of(out.mutable_data_ptr<double>(), Positions<double>(a, false), Positions<double>(b, false));
    return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(zcpipe, CPU, m) {
    m.impl("covariance", TORCH_BOX(&covariance));
    m.impl("cross_moment", TORCH_BOX(&cross_moment));
}
