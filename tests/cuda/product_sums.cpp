// product_sums on the shim, against sums in long double.

#include "cuda/product_sums.cuh"

#include "proof.h"

namespace {

using namespace zcpipe;
using gpu::Images;

template <typename T>
void equals_reference(const Images& g, int64_t skip) {
    const std::vector<T> z = proof::normals<T>(g.numel() + skip, 1), dz = proof::normals<T>(g.numel() + skip, 2);
    const std::string name = proof::name(g) + (sizeof(T) == 4 ? " float" : " double") + " skip " + std::to_string(skip);
    std::vector<double> out = proof::unwritten<double>(g.samples * g.channels), expected;
    for (int64_t n = 0; n < g.samples; ++n)
        for (int64_t c = 0; c < g.channels; ++c) {
            long double sum = 0;
            for (int64_t p = 0; p < g.pixels(); ++p) {
                const int64_t i = skip + proof::at(g, n, c, p);
                sum += static_cast<long double>(z[i]) * dz[i];
            }
            expected.push_back(double(sum));
        }
    proof::counters = {};
    gpu::product_sums(out.data(), z.data() + skip, dz.data() + skip, g.samples, g.channels, g.pixels(), g.channels_last,
                      nullptr, 64);
    const double off = proof::distance(out, expected);
    EXPECT(off < 1e-13 * double(g.pixels()), "off by %g, %s", off, name.c_str());
    const bool wide = skip == 0 && (g.channels_last ? g.channels : g.pixels()) % gpu::kWidest<T> == 0;
    EXPECT(proof::counters.launches == 1, "%s", name.c_str());
    EXPECT(proof::counters.events[gpu::kProductVectors] == g.numel() / (wide ? gpu::kWidest<T> : 1), "%s",
           name.c_str());
}

void not_a_number_stays_in_its_sum() {
    for (const bool last : {false, true}) {
        const Images g = {2, 3, 5, 5, last};
        std::vector<double> z = proof::normals<double>(g.numel(), 1), out(6);
        z[proof::at(g, 1, 2, 7)] = NAN;
        gpu::product_sums(out.data(), z.data(), z.data(), 2, 3, 25, last, nullptr);
        for (int i = 0; i < 6; ++i) EXPECT(std::isnan(out[i]) == (i == 5), "%d", i);
    }
}

void cases() {
    const int64_t shapes[][4] = {{2, 3, 5, 7}, {3, 8, 4, 4},  {1, 17, 2, 3},
                                 {4, 5, 1, 1}, {2, 4, 9, 12}, {2, 132, 1, 2}};
    for (const auto& s : shapes)
        for (const bool last : {false, true})
            for (const int64_t skip : {0, 1}) {
                equals_reference<float>({s[0], s[1], s[2], s[3], last}, skip);
                equals_reference<double>({s[0], s[1], s[2], s[3], last}, skip);
            }
    not_a_number_stays_in_its_sum();
}

}  // namespace

int main(int argc, char** argv) { return proof::run(argc, argv, cases); }
