// avg_pool3x3 on the shim, against windows summed one by one.

#include "cuda/avg_pool.cuh"

#include "proof.h"

namespace {

using namespace zcpipe;
using gpu::Images, gpu::PoolDirection;

// The mean over each window, or for the transpose the share that each window hands to its pixels.
template <PoolDirection kDirection, typename T>
std::vector<double> reference(const std::vector<T>& in, const Images& g) {
    std::vector<double> out(in.size(), 0);
    for (int64_t n = 0; n < g.samples; ++n)
        for (int64_t c = 0; c < g.channels; ++c)
            for (int64_t h = 0; h < g.height; ++h)
                for (int64_t w = 0; w < g.width; ++w) {
                    std::vector<int64_t> window;
                    for (int64_t y = std::max<int64_t>(0, h - 1); y < std::min(g.height, h + 2); ++y)
                        for (int64_t x = std::max<int64_t>(0, w - 1); x < std::min(g.width, w + 2); ++x)
                            window.push_back(proof::at(g, n, c, y * g.width + x));
                    const int64_t centre = proof::at(g, n, c, h * g.width + w);
                    for (const int64_t i : window) {
                        if (kDirection == PoolDirection::kForward)
                            out[centre] += double(in[i]) / double(window.size());
                        else
                            out[i] += double(in[centre]) / double(window.size());
                    }
                }
    return out;
}

// How often rows must be read: a strip of rows needs its own and one on either side, where there is one.
int64_t rows_read(const Images& g) {
    int64_t rows = 0;
    for (int64_t top = 0; top < g.height; top += gpu::kPoolRowsPerThread) {
        const int64_t bottom = std::min(g.height, top + gpu::kPoolRowsPerThread);
        rows += bottom - top + (top > 0) + (bottom < g.height);
    }
    return rows;
}

template <PoolDirection kDirection, typename T>
void equals_reference(const Images& g, int64_t skip, bool onto) {
    const std::vector<T> source = proof::normals<T>(g.numel() + skip, 1);
    const std::vector<T> in(source.begin() + skip, source.end());
    std::vector<T> out = onto ? proof::normals<T>(g.numel(), 2) : proof::unwritten<T>(g.numel());
    std::vector<double> expected = reference<kDirection>(in, g);
    for (size_t i = 0; onto && i < expected.size(); ++i) expected[i] += double(out[i]);
    proof::counters = {};
    gpu::avg_pool3x3<kDirection>(out.data(), source.data() + skip, onto, g, nullptr);
    const double off = proof::distance(out, expected);
    EXPECT(off < (sizeof(T) == 4 ? 2e-6 : 4e-15), "off by %g, %s, skip %ld", off, proof::name(g).c_str(), long(skip));
    const bool wide = g.channels_last && g.channels > 1 && g.channels % gpu::kWidest<T> == 0 && skip == 0;
    const int64_t columns = g.samples * g.channels * g.width / (wide ? gpu::kWidest<T> : 1);
    EXPECT(proof::counters.events[gpu::kPoolRows] == columns * rows_read(g), "%s", proof::name(g).c_str());
    EXPECT(proof::counters.launches == 1, "%s", proof::name(g).c_str());
}

void cases() {
    const int64_t shapes[][4] = {{1, 1, 1, 1}, {1, 4, 1, 5}, {2, 3, 5, 1}, {2, 8, 9, 3}, {3, 5, 4, 6}, {1, 6, 13, 2}};
    for (const auto& s : shapes)
        for (const bool last : {false, true})
            for (const int64_t skip : {0, 1})
                for (const bool onto : {false, true}) {
                    const Images g = {s[0], s[1], s[2], s[3], last};
                    equals_reference<PoolDirection::kForward, float>(g, skip, onto);
                    equals_reference<PoolDirection::kForward, double>(g, skip, onto);
                    equals_reference<PoolDirection::kBackward, float>(g, skip, onto);
                    equals_reference<PoolDirection::kBackward, double>(g, skip, onto);
                }
}

}  // namespace

int main(int argc, char** argv) { return proof::run(argc, argv, cases); }
