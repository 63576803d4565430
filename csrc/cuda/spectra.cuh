// Eigenvalues of many small symmetric matrices in one launch, and largest singular values. Free of torch.
//
// One block for each matrix, which it holds in shared memory in double precision: reflections make it tridiagonal, and
// bisection finds its eigenvalues, to the rounding of the largest. A matrix is divided by a power of two first, so that
// nothing overflows on the way.
#pragma once

#include <algorithm>
#include <vector>

#include "cuda/launch.h"

namespace zcpipe::gpu {

enum SpectrumEvent { kSpectrumReflections, kSpectrumTurns };

constexpr int64_t kMostSpectrum = 64;  // rows and columns; the smaller side where singular values are asked for
constexpr int kMatricesAtOnce = 96;    // what a launch's parameters have room for

// Beside elements near 1: far below their rounding, and its reciprocal is finite.
constexpr double kNegligible = 0x1p-900;

struct Matrix {
    const void* data;  // doubles or floats
    int64_t row_step, column_step;
    uint32_t rows, columns;
    uint32_t out;  // the place of its first result
    bool is_double;

    __device__ __forceinline__ double at(uint32_t i, uint32_t j) const {
        const int64_t place = i * row_step + j * column_step;
        return is_double ? static_cast<const double*>(data)[place] : double(static_cast<const float*>(data)[place]);
    }
};

// The table of a launch, a block for each.
struct Matrices {
    Matrix list[kMatricesAtOnce];
};

// A block's shared memory.
struct SpectrumRoom {
    static constexpr uint32_t kPanel = 32;  // columns of a Gram matrix's factor at a time

    uint32_t size, stride;  // of the matrix; the stride is odd, so that columns lie in all banks
    double* elements;       // [size, stride], symmetric
    double* diagonal;       // [size], of the tridiagonal matrix
    double* squares;        // [size], of what is right of its diagonal
    double* products;       // [size]
    double* reduction;      // [threads]
    double* panel;          // [size, kPanel + 1]

    __device__ __forceinline__ SpectrumRoom(double* from, uint32_t n)
        : size(n),
          stride(n | 1),
          elements(from),
          diagonal(elements + size * stride),
          squares(diagonal + size),
          products(squares + size),
          reduction(products + size),
          panel(reduction + blockDim.x) {}

    static size_t bytes(size_t n, size_t threads, bool with_panel) {
        const size_t doubles = n * (n | 1) + 3 * n + threads + (with_panel ? n * (kPanel + 1) : 0);
        return (doubles + doubles % 2) * sizeof(double);
    }

    __device__ __forceinline__ double* row(uint32_t i) const { return elements + i * stride; }
};

// The largest magnitude, infinite where an element is not finite.
__device__ __forceinline__ double largest_of(const SpectrumRoom& room, const Matrix& m) {
    double largest = 0;
    for (uint32_t e = threadIdx.x; e < m.rows * m.columns; e += blockDim.x) {
        const double size = fabs(m.at(e / m.columns, e % m.columns));
        if (!(size <= largest)) largest = size > largest ? size : double(INFINITY);
    }
    double& mine = room.reduction[threadIdx.x];
    mine = largest;
    for (uint32_t half = blockDim.x / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) mine = fmax(mine, room.reduction[threadIdx.x + half]);
    }
    __syncthreads();
    return room.reduction[0];
}

// The matrix over 2^exponent, from its lower triangle.
__device__ __forceinline__ void fill_symmetric(const SpectrumRoom& room, const Matrix& m, int exponent) {
    for (uint32_t e = threadIdx.x; e < room.size * room.size; e += blockDim.x) {
        const uint32_t i = e / room.size, j = e % room.size;
        if (j <= i) room.row(i)[j] = room.row(j)[i] = ldexp(m.at(i, j), -exponent);
    }
}

// The smaller Gram matrix of the matrix over 2^exponent.
__device__ __forceinline__ void fill_gram(const SpectrumRoom& room, const Matrix& m, int exponent) {
    constexpr uint32_t kStride = SpectrumRoom::kPanel + 1;
    const bool wide = m.rows <= m.columns;
    const uint32_t length = wide ? m.columns : m.rows;
    const bool along = (wide ? m.column_step : m.row_step) <= (wide ? m.row_step : m.column_step);
    for (uint32_t e = threadIdx.x; e < room.size * room.stride; e += blockDim.x) room.elements[e] = 0;
    for (uint32_t first = 0; first < length; first += SpectrumRoom::kPanel) {
        __syncthreads();  // zeros are there, the last panel is read
        for (uint32_t e = threadIdx.x; e < room.size * SpectrumRoom::kPanel; e += blockDim.x) {
            const uint32_t i = along ? e / SpectrumRoom::kPanel : e % room.size;
            const uint32_t k = along ? e % SpectrumRoom::kPanel : e / room.size, from = first + k;
            double value = 0;
            if (from < length) value = ldexp(wide ? m.at(i, from) : m.at(from, i), -exponent);
            room.panel[i * kStride + k] = value;
        }
        __syncthreads();
        for (uint32_t e = threadIdx.x; e < room.size * room.size; e += blockDim.x) {
            const uint32_t i = e / room.size, j = e % room.size;
            if (j > i) continue;
            double sum = room.row(i)[j];
            for (uint32_t k = 0; k < SpectrumRoom::kPanel; ++k)
                sum = fma(room.panel[i * kStride + k], room.panel[j * kStride + k], sum);
            room.row(i)[j] = room.row(j)[i] = sum;
        }
    }
}

// The sum of what the lanes of a warp bring, for all of them.
__device__ __forceinline__ double sum_of_warp(double value) {
    for (int with = kWarp / 2; with > 0; with /= 2) value += __shfl_xor_sync(kAllLanes, value, with);
    return value;
}

// A vector of at most kMostSpectrum elements, of which a lane holds those with its number and that much and kWarp.
struct Halves {
    double low, high;

    // Elements `from` to n - 1 of a row, the others 0.
    static __device__ __forceinline__ Halves of(const double* row, uint32_t from, uint32_t n) {
        const uint32_t i = threadIdx.x % kWarp, j = i + kWarp;
        return {i >= from && i < n ? row[i] : 0, j >= from && j < n ? row[j] : 0};
    }
    __device__ __forceinline__ double dot(const Halves& other) const {
        return sum_of_warp(low * other.low + high * other.high);
    }
    __device__ __forceinline__ double at(uint32_t i) const {  // the same for the whole warp
        return __shfl_sync(kAllLanes, i < kWarp ? low : high, int(i % kWarp));
    }
};

// Leaves a similar tridiagonal matrix on and beside the diagonal: a row after the other is reflected (Householder).
// Every warp makes the same reflection for itself, and has rows of its own to change.
__device__ __forceinline__ void tridiagonalise(const SpectrumRoom& room) {
    const uint32_t n = room.size, lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
    for (uint32_t k = 0; k + 2 < n; ++k) {
        const double* const row = room.row(k);
        const double first = row[k + 1];
        const Halves rest = Halves::of(row, k + 2, n);
        const double tail = rest.dot(rest);
        if (tail < kNegligible) continue;  // the whole block: the row is as it should be
        const double norm = sqrt(first * first + tail), factor = 1 / (norm * (norm + fabs(first)));
        // The reflection is 1 - factor v v^T.
        Halves v = rest;
        if (lane == (k + 1) % kWarp) (k + 1 < kWarp ? v.low : v.high) = first + (first > 0 ? norm : -norm);
        for (uint32_t i = k + 1 + warp; i < n; i += warps) {
            const double product = factor * Halves::of(room.row(i), k + 1, n).dot(v);
            if (lane == 0) room.products[i] = product;
        }
        __syncthreads();
        const Halves p = Halves::of(room.products, k + 1, n);
        const double half = 0.5 * factor * p.dot(v);
        const Halves w = {p.low - half * v.low, p.high - half * v.high};
        for (uint32_t i = k + 1 + warp; i < n; i += warps) {
            double* const mine = room.row(i);
            const double vi = v.at(i), wi = w.at(i);
            if (lane > k && lane < n) mine[lane] -= vi * w.low + wi * v.low;
            if (lane + kWarp > k && lane + kWarp < n) mine[lane + kWarp] -= vi * w.high + wi * v.high;
        }
        if (threadIdx.x == 0) {
            room.row(k)[k + 1] = norm;  // or the opposite, whose square is the same
            count_event(kSpectrumReflections);
        }
        __syncthreads();
    }
}

__device__ __forceinline__ void read_diagonals(const SpectrumRoom& room) {
    const uint32_t n = room.size;
    for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) {
        room.diagonal[i] = room.row(i)[i];
        const double beside = i + 1 < n ? room.row(i)[i + 1] : 0;
        room.squares[i] = beside * beside;
    }
    __syncthreads();
}

// How many eigenvalues are below x: how many pivots of the elimination are negative (Sturm).
__device__ __forceinline__ uint32_t count_below(const SpectrumRoom& room, double x) {
    double pivot = 1;
    uint32_t below = 0;
    for (uint32_t i = 0; i < room.size; ++i) {
        pivot = room.diagonal[i] - x - (i == 0 ? 0 : room.squares[i - 1] / pivot);
        if (fabs(pivot) < kNegligible) pivot = -kNegligible;  // as LAPACK's dstebz does
        below += pivot < 0;
    }
    return below;
}

struct Range {
    double low, high;

    // Point k of kParts - 1 between the ends, k = 0 the one and k = kParts the other.
    template <int kParts>
    __device__ __forceinline__ double point(uint32_t k) const {
        return k == kParts ? high : low + (high - low) * (double(k) / kParts);
    }
};

// Where all eigenvalues lie (Gershgorin).
__device__ __forceinline__ Range range_of(const SpectrumRoom& room) {
    Range range = {INFINITY, -INFINITY};
    double before = 0;
    for (uint32_t i = 0; i < room.size; ++i) {
        const double after = i + 1 < room.size ? sqrt(room.squares[i]) : 0, radius = before + after;
        range.low = fmin(range.low, room.diagonal[i] - radius);
        range.high = fmax(range.high, room.diagonal[i] + radius);
        before = after;
    }
    return range;
}

// Eigenvalue `index` of the ascending ones: kThreads lanes side by side divide the range by as many points at a time,
// until it is below the rounding of its ends.
template <int kThreads>
__device__ __forceinline__ double find_eigenvalue(const SpectrumRoom& room, Range range, uint32_t index) {
    constexpr int kParts = kThreads + 1, kTurns = kThreads == 4 ? 24 : 11;  // kParts^kTurns > 2^55
    const uint32_t lane = threadIdx.x % kWarp, mine = lane % kThreads;
    for (int turn = 0; turn < kTurns; ++turn) {
        const bool beyond = count_below(room, range.point<kParts>(mine + 1)) > index;
        const unsigned votes = __ballot_sync(kAllLanes, beyond) >> (lane - mine);
        unsigned part = 0;  // the first whose upper end lies beyond
        while (part < kThreads && (votes >> part & 1) == 0) ++part;
        range = {range.point<kParts>(part), range.point<kParts>(part + 1)};
        if (threadIdx.x == 0) count_event(kSpectrumTurns);
    }
    return range.low + (range.high - range.low) / 2;
}

// NaN for a matrix that is not finite. Symmetric: all eigenvalues, ascending; else the largest singular value.
template <bool kSymmetric>
__global__ void spectra_kernel(double* results, const __grid_constant__ Matrices matrices) {
    const Matrix m = matrices.list[blockIdx.x];
    const uint32_t n = m.rows <= m.columns ? m.rows : m.columns;
    const SpectrumRoom room(shared_memory<double>(), n);
    double* const out = results + m.out;
    const double largest = largest_of(room, m);
    if (largest == double(INFINITY)) {  // the whole block
        for (uint32_t i = threadIdx.x; i < (kSymmetric ? n : 1); i += blockDim.x) out[i] = NAN;
        return;
    }
    const int exponent = largest == 0 ? 0 : ilogb(largest);
    if (kSymmetric)
        fill_symmetric(room, m, exponent);
    else
        fill_gram(room, m, exponent);
    __syncthreads();
    tridiagonalise(room);
    read_diagonals(room);
    const Range range = range_of(room);
    if (kSymmetric) {
        constexpr int kThreads = 4;
        const uint32_t at_once = blockDim.x / kThreads, mine = threadIdx.x / kThreads;
        for (uint32_t first = 0; first < n; first += at_once) {
            const uint32_t i = first + mine < n ? first + mine : n - 1;
            const double value = find_eigenvalue<kThreads>(room, range, i);
            if (first + mine < n && threadIdx.x % kThreads == 0) out[i] = ldexp(value, exponent);
        }
    } else if (threadIdx.x < kWarp) {
        const double most = find_eigenvalue<kWarp>(room, range, n - 1);
        if (threadIdx.x == 0) out[0] = ldexp(sqrt(most > 0 ? most : 0), exponent);
    }
}

// Each matrix is not empty and at most kMostSpectrum wide (its smaller side, unless symmetric). `threads`: a power of
// two from 32 on.
template <bool kSymmetric>
void spectra(double* results, const std::vector<Matrix>& matrices, cudaStream_t stream, int threads = 256) {
    for (size_t first = 0; first < matrices.size(); first += kMatricesAtOnce) {
        const size_t count = std::min<size_t>(matrices.size() - first, kMatricesAtOnce);
        Matrices table = {};
        uint32_t largest = 0;
        for (size_t k = 0; k < count; ++k) {
            table.list[k] = matrices[first + k];
            largest = std::max(largest, std::min(table.list[k].rows, table.list[k].columns));
        }
        launch(spectra_kernel<kSymmetric>,
               {unsigned(count), unsigned(threads), SpectrumRoom::bytes(largest, threads, !kSymmetric), stream},
               results, table);
    }
}

}  // namespace zcpipe::gpu
