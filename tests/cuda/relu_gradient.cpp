// relu_gradient on the shim, against the same sums one by one.

#include "cuda/relu_gradient.cuh"

#include "proof.h"

namespace {

using namespace zcpipe;

template <typename T>
std::vector<T> reference(const std::vector<T>& total, const std::vector<T>& grad, const std::vector<T>* x, bool onto) {
    std::vector<T> out(grad.size());
    for (size_t i = 0; i < grad.size(); ++i) {
        const bool stops = x != nullptr && (*x)[i] <= T(0);
        out[i] = (onto ? total[i] : T(0)) + (stops ? T(0) : grad[i]);
    }
    return out;
}

template <typename T>
void equals_reference(int64_t count, int64_t skip, bool gated, bool onto) {
    std::vector<T> source = proof::normals<T>(count + skip, 1), values = proof::normals<T>(count, 2);
    const std::vector<T> grad(source.begin() + skip, source.end());
    values[0] = T(0);  // stops
    std::vector<T> out = onto ? proof::normals<T>(count, 3) : proof::unwritten<T>(count);
    const std::vector<T> expected = reference(out, grad, gated ? &values : nullptr, onto);
    proof::counters = {};
    gpu::relu_gradient(out.data(), source.data() + skip, gated ? values.data() : nullptr, onto, count, nullptr);
    EXPECT(out == expected, "count %ld, skip %ld, gated %d, onto %d", long(count), long(skip), gated, onto);
    const bool wide = count % gpu::kWidest<T> == 0 && skip == 0;
    const int64_t vectors = wide ? count / gpu::kWidest<T> : count;
    EXPECT(proof::counters.events[gpu::kReluGradientVectors] == vectors, "count %ld", long(count));
    EXPECT(proof::counters.launches == 1 && proof::counters.blocks == (vectors + 255) / 256, "count %ld", long(count));
}

template <typename T>
void works_in_place(int64_t count) {
    std::vector<T> grad = proof::normals<T>(count, 1);
    const std::vector<T> x = proof::normals<T>(count, 2), expected = reference<T>({}, grad, &x, false);
    gpu::relu_gradient(grad.data(), grad.data(), x.data(), false, count, nullptr);
    EXPECT(grad == expected, "count %ld", long(count));
}

void cases() {
    for (const int64_t count : {1, 4, 7, 255, 1024, 1028})
        for (const int64_t skip : {0, 1})
            for (const bool gated : {false, true})
                for (const bool onto : {false, true}) {
                    equals_reference<float>(count, skip, gated, onto);
                    equals_reference<double>(count, skip, gated, onto);
                }
    works_in_place<float>(1028);
    works_in_place<double>(7);
}

}  // namespace

int main(int argc, char** argv) { return proof::run(argc, argv, cases); }
