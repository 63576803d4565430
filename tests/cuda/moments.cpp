// covariance and cross_moment on the shim, against sums in long double over the definition.

#include "cuda/moments.cuh"

#include "proof.h"

namespace {

using namespace zcpipe;
using gpu::Images;
using gpu::Map;
using Doubles = std::vector<double>;

constexpr gpu::MomentTuning kTuning = {.grain = 40, .most_blocks = 64, .threads = 64};  // small maps in pieces

Map map_of(const Images& g) {
    if (g.channels_last)
        return {g.samples, g.channels, g.height, g.width, g.numel() / g.samples, 1, g.width * g.channels, g.channels};
    return {g.samples, g.channels, g.height, g.width, g.numel() / g.samples, g.pixels(), g.width, 1};
}

// Vectors that a panel's reading takes: those of one side, once for each tile of the other.
template <typename T>
int64_t vectors_of(const gpu::Side<T>& side, int64_t times) {
    return int64_t{side.count} * side.width / (side.wide ? gpu::kWidest<T> : 1) * times;
}

int64_t tiles(int64_t width, int64_t tile) { return (width + tile - 1) / tile; }

template <typename T>
void covariance_is_right(const Images& g, int64_t skip, double mean, bool wide,
                         const gpu::MomentTuning& tuning = kTuning) {
    const std::vector<T> x = proof::normals<T>(g.numel() + skip, 1, mean);
    const std::string name = proof::name(g) + (sizeof(T) == 4 ? " float" : " double") + " skip " + std::to_string(skip);
    const auto side = gpu::Side<T>::of(x.data() + skip, map_of(g), 1);
    const int64_t n = g.channels, count = g.samples * g.pixels();
    Doubles out = proof::unwritten<double>(n * n), scratch(gpu::moments_scratch(count, n, n, tuning), NAN);
    proof::counters = {};
    gpu::covariance(out.data(), scratch.data(), side, nullptr, tuning);

    Doubles expected(n * n);
    for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < n; ++j) {
            long double a = 0, b = 0, ab = 0;
            const auto each = [&](const auto& visit) {
                for (int64_t s = 0; s < g.samples; ++s)
                    for (int64_t p = 0; p < g.pixels(); ++p)
                        visit(x[skip + proof::at(g, s, i, p)], x[skip + proof::at(g, s, j, p)]);
            };
            each([&](long double u, long double v) { a += u, b += v; });
            each([&](long double u, long double v) { ab += (u - a / count) * (v - b / count); });
            expected[i * n + j] = double(ab / count);
        }
    const double off = proof::distance(out, expected);
    EXPECT(off < 1e-13 * double(count), "covariance off by %g, %s", off, name.c_str());
    for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < i; ++j) EXPECT(out[i * n + j] == out[j * n + i], "%s", name.c_str());

    const auto plan = gpu::MomentPlan::of(count, n, n, tuning);
    const int64_t across = tiles(n, plan.tile);
    EXPECT(side.wide == wide, "%s", name.c_str());
    EXPECT(proof::counters.launches == 2, "%s", name.c_str());
    // A tile of the diagonal reads its channels once, another one both its sides: each channel is read `across` times.
    EXPECT(proof::counters.events[gpu::kMomentVectors] == vectors_of(side, across), "%ld vectors, %s",
           long(proof::counters.events[gpu::kMomentVectors]), name.c_str());
    EXPECT(proof::counters.blocks == across * across * plan.grid.z + (n * n + 31) / 32, "%s", name.c_str());
}

template <typename T>
void cross_moment_is_right(const Images& a, const Images& b, bool wide_a, bool wide_b) {
    const int64_t fold = a.height / b.height, ca = a.channels * fold * fold, cb = b.channels;
    const int64_t count = b.samples * b.pixels();
    const std::vector<T> x = proof::normals<T>(a.numel(), 1), y = proof::normals<T>(b.numel(), 2, 0.5);
    const std::string name = proof::name(a) + ", " + proof::name(b) + (sizeof(T) == 4 ? " float" : " double");
    const auto left = gpu::Side<T>::of(x.data(), map_of(a), fold), right = gpu::Side<T>::of(y.data(), map_of(b), 1);
    Doubles out = proof::unwritten<double>(ca * cb), scratch(gpu::moments_scratch(count, ca, cb, kTuning), NAN);
    proof::counters = {};
    gpu::cross_moment(out.data(), scratch.data(), left, right, nullptr, kTuning);

    Doubles expected(ca * cb);
    for (int64_t fy = 0; fy < fold; ++fy)
        for (int64_t fx = 0; fx < fold; ++fx)
            for (int64_t c = 0; c < a.channels; ++c)
                for (int64_t j = 0; j < cb; ++j) {
                    long double sum = 0;
                    for (int64_t n = 0; n < b.samples; ++n)
                        for (int64_t row = 0; row < b.height; ++row)
                            for (int64_t col = 0; col < b.width; ++col) {
                                const int64_t pixel = (row * fold + fy) * a.width + col * fold + fx;
                                sum += static_cast<long double>(x[proof::at(a, n, c, pixel)]) *
                                       static_cast<long double>(y[proof::at(b, n, j, row * b.width + col)]);
                            }
                    expected[((fy * fold + fx) * a.channels + c) * cb + j] = double(sum / count);
                }
    const double off = proof::distance(out, expected);
    EXPECT(off < (sizeof(T) == 4 ? 4e-6 : 1e-14), "cross moment off by %g, %s", off, name.c_str());

    const auto plan = gpu::MomentPlan::of(count, ca, cb, kTuning);
    const int64_t vectors = vectors_of(left, tiles(cb, plan.tile)) + vectors_of(right, tiles(ca, plan.tile));
    EXPECT(left.wide == wide_a && right.wide == wide_b, "%d %d, %s", left.wide, right.wide, name.c_str());
    EXPECT(proof::counters.launches == 2, "%s", name.c_str());
    EXPECT(proof::counters.events[gpu::kMomentVectors] == vectors, "%s", name.c_str());
}

// All layouts are one order of positions and channels, so one sum.
void layouts_give_the_same_bits() {
    const Images last = {2, 6, 5, 7, true}, first = {2, 6, 5, 7, false};
    const std::vector<float> x = proof::normals<float>(last.numel(), 3, 100);
    std::vector<float> y(x.size());
    for (int64_t n = 0; n < 2; ++n)
        for (int64_t c = 0; c < 6; ++c)
            for (int64_t p = 0; p < 35; ++p) y[proof::at(first, n, c, p)] = x[proof::at(last, n, c, p)];
    Doubles scratch(gpu::moments_scratch(70, 6, 6, kTuning)), a(36), b(36);
    gpu::covariance(a.data(), scratch.data(), gpu::Side<float>::of(x.data(), map_of(last), 1), nullptr, kTuning);
    gpu::covariance(b.data(), scratch.data(), gpu::Side<float>::of(y.data(), map_of(first), 1), nullptr, kTuning);
    EXPECT(a == b, "two layouts");
}

// A slice of every other pixel, and one row for all of an image (stride 0).
void any_strides_do() {
    const std::vector<double> x = proof::normals<double>(200, 4);
    const Map sliced = {2, 3, 2, 3, 60, 20, 7, 2}, expanded = {2, 3, 4, 5, 15, 5, 0, 1};
    for (const Map& m : {sliced, expanded}) {
        std::vector<double> dense;
        for (int64_t n = 0; n < m.samples; ++n)
            for (int64_t p = 0; p < m.height * m.width; ++p)
                for (int64_t c = 0; c < m.channels; ++c)
                    dense.push_back(x[n * m.sample_step + c * m.channel_step + p / m.width * m.row_step +
                                      p % m.width * m.pixel_step]);
        const Images g = {m.samples, m.channels, m.height, m.width, true};
        const int64_t count = g.samples * g.pixels();
        Doubles scratch(gpu::moments_scratch(count, 3, 3, kTuning)), a(9), b(9);
        gpu::covariance(a.data(), scratch.data(), gpu::Side<double>::of(x.data(), m, 1), nullptr, kTuning);
        gpu::covariance(b.data(), scratch.data(), gpu::Side<double>::of(dense.data(), map_of(g), 1), nullptr, kTuning);
        EXPECT(a == b && a[0] > 0, "strided");
    }
}

void constants_have_no_covariance_and_infinities_stay_in_their_channel() {
    const Images g = {3, 5, 7, 7, true};
    std::vector<float> x(g.numel());
    for (int64_t i = 0; i < g.numel(); ++i) x[i] = 1e6f + 0.1f * float(i % 5);
    Doubles scratch(gpu::moments_scratch(147, 5, 5)), out(25, NAN);
    const auto side = gpu::Side<float>::of(x.data(), map_of(g), 1);
    gpu::covariance(out.data(), scratch.data(), side, nullptr);
    EXPECT(out == Doubles(25, 0.0), "constant");
    x[5 * 20 + 3] = INFINITY;
    gpu::covariance(out.data(), scratch.data(), side, nullptr);
    for (int64_t e = 0; e < 25; ++e)
        EXPECT(std::isfinite(out[e]) == (e / 5 != 3 && e % 5 != 3), "entry %ld is %g", long(e), out[e]);
}

// Ones times 2^-24: added up to 1 in float32 they would vanish.
void floats_are_flushed() {
    const int64_t count = 4096;
    std::vector<float> a(count, 0x1p-24f), b(count, 1.0f);
    a[0] = 1.0f;
    const Map rows = {count, 1, 1, 1, 1, 1, 0, 0};
    const gpu::MomentTuning one_piece = {.grain = count, .most_blocks = 1, .threads = 32};
    Doubles scratch(gpu::moments_scratch(count, 1, 1, one_piece)), out(1, NAN);
    proof::counters = {};
    gpu::cross_moment(out.data(), scratch.data(), gpu::Side<float>::of(a.data(), rows, 1),
                      gpu::Side<float>::of(b.data(), rows, 1), nullptr, one_piece);
    // The first 64 of a group are with the one.
    const double exact = 1 + (count - 1) * 0x1p-24;
    EXPECT(std::abs(out[0] * count - exact) <= 128 * 0x1p-24, "%.17g instead of %.17g", out[0] * count, exact);
    // A panel is 128 rows of a tile of 16, shared by two groups: every second panel ends with a flush, and the piece.
    EXPECT(proof::counters.events[gpu::kMomentFlushes] == 32 * (4096 / 128 / 2 + 1), "%ld",
           long(proof::counters.events[gpu::kMomentFlushes]));
}

void cases() {
    for (const bool last : {false, true}) {
        covariance_is_right<float>({2, 3, 5, 7, last}, 0, 0, false);
        covariance_is_right<float>({3, 8, 4, 4, last}, 0, 1000, true);
        covariance_is_right<float>({3, 8, 4, 4, last}, 1, 0, false);
        covariance_is_right<double>({2, 20, 6, 6, last}, 0, 30, true);
        covariance_is_right<double>({1, 1, 2, 3, last}, 0, 0, true);
        covariance_is_right<double>({1, 36, 4, 4, last}, 0, 0, true);
        covariance_is_right<float>({1, 70, 2, 2, last}, 0, 0, !last);

        for (const bool other : {false, true}) {
            cross_moment_is_right<float>({2, 3, 6, 4, last}, {2, 5, 3, 2, other}, false, false);
            cross_moment_is_right<float>({2, 8, 8, 8, last}, {2, 4, 8, 8, other}, true, true);
            cross_moment_is_right<double>({3, 4, 4, 8, last}, {3, 18, 2, 4, other}, last, true);
        }
    }
    cross_moment_is_right<double>({40, 7, 1, 1, false}, {40, 9, 1, 1, false}, false, false);  // rows
    cross_moment_is_right<float>({9, 68, 1, 1, false}, {9, 4, 1, 1, false}, true, true);
    cross_moment_is_right<float>({1, 2, 9, 9, true}, {1, 3, 3, 3, true}, false, false);
    layouts_give_the_same_bits();
    any_strides_do();
    constants_have_no_covariance_and_infinities_stay_in_their_channel();
    floats_are_flushed();
}

}  // namespace

int main(int argc, char** argv) { return proof::run(argc, argv, cases); }
