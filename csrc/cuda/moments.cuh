// Second moments over positions: the covariance of channels, the cross moment of two maps. Free of torch.
//
// Two launches: `moments` makes tiles of channels by channels from pieces of the positions, `fold` adds up the pieces
// in their order. Positions and channels are indices over any strides, NHWC, NCHW and the squares of space-to-depth
// alike, and a sum's order depends on them alone, so every layout gives the same bits.
#pragma once

#include <algorithm>

#include "cuda/launch.h"
#include "cuda/strided.h"
#include "cuda/vector.h"

namespace zcpipe::gpu {

enum MomentEvent { kMomentVectors, kMomentFlushes };

// How launches are cut. Tests, whose maps are small, take smaller pieces.
struct MomentTuning {
    int64_t grain = 512;        // positions: less is not worth another piece
    int64_t most_blocks = 512;  // more would only lengthen `fold`
    int threads = 256;          // of a block; more where a tile needs them
};

// A map as its strides have it; rows are maps of one pixel.
struct Map {
    int64_t samples, channels, height, width;
    int64_t sample_step, channel_step, row_step, pixel_step;
};

// What a kernel reads: `count` positions of `width` channels.
template <typename T>
struct Side {
    const T* data;
    Strided positions, channels;
    uint32_t count, width;
    bool by_position;  // neighbouring threads read neighbouring positions of a channel, else channels of a position
    bool wide;         // and each of them a vector

    // A square of fold x fold pixels is one position.
    static Side of(const T* data, const Map& m, int64_t fold) {
        Side side = {};
        side.data = data;
        side.positions = Strided::of(
            {{m.width / fold, fold * m.pixel_step}, {m.height / fold, fold * m.row_step}, {m.samples, m.sample_step}});
        side.channels = Strided::of({{m.channels, m.channel_step}, {fold, m.pixel_step}, {fold, m.row_step}});
        blocks_for(m.samples * m.height * m.width, 1);  // refuses what 32 bits do not count
        side.count = uint32_t(m.samples * (m.height / fold) * (m.width / fold));
        side.width = uint32_t(m.channels * fold * fold);
        side.by_position = side.positions.steps[0] != 0 &&
                           (side.channels.steps[0] == 0 || side.positions.steps[0] < side.channels.steps[0]);
        const Strided& along = side.by_position ? side.positions : side.channels;
        const Strided& across = side.by_position ? side.channels : side.positions;
        side.wide = vectorises(kWidest<T>, data) && along.in_runs_of(kWidest<T>) && across.multiples_of(kWidest<T>);
        return side;
    }
};

// A block's tile of kTile x kTile products: each thread has a cell of kCell x kCell of them, a group of threads the
// whole tile for its share of the positions, and kRows positions of both sides are in shared memory at a time.
template <int kTile, typename P>
struct MomentTile {
    static constexpr int kCell = 4, kThreads = (kTile / kCell) * (kTile / kCell);  // of a group
    static constexpr uint32_t kRows = 2048 / kTile;
    static constexpr uint32_t kStride = kTile + kWidest<P>;  // the padding spreads a column over banks
    static constexpr size_t kPanelBytes = size_t{kRows} * kStride * sizeof(P);
    static constexpr uint32_t kFloatRows = 128;  // products of float32 are added up in float32 for so many at most

    static size_t shared(int threads) {
        return std::max(2 * kPanelBytes, size_t(threads) * kCell * kCell * sizeof(double));
    }
};

// Positions first .. first + kRows of one tile's channels, zeros where there are none. Centred: as deviations from the
// first position, which nothing constant survives.
template <bool kByPosition, int kSize, bool kCentred, int kTile, typename P, typename T>
__device__ __forceinline__ void stage_vectors(P* panel, const Side<T>& side, uint32_t first, uint32_t end,
                                              uint32_t first_channel) {
    using Tile = MomentTile<kTile, P>;
    constexpr uint32_t kAlong = (kByPosition ? Tile::kRows : kTile) / kSize;
    constexpr uint32_t kVectors = Tile::kRows * kTile / kSize;
    for (uint32_t u = threadIdx.x; u < kVectors; u += blockDim.x) {
        const uint32_t along = u % kAlong * kSize, across = u / kAlong;
        const uint32_t p = kByPosition ? along : across, c = kByPosition ? across : along;
        const uint32_t position = first + p, channel = first_channel + c;
        P* const to = panel + p * Tile::kStride + c;
        Vector<P, kSize> values{};
        if (position < end && channel < side.width) {
            const T* const from = side.data + side.channels.at(channel);
            const Vector<T, kSize> v = load<kSize>(from + side.positions.at(position));
            ZCPIPE_UNROLL
            for (int i = 0; i < kSize; ++i) {
                values.data[i] = P(v.data[i]);
                if constexpr (kCentred) values.data[i] -= P(from[kByPosition ? 0 : i]);
            }
            count_event(kMomentVectors);
        }
        ZCPIPE_UNROLL
        for (int i = 0; i < kSize; ++i) to[kByPosition ? i * Tile::kStride : i] = values.data[i];
    }
}

template <bool kCentred, int kTile, typename P, typename T>
__device__ __forceinline__ void stage(P* panel, const Side<T>& side, uint32_t first, uint32_t end,
                                      uint32_t first_channel) {
    if (side.by_position && side.wide)
        stage_vectors<true, kWidest<T>, kCentred, kTile>(panel, side, first, end, first_channel);
    else if (side.by_position)
        stage_vectors<true, 1, kCentred, kTile>(panel, side, first, end, first_channel);
    else if (side.wide)
        stage_vectors<false, kWidest<T>, kCentred, kTile>(panel, side, first, end, first_channel);
    else
        stage_vectors<false, 1, kCentred, kTile>(panel, side, first, end, first_channel);
}

// partials[piece]: the products of columns of a and b and, centred, the sums of a's; a and b are then one, and only the
// tiles from the diagonal up are computed. Blocks are tiles of b by tiles of a by pieces.
template <bool kCentred, int kTile, typename P, typename T>
__global__ void moments_kernel(double* partials, Side<T> a, Side<T> b, uint32_t piece_rows) {
    using Tile = MomentTile<kTile, P>;
    constexpr int kCell = Tile::kCell, kAcross = kTile / kCell, kSize = kWidest<P>;
    if (kCentred && blockIdx.x < blockIdx.y) return;  // the whole block
    const bool diagonal = kCentred && blockIdx.x == blockIdx.y;
    const uint32_t groups = blockDim.x / Tile::kThreads, group = threadIdx.x / Tile::kThreads;
    const uint32_t row = threadIdx.x % Tile::kThreads / kAcross * kCell, column = threadIdx.x % kAcross * kCell;
    const uint32_t first_a = blockIdx.y * kTile, first_b = blockIdx.x * kTile;
    const uint32_t begin = blockIdx.z * piece_rows, end = begin + piece_rows < a.count ? begin + piece_rows : a.count;
    P* const panel_a = shared_memory<P>();
    P* const panel_b = diagonal ? panel_a : panel_a + Tile::kPanelBytes / sizeof(P);

    P sums[kCell][kCell] = {};
    double totals[kCell][kCell] = {}, channel_sum = 0;
    const auto flush = [&] {
        ZCPIPE_UNROLL
        for (int i = 0; i < kCell; ++i) {
            ZCPIPE_UNROLL
            for (int j = 0; j < kCell; ++j) {
                totals[i][j] += double(sums[i][j]);
                sums[i][j] = 0;
            }
        }
        count_event(kMomentFlushes);
    };
    uint32_t unflushed = 0;  // at most so many positions are in `sums`
    for (uint32_t first = begin; first < end; first += Tile::kRows) {
        stage<kCentred, kTile>(panel_a, a, first, end, first_a);
        if (!diagonal) stage<kCentred, kTile>(panel_b, b, first, end, first_b);
        __syncthreads();
        for (uint32_t p = group; p < Tile::kRows; p += groups) {
            Vector<P, kSize> left[kCell / kSize], right[kCell / kSize];
            ZCPIPE_UNROLL
            for (int v = 0; v < kCell / kSize; ++v) {
                left[v] = load<kSize>(panel_a + p * Tile::kStride + row + v * kSize);
                right[v] = load<kSize>(panel_b + p * Tile::kStride + column + v * kSize);
            }
            ZCPIPE_UNROLL
            for (int i = 0; i < kCell; ++i) {
                ZCPIPE_UNROLL
                for (int j = 0; j < kCell; ++j)
                    sums[i][j] = fma(left[i / kSize].data[i % kSize], right[j / kSize].data[j % kSize], sums[i][j]);
            }
        }
        if constexpr (sizeof(P) < sizeof(double)) {
            unflushed += Tile::kRows / groups;
            if (unflushed + Tile::kRows / groups > Tile::kFloatRows) {
                flush();
                unflushed = 0;
            }
        }
        if (diagonal)  // a channel for each thread, in turn
            for (uint32_t p = threadIdx.x / kTile; p < Tile::kRows; p += blockDim.x / kTile)
                channel_sum += double(panel_a[p * Tile::kStride + threadIdx.x % kTile]);
        __syncthreads();
    }
    flush();

    // The groups' tiles, and then the threads' channel sums, added up in order.
    double* const shared = shared_memory<double>();
    ZCPIPE_UNROLL
    for (int i = 0; i < kCell; ++i) {
        ZCPIPE_UNROLL
        for (int j = 0; j < kCell; ++j) shared[(i * kCell + j) * blockDim.x + threadIdx.x] = totals[i][j];
    }
    __syncthreads();
    const size_t products = size_t{a.width} * b.width;
    double* const out = partials + blockIdx.z * (products + (kCentred ? a.width : 0));
    for (uint32_t e = threadIdx.x; e < kTile * kTile; e += blockDim.x) {
        const uint32_t i = e / kTile, j = e % kTile;
        if (first_a + i >= a.width || first_b + j >= b.width) continue;
        const double* from = shared + (i % kCell * kCell + j % kCell) * blockDim.x + i / kCell * kAcross + j / kCell;
        double sum = from[0];
        for (uint32_t k = 1; k < groups; ++k) sum += from[k * Tile::kThreads];
        out[size_t{first_a + i} * b.width + first_b + j] = sum;
    }
    if (!diagonal) return;  // the whole block
    __syncthreads();
    shared[threadIdx.x] = channel_sum;
    __syncthreads();
    if (threadIdx.x >= kTile || first_a + threadIdx.x >= a.width) return;
    double sum = 0;
    for (uint32_t k = threadIdx.x; k < blockDim.x; k += kTile) sum += shared[k];
    out[products + first_a + threadIdx.x] = sum;
}

// Blocks of 32 results by kFoldRows shares of the pieces. Centred: the mean products less the products of means; below
// the diagonal as above it.
constexpr int kFoldRows = 8;

template <bool kCentred>
__global__ void moments_fold_kernel(double* out, const double* partials, uint32_t rows, uint32_t columns,
                                    uint32_t pieces, double count) {
    constexpr int kTerms = kCentred ? 3 : 1;
    const uint32_t e = blockIdx.x * kWarp + threadIdx.x, i = e / columns, j = e % columns;
    const size_t products = size_t{rows} * columns, next_piece = products + (kCentred ? rows : 0);
    const uint32_t low = kCentred && j < i ? j : i, high = kCentred && j < i ? i : j;
    double sums[kTerms] = {};
    if (e < products) {
        const size_t places[3] = {size_t{low} * columns + high, products + low, products + high};
        for (uint32_t piece = threadIdx.y; piece < pieces; piece += kFoldRows) {
            ZCPIPE_UNROLL
            for (int k = 0; k < kTerms; ++k) sums[k] += partials[piece * next_piece + places[k]];
        }
    }
    double* const shared = shared_memory<double>();  // [kTerms, kFoldRows, 32]
    ZCPIPE_UNROLL
    for (int k = 0; k < kTerms; ++k) shared[(k * kFoldRows + threadIdx.y) * kWarp + threadIdx.x] = sums[k];
    __syncthreads();
    if (threadIdx.y > 0 || e >= products) return;
    ZCPIPE_UNROLL
    for (int k = 0; k < kTerms; ++k) {
        for (int y = 1; y < kFoldRows; ++y) sums[k] += shared[(k * kFoldRows + y) * kWarp + threadIdx.x];
    }
    out[e] = kCentred ? sums[0] / count - sums[1] / count * (sums[2] / count) : sums[0] / count;
}

// How the launches divide two sides' positions and channels.
struct MomentPlan {
    int64_t tile;
    dim3 grid;
    int threads;
    uint32_t piece_rows;

    static MomentPlan of(int64_t count, int64_t rows, int64_t columns, const MomentTuning& tuning) {
        MomentPlan plan = {};
        const int64_t wider = std::max(rows, columns);
        plan.tile = wider <= 16 ? 16 : wider <= 32 ? 32 : 64;
        const auto tiles = [&](int64_t width) { return (width + plan.tile - 1) / plan.tile; };
        const int64_t panel_rows = 2048 / plan.tile, blocks = tiles(rows) * tiles(columns);
        const int64_t wanted = std::max<int64_t>(std::min(count / tuning.grain, tuning.most_blocks / blocks), 1);
        const int64_t panels = (count + panel_rows - 1) / panel_rows, each = (panels + wanted - 1) / wanted;
        plan.piece_rows = uint32_t(each * panel_rows);
        plan.threads = std::max(tuning.threads, int(plan.tile * plan.tile / 16));
        plan.grid = dim3(unsigned(tiles(columns)), unsigned(tiles(rows)), unsigned((panels + each - 1) / each));
        return plan;
    }
};

// Doubles that a call needs beside its result.
inline int64_t moments_scratch(int64_t count, int64_t rows, int64_t columns, const MomentTuning& tuning = {}) {
    return MomentPlan::of(count, rows, columns, tuning).grid.z * (rows * columns + rows);
}

template <bool kCentred, typename P, typename T>
void moments(double* out, double* scratch, const Side<T>& a, const Side<T>& b, cudaStream_t stream,
             const MomentTuning& tuning) {
    const MomentPlan plan = MomentPlan::of(a.count, a.width, b.width, tuning);
    const auto run = [&]<int kTile>() {
        launch(moments_kernel<kCentred, kTile, P, T>,
               {plan.grid, unsigned(plan.threads), MomentTile<kTile, P>::shared(plan.threads), stream}, scratch, a, b,
               plan.piece_rows);
    };
    if (plan.tile == 16)
        run.template operator()<16>();
    else if (plan.tile == 32)
        run.template operator()<32>();
    else
        run.template operator()<64>();
    launch(moments_fold_kernel<kCentred>,
           {blocks_for(int64_t{a.width} * b.width, kWarp), dim3(kWarp, kFoldRows),
            (kCentred ? 3 : 1) * kFoldRows * kWarp * sizeof(double), stream},
           out, scratch, a.width, b.width, plan.grid.z, double(a.count));
}

// out: [C, C]. The map is not empty; scratch holds moments_scratch(...) doubles.
template <typename T>
void covariance(double* out, double* scratch, const Side<T>& x, cudaStream_t stream, const MomentTuning& tuning = {}) {
    moments<true, double>(out, scratch, x, x, stream, tuning);
}

// out: [a's columns, b's columns]. Both have the same positions, at least one.
template <typename T>
void cross_moment(double* out, double* scratch, const Side<T>& a, const Side<T>& b, cudaStream_t stream,
                  const MomentTuning& tuning = {}) {
    moments<false, T>(out, scratch, a, b, stream, tuning);
}

}  // namespace zcpipe::gpu
