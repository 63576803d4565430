// Second moments over positions: the covariance of channels, the cross moment of two maps.
//
// The order of every sum depends on the shape alone, never on the layout or the number of threads.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <vector>

#include "common/buffer.h"
#include "common/layout.h"
#include "common/simd.h"
#include "cpu/panels.h"

namespace {

using namespace zcpipe;

constexpr int64_t kTileBytes = 1 << 15;  // of all panels of a tile: two thirds of a first cache
constexpr int64_t kChunkRows = 2048;     // at least this many rows for each thread
constexpr int64_t kChunkMost = 8;        // chunks: each has sums of its own
constexpr int64_t kRowsPerChannel = 4;   // in a chunk, so that adding up chunks is little of the work
constexpr int64_t kFloatRows = 128;      // products of float32 are added up in float32 for so many rows at most

template <typename T>
int64_t panels_of(int64_t columns) {
    return (columns + kPanel<T> - 1) / kPanel<T>;
}

// A row of a panel of P, of elements of type T; the compiler splits it where vectors are shorter.
template <typename P, typename T>
struct RowOf {
    typedef T Type __attribute__((vector_size(kPanel<P> * sizeof(T)), aligned(sizeof(T)), may_alias));
};
template <typename P, typename T>
using Row = typename RowOf<P, T>::Type;

// Rows into panels `stride` apart, as deviations from `origin` in type P.
template <typename P, typename T>
ZCPIPE_INLINE void pack_rows(P* panels, int64_t stride, const T* x, int64_t row_stride, const P* origin, int64_t rows,
                             int64_t columns) {
    constexpr int64_t kRowsAtOnce = 16;  // memory is read in its order, and yet a loop over rows is worth its start
    const int64_t full = columns / kPanel<P> * kPanel<P>;
    for (int64_t first = 0; first < rows; first += kRowsAtOnce) {
        const int64_t last = std::min(rows, first + kRowsAtOnce);
        for (int64_t c = 0; c < full; c += kPanel<P>) {
            P* to = panels + c / kPanel<P> * stride;
            for (int64_t t = first; t < last; ++t) {
                const Row<P, T>* from = reinterpret_cast<const Row<P, T>*>(x + t * row_stride + c);
                *reinterpret_cast<Row<P, P>*>(to + t * kPanel<P>) =
                    __builtin_convertvector(*from, Row<P, P>) - *reinterpret_cast<const Row<P, P>*>(origin + c);
            }
        }
        P* to = panels + full / kPanel<P> * stride;
        for (int64_t t = first; t < last; ++t)
            for (int64_t c = full; c < columns; ++c)
                to[t * kPanel<P> + c - full] = P(x[t * row_stride + c]) - origin[c];
    }
}

// Four rows at a time, because loading and storing the sums would cost more than the adding.
ZCPIPE_INLINE void sum_panel(double* sums, const double* panel, int64_t rows) {
    constexpr int64_t kWidth = kPanel<double>;
    int64_t t = 0;
    for (; t + 4 <= rows; t += 4) {
        const double* x = panel + t * kWidth;
#pragma omp simd
        for (int64_t l = 0; l < kWidth; ++l)
            sums[l] += (x[l] + x[l + kWidth]) + (x[l + 2 * kWidth] + x[l + 3 * kWidth]);
    }
    for (; t < rows; ++t) {
#pragma omp simd
        for (int64_t l = 0; l < kWidth; ++l) sums[l] += panel[t * kWidth + l];
    }
}

#define ZCPIPE_PACK_KERNEL(P, T)                                                                                      \
    ZCPIPE_CLONES void pack(P* panels, int64_t stride, const T* x, int64_t row_stride, const P* origin, int64_t rows, \
                            int64_t columns) {                                                                        \
        pack_rows(panels, stride, x, row_stride, origin, rows, columns);                                              \
    }

ZCPIPE_PACK_KERNEL(double, float)
ZCPIPE_PACK_KERNEL(double, double)
ZCPIPE_PACK_KERNEL(float, float)

ZCPIPE_CLONES void add_columns(double* sums, Panels<double> tile, int64_t rows) {
    for (int64_t p = 0; p < tile.count; ++p) sum_panel(sums + p * kPanel<double>, tile.starts[p], rows);
}

// How positions are divided: into chunks, which threads share, of whole tiles.
struct Division {
    int64_t tile, chunk, chunks;

    // `columns`: of the wider side.
    Division(int64_t count, int64_t tile_rows, int64_t columns) : tile(tile_rows) {
        const int64_t least = std::max(kChunkRows, kRowsPerChannel * columns);
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

// Room for a tile of packed rows.
template <typename P>
class Tile {
  public:
    Tile(int64_t rows, int64_t columns)
        : stride_(rows * kPanel<P>), buffer_(panels_of<P>(columns) * stride_), starts_(panels_of<P>(columns)) {
        for (size_t p = 0; p < starts_.size(); ++p) starts_[p] = buffer_.data() + int64_t(p) * stride_;
    }

    template <typename T>
    Panels<P> fill(const T* x, int64_t row_stride, const P* origin, int64_t rows, int64_t columns) {
        pack(buffer_.data(), stride_, x, row_stride, origin, rows, columns);
        return {starts_.data(), int64_t(starts_.size()), kPanel<P>};
    }

  private:
    int64_t stride_;
    Buffer<P> buffer_;
    std::vector<const P*> starts_;
};

// Moments about the first position, which nothing constant survives, in double precision.
template <typename T>
void covariance_of(double* out, const T* x, int64_t count, int64_t columns) {  // x: [count, columns]
    const int64_t panels = panels_of<double>(columns), width = panels * kPanel<double>, square = width * width;
    const int64_t rows_of_tile = std::clamp<int64_t>(kTileBytes / (width * int64_t(sizeof(double))), 32, 256);
    const Division division(count, rows_of_tile, width);
    const std::vector<double> origin(x, x + columns);
    Buffer<double> products(division.chunks * square), sums(division.chunks * width);
    double *g = products.data(), *s = sums.data();
    division.for_chunks(count, [&](int64_t k, int64_t begin, int64_t end) {
        Tile<double> tile(division.tile, columns);
        for (int64_t i = begin; i < end; i += division.tile) {
            const int64_t rows = std::min(division.tile, end - i);
            const Panels<double> packed = tile.fill(x + i * columns, columns, origin.data(), rows, columns);
            add_columns(s + k * width, packed, rows);
            Ahead next;
            next.add(x + (i + rows) * columns, std::min(division.tile, end - i - rows) * columns);
            add_products(g + k * square, packed, packed, rows, Part::kUpper, next);
        }
    });
    fold_chunks(g, square, division.chunks);
    fold_chunks(s, width, division.chunks);
    for (int64_t i = 0; i < columns; ++i) {
        const double mean = s[i] / double(count);
        for (int64_t j = i; j < columns; ++j)
            out[i * columns + j] = out[j * columns + i] =
                g[i * width + j] / double(count) - mean * (s[j] / double(count));
    }
}

// Rows made of images [N, fold H, fold W, C]: a row is a square of fold x fold pixels, its columns the rows of the
// square one after another. An image row of squares is `fold` runs of memory, each as good as rows of fold C columns.
template <typename T>
struct FoldedRows {
    const T* data;
    int64_t fold, run, row_length;  // run: columns of one row of a square; row_length: of the image, in elements

    int64_t columns() const { return fold * run; }

    // The first of `rows` neighbouring squares; `width` squares make a row of the image.
    const T* at(int64_t row, int64_t width) const { return data + row / width * fold * row_length + row % width * run; }
};

// Panels of rows as they lie in memory where they fill whole panels, otherwise packed.
template <typename T>
class PanelReader {
  public:
    PanelReader(const FoldedRows<T>& rows, int64_t most)
        : rows_(rows), direct_(rows.run % kPanel<T> == 0), zero_(direct_ ? 0 : rows.run), starts_(count()) {
        if (direct_) return;
        for (int64_t f = 0; f < rows.fold; ++f) tiles_.emplace_back(most, rows.run);
    }

    int64_t panels_per_run() const { return panels_of<T>(rows_.run); }
    int64_t count() const { return rows_.fold * panels_per_run(); }
    // The panel's place of a column; there is room between the runs where they do not fill panels.
    int64_t place(int64_t column) const {
        return column / rows_.run * panels_per_run() * kPanel<T> + column % rows_.run;
    }

    Panels<T> read(int64_t row, int64_t width, int64_t rows) {
        const T* first = rows_.at(row, width);
        int64_t stride = kPanel<T>;
        for (int64_t f = 0; f < rows_.fold; ++f) {
            const T* run = first + f * rows_.row_length;
            if (direct_) {
                stride = rows_.run;
                for (int64_t p = 0; p < panels_per_run(); ++p) starts_[f * panels_per_run() + p] = run + p * kPanel<T>;
            } else {
                const Panels<T> packed = tiles_[f].fill(run, rows_.run, zero_.data(), rows, rows_.run);
                std::copy_n(packed.starts, packed.count, &starts_[f * panels_per_run()]);
            }
        }
        return {starts_.data(), count(), stride};
    }

    // Adds what will be read.
    void fetch(Ahead& next, int64_t row, int64_t width, int64_t rows) const {
        for (int64_t f = 0; f < rows_.fold; ++f)
            next.add(rows_.at(row, width) + f * rows_.row_length, rows * rows_.run);
    }

  private:
    FoldedRows<T> rows_;
    bool direct_;
    std::vector<T> zero_;
    std::vector<const T*> starts_;
    std::vector<Tile<T>> tiles_;
};

// `width` rows of both sides lie in one row of the images.
template <typename T>
void cross_moment_of(double* out, const FoldedRows<T>& a, const FoldedRows<T>& b, int64_t count, int64_t width) {
    const int64_t ca = a.columns(), cb = b.columns();
    const int64_t room = kTileBytes / ((ca + cb) * int64_t(sizeof(T)));
    const int64_t most = std::min(width, std::clamp<int64_t>(room, 32, kFloatRows));
    PanelReader<T> shape_a(a, 0), shape_b(b, 0);
    const int64_t product_width = shape_b.count() * kPanel<T>, size = shape_a.count() * kPanel<T> * product_width;
    const Division division(count, width == count ? most : width, std::max(ca, cb));
    Buffer<double> products(division.chunks * size);
    double* g = products.data();
    division.for_chunks(count, [&](int64_t k, int64_t begin, int64_t end) {
        PanelReader<T> left(a, most), right(b, most);
        const auto rows_at = [&](int64_t i) { return std::min({most, end - i, width - i % width}); };
        for (int64_t i = begin; i < end;) {
            const int64_t rows = rows_at(i), behind = i + rows;
            Ahead next;
            if (behind < end) {
                left.fetch(next, behind, width, rows_at(behind));
                right.fetch(next, behind, width, rows_at(behind));
            }
            add_products(g + k * size, left.read(i, width, rows), right.read(i, width, rows), rows, Part::kAll, next);
            i = behind;
        }
    });
    fold_chunks(g, size, division.chunks);
    for (int64_t i = 0; i < ca; ++i)
        for (int64_t j = 0; j < cb; ++j)
            out[i * cb + j] = g[shape_a.place(i) * product_width + shape_b.place(j)] / double(count);
}

Tensor as_rows(const Tensor& x) {
    return x.dim() == 4 ? torch::stable::contiguous(x, MemoryFormat::ChannelsLast) : torch::stable::contiguous(x);
}

void check_rows(const Tensor& x, const char* name) {
    check_float(x, name);
    STD_TORCH_CHECK(x.dim() == 2 || x.dim() == 4, name, ": got ", x.dim(), " dimensions, expected 2 or 4");
}

Tensor covariance(const Tensor& x_any) {  // [N, C, H, W] or [R, C] -> [C, C]
    check_rows(x_any, "x");
    const Tensor x = as_rows(x_any);
    const int64_t channels = x.size(1);
    Tensor out = torch::stable::new_zeros(x, {channels, channels}, ScalarType::Double);
    if (channels == 0) return out;
    STD_TORCH_CHECK(x.numel() > 0, "x: expected at least one position");
    double* to = out.mutable_data_ptr<double>();
    if (x.scalar_type() == ScalarType::Float)
        covariance_of(to, x.const_data_ptr<float>(), x.numel() / channels, channels);
    else
        covariance_of(to, x.const_data_ptr<double>(), x.numel() / channels, channels);
    return out;
}

template <typename T>
void cross_moment_of_tensors(const Tensor& out, const Tensor& a, const Tensor& b, int64_t fold) {
    const int64_t ca = a.size(1), cb = b.size(1), count = b.numel() / cb;
    const bool images = a.dim() == 4;
    // Rows, and maps of one resolution, are one row of an image that has no second one.
    const int64_t width = images && fold > 1 ? b.size(3) : count;
    const FoldedRows<T> left{a.const_data_ptr<T>(), fold, fold * ca, images ? a.size(3) * ca : 0};
    const FoldedRows<T> right{b.const_data_ptr<T>(), 1, cb, width * cb};
    cross_moment_of(out.mutable_data_ptr<double>(), left, right, count, width);
}

// [R, Ca], [R, Cb] -> [Ca, Cb]; [N, Ca, fold H, fold W], [N, Cb, H, W] -> [fold fold Ca, Cb]
Tensor cross_moment(const Tensor& a_any, const Tensor& b_any) {
    check_rows(a_any, "a");
    check_rows(b_any, "b");
    STD_TORCH_CHECK(b_any.dim() == a_any.dim(), "b: expected as many dimensions as a");
    STD_TORCH_CHECK(b_any.scalar_type() == a_any.scalar_type(), "b: expected the dtype of a");
    STD_TORCH_CHECK(b_any.size(0) == a_any.size(0), "b: expected the rows of a");
    const bool images = a_any.dim() == 4;
    const int64_t fold = images ? a_any.size(2) / std::max<int64_t>(1, b_any.size(2)) : 1;
    STD_TORCH_CHECK(!images || (a_any.size(2) == fold * b_any.size(2) && a_any.size(3) == fold * b_any.size(3)),
                    "a: expected an integer multiple of b's resolution");
    const Tensor a = as_rows(a_any), b = as_rows(b_any);
    Tensor out = torch::stable::new_zeros(a, {fold * fold * a.size(1), b.size(1)}, ScalarType::Double);
    if (a.size(1) == 0 || b.size(1) == 0) return out;
    STD_TORCH_CHECK(a.numel() > 0 && b.numel() > 0, "a: expected at least one row");
    if (a.scalar_type() == ScalarType::Float)
        cross_moment_of_tensors<float>(out, a, b, fold);
    else
        cross_moment_of_tensors<double>(out, a, b, fold);
    return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(zcpipe, CPU, m) {
    m.impl("covariance", TORCH_BOX(&covariance));
    m.impl("cross_moment", TORCH_BOX(&cross_moment));
}
