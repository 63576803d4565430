// Eigenvalues and largest singular values on the shim, against the spectra that matrices were made from.

#include "cuda/spectra.cuh"

#include "proof.h"

namespace {

using namespace zcpipe;
using Doubles = std::vector<double>;
using Wide = std::vector<long double>;

constexpr int kThreads = 64;

// m [rows, columns] times a product of reflections from the right, or from the left, in long double.
void reflect(Wide& m, int64_t rows, int64_t columns, bool left, unsigned seed) {
    const int64_t n = left ? rows : columns, others = left ? columns : rows;
    const int64_t step = left ? columns : 1, next = left ? 1 : columns;
    for (unsigned turn = 0; turn < 3; ++turn) {
        const Doubles v = proof::normals<double>(n, seed + turn);
        long double norm = 0;
        for (const double x : v) norm += static_cast<long double>(x) * x;
        for (int64_t o = 0; o < others; ++o) {
            long double dot = 0;
            for (int64_t i = 0; i < n; ++i) dot += v[i] * m[o * next + i * step];
            for (int64_t i = 0; i < n; ++i) m[o * next + i * step] -= 2 * v[i] * dot / norm;
        }
    }
}

// A matrix with these singular values; a symmetric one with these eigenvalues.
Wide made_of(const Doubles& values, int64_t rows, int64_t columns, bool symmetric) {
    Wide m(rows * columns);
    for (size_t i = 0; i < values.size(); ++i) m[i * columns + i] = values[i];
    reflect(m, rows, columns, true, 1);
    reflect(m, rows, columns, false, symmetric ? 1 : 7);
    return m;
}

// Matrices as a device would have them, each with a neighbour that no one may read.
template <typename T>
struct Given {
    std::vector<std::vector<T>> data;
    std::vector<gpu::Matrix> table;
    uint32_t results = 0;

    void add(const Wide& m, int64_t rows, int64_t columns, bool transposed, bool symmetric) {
        std::vector<T> values(m.size());
        for (int64_t i = 0; i < rows; ++i)
            for (int64_t j = 0; j < columns; ++j)
                values[transposed ? j * rows + i : i * columns + j] = T(m[i * columns + j]);
        data.push_back(values);
        table.push_back({data.back().data(), transposed ? 1 : columns, transposed ? rows : 1, uint32_t(rows),
                         uint32_t(columns), results, sizeof(T) == 8});
        results += symmetric ? uint32_t(rows) : 1;
    }
};

// Positive and negative, some of them near to one another, some the same, one zero.
Doubles spectrum(int64_t n) {
    Doubles values = proof::normals<double>(n, unsigned(n));
    if (n > 4) {
        values[1] = values[0] * (1 + 1e-9);
        values[2] = values[3];
        values[4] = 0;
    }
    return values;
}

template <typename T>
void eigenvalues_are_right(const std::vector<int64_t>& sizes, double scale) {
    Given<T> given;
    Doubles expected;
    for (const int64_t n : sizes) {
        Doubles values = spectrum(n);
        Wide m = made_of(values, n, n, true);
        for (long double& x : m) x *= scale;
        for (double& x : values) x *= scale;
        // Only lower triangles are read.
        if (n > 1) m[1] += scale;
        given.add(m, n, n, false, true);
        std::sort(values.begin(), values.end());
        expected.insert(expected.end(), values.begin(), values.end());
    }
    Doubles out = proof::unwritten<double>(given.results);
    proof::counters = {};
    gpu::spectra<true>(out.data(), given.table, nullptr, kThreads);
    for (double& x : out) x /= scale;
    for (double& x : expected) x /= scale;
    const double off = proof::distance(out, expected);
    EXPECT(off < (sizeof(T) == 4 ? 2e-6 : 2e-14), "off by %g at %g", off, scale);
    EXPECT(proof::counters.launches == 1 && proof::counters.blocks == int64_t(sizes.size()), "%ld launches",
           long(proof::counters.launches));
    int64_t reflections = 0, turns = 0;
    for (const int64_t n : sizes) {
        reflections += std::max<int64_t>(n - 2, 0);
        turns += 24 * ((4 * n + kThreads - 1) / kThreads);  // four threads an eigenvalue
    }
    EXPECT(proof::counters.events[gpu::kSpectrumReflections] == reflections, "%ld reflections", long(reflections));
    EXPECT(proof::counters.events[gpu::kSpectrumTurns] == turns, "%ld turns", long(turns));
}

template <typename T>
void largest_are_right(const std::vector<std::pair<int64_t, int64_t>>& sizes, double scale) {
    Given<T> given;
    Doubles expected;
    for (const auto& [rows, columns] : sizes)
        for (const bool transposed : {false, true}) {
            Doubles values = spectrum(std::min(rows, columns));
            Wide m = made_of(values, rows, columns, false);
            for (long double& x : m) x *= scale;
            given.add(m, rows, columns, transposed, false);
            double most = 0;
            for (const double x : values) most = std::max(most, std::abs(x));
            expected.push_back(most);
        }
    Doubles out = proof::unwritten<double>(given.results);
    proof::counters = {};
    gpu::spectra<false>(out.data(), given.table, nullptr, kThreads);
    for (size_t i = 0; i < out.size(); ++i) out[i] /= scale * expected[i];
    const double off = proof::distance(out, Doubles(out.size(), 1.0));
    EXPECT(off < (sizeof(T) == 4 ? 2e-6 : 2e-14), "off by %g at %g", off, scale);
    EXPECT(proof::counters.launches == 1 && proof::counters.blocks == int64_t(out.size()), "%ld launches",
           long(proof::counters.launches));
}

void rows_that_are_as_they_should_be_are_not_reflected() {
    const int64_t n = 7;
    Wide m(n * n);
    Doubles expected;
    for (int64_t i = 0; i < n; ++i) {
        m[i * n + i] = (3 * i) % n - 0.1L;
        expected.push_back(double(i - 0.1L));
    }
    Given<double> given;
    given.add(m, n, n, false, true);
    given.add(Wide(9), 3, 3, false, true);
    given.add({1, 2, 2, 1}, 2, 2, false, true);
    Doubles out = proof::unwritten<double>(n + 5);
    proof::counters = {};
    gpu::spectra<true>(out.data(), given.table, nullptr, kThreads);
    EXPECT(proof::counters.events[gpu::kSpectrumReflections] == 0, "reflections");
    const double off = proof::distance(Doubles(out.begin(), out.begin() + n), expected);
    EXPECT(off < 1e-15, "off by %g", off);
    for (int i = 0; i < 3; ++i) EXPECT(out[n + i] == 0, "%g", out[n + i]);
    EXPECT(std::abs(out[n + 3] + 1) < 1e-15 && std::abs(out[n + 4] - 3) < 1e-15, "%g %g", out[n + 3], out[n + 4]);
}

// Channels whose variances are nothing beside another's: their squares cannot be divided by.
void what_is_next_to_nothing_beside_others_spoils_nothing() {
    for (const double tiny : {1e-100, 1e-140, 1e-155, 1e-160, 1e-300}) {
        Wide m(16);
        m[0] = 1;
        for (int i = 1; i < 4; ++i)
            for (int j = 1; j < 4; ++j) m[i * 4 + j] = tiny * (i == j ? 2 : 1);
        Given<double> given;
        given.add(m, 4, 4, false, true);
        Doubles out = proof::unwritten<double>(4);
        gpu::spectra<true>(out.data(), given.table, nullptr, kThreads);
        for (int i = 0; i < 3; ++i) EXPECT(std::abs(out[i]) < 1e-16, "%g: %g", tiny, out[i]);
        EXPECT(std::abs(out[3] - 1) < 1e-15, "%g: %g", tiny, out[3]);
    }
}

// Covariances of few samples: most eigenvalues are 0, and none may be far below.
void low_ranks_are_right() {
    const int64_t n = 20;
    Doubles values(n, 0.0);
    values[3] = 2.5, values[11] = 1e-7;
    Given<double> given;
    given.add(made_of(values, n, n, true), n, n, false, true);
    Doubles out = proof::unwritten<double>(n);
    gpu::spectra<true>(out.data(), given.table, nullptr, kThreads);
    for (int64_t i = 0; i < n - 2; ++i) EXPECT(std::abs(out[i]) < 1e-15, "%g", out[i]);
    EXPECT(std::abs(out[n - 2] - 1e-7) < 1e-15 && std::abs(out[n - 1] - 2.5) < 4e-15, "%g %g", out[n - 2], out[n - 1]);
}

void not_a_number_spoils_its_own_matrix_alone() {
    for (const double bad : {double(NAN), double(INFINITY), -double(INFINITY)}) {
        Given<double> given, rows;
        const Wide one = {1, 0, 0, 1}, spoilt = {1, bad, bad, 1};
        for (const Wide& m : {one, spoilt, one}) {
            given.add(m, 2, 2, false, true);
            rows.add(m, 1, 4, false, false);
        }
        Doubles out = proof::unwritten<double>(6), largest = proof::unwritten<double>(3);
        gpu::spectra<true>(out.data(), given.table, nullptr, kThreads);
        gpu::spectra<false>(largest.data(), rows.table, nullptr, kThreads);
        for (int i = 0; i < 6; ++i) EXPECT(i / 2 == 1 ? std::isnan(out[i]) : out[i] == 1, "%d: %g", i, out[i]);
        for (int i = 0; i < 3; ++i)
            EXPECT(i == 1 ? std::isnan(largest[i]) : std::abs(largest[i] - std::sqrt(2)) < 1e-15, "%g", largest[i]);
    }
}

// More matrices than a launch's table holds.
void long_lists_take_more_launches() {
    Given<float> given;
    for (int i = 0; i < gpu::kMatricesAtOnce + 3; ++i) given.add({static_cast<long double>(i)}, 1, 1, false, true);
    Doubles out = proof::unwritten<double>(given.results);
    proof::counters = {};
    gpu::spectra<true>(out.data(), given.table, nullptr, 32);
    for (size_t i = 0; i < out.size(); ++i) EXPECT(out[i] == double(i), "%ld: %g", long(i), out[i]);
    EXPECT(proof::counters.launches == 2, "%ld launches", long(proof::counters.launches));
}

void cases() {
    eigenvalues_are_right<double>({1, 2, 3, 8, 5, 16, 17}, 1);
    eigenvalues_are_right<double>({64}, 1);
    eigenvalues_are_right<double>({6, 31}, 0x1p1000);
    eigenvalues_are_right<double>({6, 9}, 0x1p-1000);
    eigenvalues_are_right<float>({6, 12}, 1);
    largest_are_right<double>({{1, 1}, {3, 5}, {5, 3}, {1, 70}, {64, 65}, {8, 40}}, 1);
    largest_are_right<double>({{4, 4}, {3, 9}}, 0x1p1000);
    largest_are_right<double>({{4, 4}, {3, 9}}, 0x1p-1000);
    largest_are_right<float>({{4, 4}, {9, 3}}, 1e30);
    rows_that_are_as_they_should_be_are_not_reflected();
    what_is_next_to_nothing_beside_others_spoils_nothing();
    low_ranks_are_right();
    not_a_number_spoils_its_own_matrix_alone();
    long_lists_take_more_launches();
}

}  // namespace

int main(int argc, char** argv) { return proof::run(argc, argv, cases); }
