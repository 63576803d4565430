// parameter_statistics on the shim, against sums in long double.

#include "cuda/parameters.cuh"

#include "proof.h"

namespace {

using namespace zcpipe;
using Doubles = std::vector<double>;

constexpr int kThreads = 64;

// Layers of these sizes; of each two neighbours one is of doubles, and every third starts off a vector.
struct Network {
    std::vector<std::vector<float>> floats;
    std::vector<std::vector<double>> doubles;
    std::vector<gpu::Layer> layers;
    Doubles expected;
    int64_t vectors = 0;

    explicit Network(const std::vector<int64_t>& sizes) {
        for (size_t k = 0; k < sizes.size(); ++k) {
            const int64_t skip = k % 3 == 2 ? 1 : 0;
            if (k % 2 == 0)
                add(floats, sizes[k], skip, unsigned(k));
            else
                add(doubles, sizes[k], skip, unsigned(k));
        }
    }

    template <typename T>
    void add(std::vector<std::vector<T>>& owner, int64_t size, int64_t skip, unsigned seed) {
        owner.push_back(proof::normals<T>(size + skip, 2 * seed));
        const T* w = owner.back().data() + skip;
        owner.push_back(proof::normals<T>(size + skip, 2 * seed + 1, 0.1));
        const T* g = owner.back().data() + skip;
        layers.push_back(gpu::Layer::of(w, g, size));
        long double sums[4] = {};
        for (int64_t i = 0; i < size; ++i) {
            const long double a = w[i], b = g[i];
            sums[0] += b * b;
            sums[1] += a * b;
            sums[2] += std::abs(a * b);
            sums[3] += a * a;
        }
        for (const long double sum : sums) expected.push_back(double(sum));
        const int64_t size_of_vector = skip == 0 ? gpu::kWidest<T> : 1;
        vectors += size / size_of_vector + size % size_of_vector;  // a chunk is of whole vectors
    }
};

void equals_reference(const std::vector<int64_t>& sizes, int64_t launches) {
    const Network network(sizes);
    Doubles out = proof::unwritten<double>(4 * int64_t(sizes.size()));
    Doubles scratch = proof::unwritten<double>(gpu::parameters_scratch(network.layers));
    proof::counters = {};
    gpu::parameter_statistics(out.data(), scratch.data(), network.layers, nullptr, kThreads);
    const double off = proof::distance(out, network.expected);
    EXPECT(off < 1e-11, "off by %g, %ld layers", off, long(sizes.size()));
    EXPECT(proof::counters.launches == launches, "%ld launches", long(proof::counters.launches));
    EXPECT(proof::counters.events[gpu::kParameterVectors] == network.vectors, "%ld vectors instead of %ld",
           long(proof::counters.events[gpu::kParameterVectors]), long(network.vectors));
    int64_t chunks = 0;
    for (const int64_t size : sizes) chunks += (size + 4095) / 4096;
    EXPECT(proof::counters.blocks == chunks + int64_t(sizes.size()), "%ld blocks", long(proof::counters.blocks));
}

void not_a_number_stays_in_its_layer() {
    Network network({9, 9, 9});
    network.doubles[0][4] = NAN;  // a weight of the second
    Doubles out(12), scratch(gpu::parameters_scratch(network.layers));
    gpu::parameter_statistics(out.data(), scratch.data(), network.layers, nullptr, kThreads);
    for (int i = 0; i < 12; ++i) EXPECT(std::isnan(out[i]) == (i / 4 == 1 && i % 4 != 0), "%d: %g", i, out[i]);
}

void cases() {
    equals_reference({1}, 2);
    equals_reference({432, 16, 0, 2304, 5, 4097, 8192, 0, 9001, 10}, 2);
    equals_reference({0, 0}, 1);
    equals_reference({66 * 4096 + 7, 3}, 2);  // more chunks than threads that fold
    std::vector<int64_t> many;
    for (int64_t k = 0; k < gpu::kLayersAtOnce + 5; ++k) many.push_back(k % 13);
    equals_reference(many, 4);
    not_a_number_stays_in_its_layer();
}

}  // namespace

int main(int argc, char** argv) { return proof::run(argc, argv, cases); }
