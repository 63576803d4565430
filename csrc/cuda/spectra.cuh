// Eigenvalues of many small symmetric matrices in one launch, and largest singular values. Free of torch.
//
// One block for each matrix, which it holds in shared memory in double precision: cyclic Jacobi, in which a round
// rotates disjoint pairs of rows and columns at once. A matrix is divided by a power of two first, so that nothing
// overflows or underflows on the way. It ends with a sweep in which no element off the diagonal was above the rounding
// of the norm.
#pragma once

#include <algorithm>
#include <vector>

#include "cuda/launch.h"

namespace zcpipe::gpu {

enum SpectrumEvent { kSpectrumSweeps, kSpectrumRotations };

constexpr int64_t kMostSpectrum = 64;  // rows and columns; the smaller side where singular values are asked for
constexpr int kMostSweeps = 24;        // convergence is quadratic: tests/cuda/spectra.cpp asserts how few it takes
constexpr int kMatricesAtOnce = 96;    // what a launch's parameters have room for

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

    uint32_t size;      // of the matrix, made even
    double* elements;   // [size, size + 1], of which the upper triangle counts
    double* cosines;    // [size / 2], a round's
    double* sines;      // [size / 2]
    double* rotates;    // [1], whether a round has any
    double* reduction;  // [threads]
    double* panel;      // [size, kPanel + 1]

    __device__ __forceinline__ SpectrumRoom(double* from, uint32_t n)
        : size(n + n % 2),
          elements(from),
          cosines(elements + size * (size + 1)),
          sines(cosines + size / 2),
          rotates(sines + size / 2),
          reduction(rotates + 2),
          panel(reduction + blockDim.x) {}

    static size_t bytes(size_t n, size_t threads, bool with_panel) {
        const size_t size = n + n % 2;
        return (size * (size + 1) + size + 2 + threads + (with_panel ? size * (kPanel + 1) : 0)) * sizeof(double);
    }

    __device__ __forceinline__ double& at(uint32_t i, uint32_t j) const {
        return i < j ? elements[i * (size + 1) + j] : elements[j * (size + 1) + i];
    }
};

// The largest of what the threads bring, or the sum, added up in halves; for all of them.
template <bool kLargest>
__device__ __forceinline__ double together(const SpectrumRoom& room, double value) {
    __syncthreads();  // the last result is read
    double& mine = room.reduction[threadIdx.x];
    mine = value;
    for (uint32_t half = blockDim.x / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x >= half) continue;
        const double other = room.reduction[threadIdx.x + half];
        mine = !kLargest ? mine + other : mine >= other ? mine : other;
    }
    __syncthreads();
    return room.reduction[0];
}

// The largest magnitude, infinite where an element is not finite.
__device__ __forceinline__ double largest_of(const SpectrumRoom& room, const Matrix& m) {
    double largest = 0;
    for (uint32_t e = threadIdx.x; e < m.rows * m.columns; e += blockDim.x) {
        const double size = fabs(m.at(e / m.columns, e % m.columns));
        if (!(size <= largest)) largest = size > largest ? size : double(INFINITY);
    }
    return together<true>(room, largest);
}

// The matrix over 2^exponent, from its lower triangle. Gives the thread's part of the squared norm.
__device__ __forceinline__ double fill_symmetric(const SpectrumRoom& room, const Matrix& m, int exponent) {
    double squares = 0;
    for (uint32_t e = threadIdx.x; e < room.size * room.size; e += blockDim.x) {
        const uint32_t i = e / room.size, j = e % room.size;
        if (j > i) continue;
        const double value = i < m.rows ? ldexp(m.at(i, j), -exponent) : 0;
        room.at(i, j) = value;
        squares += (i == j ? 1 : 2) * value * value;
    }
    return squares;
}

// The smaller Gram matrix of the matrix over 2^exponent.
__device__ __forceinline__ double fill_gram(const SpectrumRoom& room, const Matrix& m, int exponent) {
    constexpr uint32_t kStride = SpectrumRoom::kPanel + 1;
    const bool wide = m.rows <= m.columns;
    const uint32_t n = wide ? m.rows : m.columns, length = wide ? m.columns : m.rows;
    const bool along = (wide ? m.column_step : m.row_step) <= (wide ? m.row_step : m.column_step);
    for (uint32_t e = threadIdx.x; e < room.size * (room.size + 1); e += blockDim.x) room.elements[e] = 0;
    for (uint32_t first = 0; first < length; first += SpectrumRoom::kPanel) {
        __syncthreads();  // zeros are there, the last panel is read
        for (uint32_t e = threadIdx.x; e < room.size * SpectrumRoom::kPanel; e += blockDim.x) {
            const uint32_t i = along ? e / SpectrumRoom::kPanel : e % room.size;
            const uint32_t k = along ? e % SpectrumRoom::kPanel : e / room.size, from = first + k;
            double value = 0;
            if (i < n && from < length) value = ldexp(wide ? m.at(i, from) : m.at(from, i), -exponent);
            room.panel[i * kStride + k] = value;
        }
        __syncthreads();
        for (uint32_t e = threadIdx.x; e < room.size * room.size; e += blockDim.x) {
            const uint32_t i = e / room.size, j = e % room.size;
            if (j > i) continue;
            double sum = room.at(i, j);
            for (uint32_t k = 0; k < SpectrumRoom::kPanel; ++k)
                sum = fma(room.panel[i * kStride + k], room.panel[j * kStride + k], sum);
            room.at(i, j) = sum;
        }
    }
    double squares = 0;
    for (uint32_t e = threadIdx.x; e < room.size * room.size; e += blockDim.x) {
        const uint32_t i = e / room.size, j = e % room.size;  // the thread's own
        if (j <= i) squares += (i == j ? 1 : 2) * room.at(i, j) * room.at(i, j);
    }
    return squares;
}

struct Pair {
    uint32_t p, q;
};

// Pair k of a round of a tournament in which everyone meets everyone: the last index stays, the others move in a
// circle.
__device__ __forceinline__ Pair pair_of(uint32_t k, uint32_t round, uint32_t size) {
    const uint32_t circle = size - 1, p = round + k, q = round + circle - k;
    return {p < circle ? p : p - circle, k == 0 ? circle : q < circle ? q : q - circle};
}

// The first warp decides on a round's rotations, which make the pairs' own elements diagonal.
__device__ __forceinline__ void choose_rotations(const SpectrumRoom& room, uint32_t round, double negligible) {
    const uint32_t k = threadIdx.x;
    bool rotates = false;
    if (k < room.size / 2) {
        const auto [p, q] = pair_of(k, round, room.size);
        const double off = room.at(p, q);
        double c = 1, s = 0;
        rotates = fabs(off) > negligible;
        if (rotates) {
            const double theta = (room.at(q, q) - room.at(p, p)) / (2 * off);
            const double t = (theta < 0 ? -1 : 1) / (fabs(theta) + sqrt(theta * theta + 1));
            c = 1 / sqrt(t * t + 1);
            s = t * c;
            room.at(p, p) -= t * off;
            room.at(q, q) += t * off;
            room.at(p, q) = 0;
            count_event(kSpectrumRotations);
        }
        room.cosines[k] = c;
        room.sines[k] = s;
    }
    const unsigned any = __ballot_sync(kAllLanes, rotates);
    if (k == 0) *room.rotates = any != 0;
}

// All other elements: a thread has the four in which two pairs cross.
__device__ __forceinline__ void rotate(const SpectrumRoom& room, uint32_t round) {
    const uint32_t half = room.size / 2;
    for (uint32_t e = threadIdx.x; e < half * (half - 1) / 2; e += blockDim.x) {
        // Pairs of a circle of `half` by their distance, which goes round half of it.
        const uint32_t i = e % half, next = i + e / half + 1, j = next < half ? next : next - half;
        const Pair a = pair_of(i, round, room.size), b = pair_of(j, round, room.size);
        const double ca = room.cosines[i], sa = room.sines[i], cb = room.cosines[j], sb = room.sines[j];
        double &pp = room.at(a.p, b.p), &pq = room.at(a.p, b.q), &qp = room.at(a.q, b.p), &qq = room.at(a.q, b.q);
        const double w = ca * pp - sa * qp, x = ca * pq - sa * qq, y = sa * pp + ca * qp, z = sa * pq + ca * qq;
        pp = cb * w - sb * x;
        pq = sb * w + cb * x;
        qp = cb * y - sb * z;
        qq = sb * y + cb * z;
    }
}

// Leaves the eigenvalues on the diagonal.
__device__ __forceinline__ void diagonalise(const SpectrumRoom& room, double squares) {
    const double negligible = 0x1p-53 * sqrt(together<false>(room, squares)) / room.size;
    bool rotated = true;
    for (int sweep = 0; sweep < kMostSweeps && rotated; ++sweep) {
        rotated = false;
        for (uint32_t round = 0; round + 1 < room.size; ++round) {
            if (threadIdx.x < kWarp) choose_rotations(room, round, negligible);
            __syncthreads();
            if (*room.rotates != 0) {
                rotate(room, round);
                rotated = true;
            }
            __syncthreads();
        }
        if (threadIdx.x == 0) count_event(kSpectrumSweeps);
    }
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
    diagonalise(room, kSymmetric ? fill_symmetric(room, m, exponent) : fill_gram(room, m, exponent));
    if (kSymmetric) {
        for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) {
            const double value = room.at(i, i);
            uint32_t rank = 0;
            for (uint32_t j = 0; j < n; ++j) {
                const double other = room.at(j, j);
                rank += other < value || (other == value && j < i);
            }
            out[rank] = ldexp(value, exponent);
        }
    } else if (threadIdx.x == 0) {
        double most = 0;
        for (uint32_t i = 0; i < n; ++i) most = room.at(i, i) > most ? room.at(i, i) : most;
        out[0] = ldexp(sqrt(most), exponent);
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
