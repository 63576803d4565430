// The Philox fills on the shim, against the definition of every element from the stream's known words.

#include "cuda/philox.cuh"

#include "proof.h"

namespace {

using namespace zcpipe;
using gpu::Images;

constexpr StreamId kStream = {0x299f31d0a4093822u, 0x0370734413198a2eu};

// Philox4x32-10 as its paper states it, independent of common/philox.h.
std::vector<uint32_t> words_of(StreamId id, uint64_t block) {
    uint32_t c[4] = {uint32_t(block), uint32_t(block >> 32), uint32_t(id.nonce), uint32_t(id.nonce >> 32)};
    uint32_t k[2] = {uint32_t(id.key), uint32_t(id.key >> 32)};
    for (int round = 0; round < 10; ++round) {
        const uint64_t a = uint64_t{0xD2511F53u} * c[0], b = uint64_t{0xCD9E8D57u} * c[2];
        const uint32_t next[4] = {uint32_t(b >> 32) ^ c[1] ^ k[0], uint32_t(b), uint32_t(a >> 32) ^ c[3] ^ k[1],
                                  uint32_t(a)};
        std::copy_n(next, 4, c);
        k[0] += 0x9E3779B9u;
        k[1] += 0xBB67AE85u;
    }
    return {c, c + 4};
}

double normal(uint64_t i) {
    const std::vector<uint32_t> w = words_of(kStream, i / 2);
    const NormalPair pair = normal_pair(uint64_t{w[1]} << 32 | w[0], uint64_t{w[3]} << 32 | w[2]);
    return i % 2 == 0 ? pair.first : pair.second;
}

double uniform_number(uint64_t i) {
    const double word = words_of(kStream, i / 4)[i % 4];
    return (word < 0x1p31 ? word : word - 0x1p32) / 0x1p31;
}

double sign(uint64_t i) { return words_of(kStream, i / 128)[i / 32 % 4] >> (i % 32) & 1 ? 1 : -1; }

// The pair's definition in words, with libm's functions: what normal_pair must be near.
void normals_are_box_muller() {
    for (uint64_t i = 0; i < 500; ++i) {
        const std::vector<uint32_t> w = words_of(kStream, i);
        const double u = (double(w[1] >> 5) * 0x1p26 + double((w[0] >> 6) + 1)) * 0x1p-53;
        const double v = (double(w[3] >> 5) * 0x1p26 + double(w[2] >> 6)) * 0x1p-53;
        const double radius = std::sqrt(-2 * std::log(u)), angle = 2 * M_PI * v;
        const double off =
            std::abs(normal(2 * i) - radius * std::cos(angle)) + std::abs(normal(2 * i + 1) - radius * std::sin(angle));
        EXPECT(off < 1e-14, "pair %lu is off by %g", long(i), off);
    }
}

void known_answers() {
    const StreamId id = {0x299f31d0a4093822u, 0x0370734413198a2eu};
    std::vector<int64_t> out = proof::unwritten<int64_t>(4);
    gpu::philox_bits(out.data(), id, 0x85a308d3243f6a88u, 4, nullptr);
    EXPECT((out == std::vector<int64_t>{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}), "Random123's third vector");
}

void bits(int64_t count, uint64_t first) {
    std::vector<int64_t> out = proof::unwritten<int64_t>(count), expected(count);
    for (int64_t i = 0; i < count; ++i) expected[i] = words_of(kStream, first + uint64_t(i) / 4)[i % 4];
    proof::counters = {};
    gpu::philox_bits(out.data(), kStream, first, count, nullptr);
    EXPECT(out == expected, "count %ld", long(count));
    EXPECT(proof::counters.events[gpu::kPhiloxBlocks] == (count + 3) / 4, "count %ld", long(count));
}

template <typename T>
void fills(int64_t count) {
    std::vector<T> out = proof::unwritten<T>(count), expected(count);
    for (int64_t i = 0; i < count; ++i) expected[i] = T(normal(i));
    proof::counters = {};
    gpu::philox_normal(out.data(), kStream, count, nullptr);
    EXPECT(out == expected, "normals, count %ld", long(count));
    EXPECT(proof::counters.events[gpu::kPhiloxBlocks] == (count + 1) / 2, "count %ld", long(count));
    for (const int64_t skip : {0, 1}) {
        out = proof::unwritten<T>(count + skip);
        expected.clear();
        for (int64_t i = 0; i < count; ++i) expected.push_back(T(uniform_number(i)));
        proof::counters = {};
        gpu::philox_uniform(out.data() + skip, kStream, count, nullptr);
        EXPECT(std::equal(out.begin() + skip, out.end(), expected.begin()), "uniform, count %ld", long(count));
        EXPECT(proof::counters.events[gpu::kPhiloxBlocks] == (count + 3) / 4, "count %ld", long(count));
    }
    for (const int64_t skip : {0, 1}) {
        out = proof::unwritten<T>(count + skip);
        expected.assign(1, out[0]);
        expected.resize(skip);
        for (int64_t i = 0; i < count; ++i) expected.push_back(T(sign(i)));
        proof::counters = {};
        gpu::philox_rademacher(out.data() + skip, kStream, count, nullptr);
        EXPECT(std::equal(out.begin() + skip, out.end(), expected.begin() + skip), "signs, count %ld", long(count));
        const int64_t blocks = (count + 8191) / 8192;
        EXPECT(proof::counters.events[gpu::kPhiloxBlocks] == blocks * gpu::kSignBlocks, "count %ld", long(count));
        EXPECT(proof::counters.blocks == blocks && proof::counters.block_barriers == blocks, "count %ld", long(count));
    }
}

// How many blocks of `size` elements the runs of `width` pixels of each channel touch, summed over the runs.
int64_t touched(const Images& g, int64_t width, int64_t size) {
    int64_t blocks = 0;
    for (int64_t plane = 0; plane < g.samples * g.channels; ++plane)
        for (int64_t p = 0; p < g.pixels(); p += width) {
            const int64_t first = plane * g.pixels() + p, last = first + std::min(width, g.pixels() - p) - 1;
            blocks += last / size - first / size + 1;
        }
    return blocks;
}

template <typename T>
void images(const Images& g) {
    std::vector<T> normals = proof::unwritten<T>(g.numel()), signs = normals, uniform = normals;
    std::vector<T> a = normals, b = normals, u = normals;
    for (int64_t n = 0, i = 0; n < g.samples; ++n)
        for (int64_t c = 0; c < g.channels; ++c)
            for (int64_t p = 0; p < g.pixels(); ++p, ++i) {
                a[proof::at(g, n, c, p)] = T(normal(i));
                u[proof::at(g, n, c, p)] = T(uniform_number(i));
                b[proof::at(g, n, c, p)] = T(sign(i));
            }
    gpu::philox_normal_nhwc(normals.data(), kStream, g, nullptr);
    EXPECT(normals == a, "normals, %s", proof::name(g).c_str());
    proof::counters = {};
    gpu::philox_uniform_nhwc(uniform.data(), kStream, g, nullptr);
    EXPECT(uniform == u, "uniform, %s", proof::name(g).c_str());
    EXPECT(proof::counters.events[gpu::kPhiloxBlocks] == touched(g, g.pixels(), 4), "%s", proof::name(g).c_str());
    proof::counters = {};
    gpu::philox_rademacher_nhwc(signs.data(), kStream, g, nullptr);
    EXPECT(signs == b, "signs, %s", proof::name(g).c_str());
    EXPECT(proof::counters.events[gpu::kPhiloxBlocks] == touched(g, 32, 128), "%s", proof::name(g).c_str());
}

// Tensors of these sizes, of doubles in turn, each with a stream and a factor of its own.
struct Tensors {
    std::vector<std::vector<float>> floats;
    std::vector<std::vector<double>> doubles;
    std::vector<gpu::Fill> fills;
    int64_t pairs = 0, quads = 0;

    explicit Tensors(const std::vector<int64_t>& sizes) {
        for (size_t k = 0; k < sizes.size(); ++k) {
            floats.push_back(proof::unwritten<float>(sizes[k]));
            doubles.push_back(proof::unwritten<double>(sizes[k]));
            void* const out = k % 2 == 0 ? static_cast<void*>(floats[k].data()) : doubles[k].data();
            fills.push_back({out, {kStream.key, kStream.nonce + k}, 0.3 + double(k), uint64_t(sizes[k]), k % 2 == 1});
            pairs += (sizes[k] + 1) / 2;
            quads += (sizes[k] + 3) / 4;
        }
    }
};

template <bool kNormal, typename T>
T expected_of(const gpu::Fill& fill, uint64_t i) {
    if (!kNormal) {
        const double word = words_of(fill.id, i / 4)[i % 4];
        return T((word < 0x1p31 ? word : word - 0x1p32) / 0x1p31) * T(fill.scale);
    }
    const std::vector<uint32_t> w = words_of(fill.id, i / 2);
    const NormalPair pair = normal_pair(uint64_t{w[1]} << 32 | w[0], uint64_t{w[3]} << 32 | w[2]);
    return T(i % 2 == 0 ? pair.first : pair.second) * T(fill.scale);
}

template <bool kNormal>
void many(const std::vector<int64_t>& sizes, int64_t launches) {
    Tensors tensors(sizes);
    proof::counters = {};
    gpu::philox_fills<kNormal>(tensors.fills, nullptr);
    for (size_t k = 0; k < sizes.size(); ++k)
        for (int64_t i = 0; i < sizes[k]; ++i) {
            const gpu::Fill& fill = tensors.fills[k];
            const bool same = fill.is_double ? tensors.doubles[k][i] == expected_of<kNormal, double>(fill, i)
                                             : tensors.floats[k][i] == expected_of<kNormal, float>(fill, i);
            EXPECT(same, "tensor %ld, element %ld", long(k), long(i));
        }
    EXPECT(proof::counters.launches == launches, "%ld launches", long(proof::counters.launches));
    EXPECT(proof::counters.events[gpu::kPhiloxBlocks] == (kNormal ? tensors.pairs : tensors.quads), "%ld blocks",
           long(proof::counters.events[gpu::kPhiloxBlocks]));
}

void cases() {
    normals_are_box_muller();
    many<true>({1}, 1);
    many<true>({432, 0, 16, 2304, 1, 513, 1025, 9, 0}, 1);
    many<false>({432, 0, 16, 2304, 1, 513, 1025, 9, 0}, 1);
    many<true>({0, 0}, 0);
    many<false>(std::vector<int64_t>(150, 3), 3);
    known_answers();
    for (const int64_t count : {1, 2, 3, 4, 70})
        for (const uint64_t first : {uint64_t{0}, uint64_t{5}, ~uint64_t{0} - 3}) bits(count, first);
    for (const int64_t count : {1, 2, 33, 128, 8192, 8193, 9000}) {
        fills<float>(count);
        fills<double>(count);
    }
    const int64_t shapes[][4] = {{1, 2, 1, 1}, {2, 3, 5, 7}, {2, 16, 8, 8}, {3, 5, 1, 9}, {1, 33, 6, 6}, {2, 2, 8, 16}};
    for (const auto& s : shapes) {
        images<float>({s[0], s[1], s[2], s[3], true});
        images<double>({s[0], s[1], s[2], s[3], true});
    }
}

}  // namespace

int main(int argc, char** argv) { return proof::run(argc, argv, cases); }
