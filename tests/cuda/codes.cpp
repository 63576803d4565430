// sign_codes and hamming_distances on the shim, bit by bit.

#include "cuda/codes.cuh"

#include "proof.h"

namespace {

using namespace zcpipe;
using gpu::Images;
using Words = std::vector<uint64_t>;

template <typename T>
void codes_are_right(const Images& g, int64_t skip) {
    std::vector<T> x = proof::normals<T>(g.numel() + skip, 1);
    x[skip] = 0;
    x.back() = NAN;
    const std::string name = proof::name(g) + (sizeof(T) == 4 ? " float" : " double") + " skip " + std::to_string(skip);
    const int64_t size = g.channels * g.pixels(), words = (size + 63) / 64;
    Words codes(g.samples * words, 0x7777777777777777u), expected(g.samples * words);
    for (int64_t n = 0; n < g.samples; ++n)
        for (int64_t c = 0; c < g.channels; ++c)
            for (int64_t p = 0; p < g.pixels(); ++p) {
                const int64_t f = c * g.pixels() + p;
                if (x[skip + proof::at(g, n, c, p)] > 0) expected[n * words + f / 64] |= uint64_t{1} << (f % 64);
            }
    proof::counters = {};
    gpu::sign_codes(codes.data(), x.data() + skip, g.samples, g.channels, g.pixels(), g.channels_last, nullptr, 64);
    EXPECT(codes == expected, "%s", name.c_str());
    EXPECT(proof::counters.launches == 1, "%s", name.c_str());
    EXPECT(proof::counters.events[gpu::kCodeElements] == g.numel(), "%s", name.c_str());
}

void distances_are_right(int64_t samples, int64_t words, const gpu::HammingTuning& tuning = {}) {
    std::mt19937_64 bits(5);
    Words codes(samples * words);
    for (uint64_t& word : codes) word = bits();
    for (int64_t w = 0; samples > 2 && w < words; ++w) codes[2 * words + w] = codes[w];  // two that are the same
    std::vector<int64_t> out(samples * samples), expected(samples * samples);
    for (int64_t i = 0; i < samples; ++i)
        for (int64_t j = 0; j < samples; ++j)
            for (int64_t w = 0; w < words; ++w)
                for (int64_t b = 0; b < 64; ++b)
                    expected[i * samples + j] += (codes[i * words + w] >> b & 1) != (codes[j * words + w] >> b & 1);
    proof::counters = {};
    gpu::hamming_distances(out.data(), codes.data(), samples, words, nullptr, tuning);
    EXPECT(out == expected, "%ld codes of %ld words", long(samples), long(words));
    const int64_t tiles = (samples + 15) / 16;
    EXPECT(proof::counters.launches == 1, "%ld codes", long(samples));
    EXPECT(proof::counters.events[gpu::kCodeWords] == tiles * (tiles + 1) / 2 * ((words + 31) / 32),
           "%ld codes of %ld words", long(samples), long(words));
}

void cases() {
    const int64_t shapes[][4] = {{2, 3, 5, 7}, {3, 8, 8, 8}, {1, 17, 4, 8}, {4, 70, 1, 1}, {2, 4, 3, 12}, {1, 1, 1, 1}};
    for (const auto& s : shapes)
        for (const bool last : {false, true})
            for (const int64_t skip : {0, 1}) {
                codes_are_right<float>({s[0], s[1], s[2], s[3], last}, skip);
                codes_are_right<double>({s[0], s[1], s[2], s[3], last}, skip);
            }
    distances_are_right(1, 1);
    distances_are_right(5, 3);
    distances_are_right(16, 33);
    distances_are_right(37, 70, {.grain = 32, .most_blocks = 64});  // in pieces that add to one another
    distances_are_right(3, 100, {.grain = 1, .most_blocks = 4});
}

}  // namespace

int main(int argc, char** argv) { return proof::run(argc, argv, cases); }
