// null on the shim: a copy.

#include "cuda/null.cuh"

#include "proof.h"

namespace {

using namespace zcpipe;

template <typename T>
void copies(int64_t count, int64_t skip) {
    const std::vector<T> source = proof::normals<T>(count + skip, 1);
    const std::vector<T> in(source.begin() + skip, source.end());
    std::vector<T> out = proof::unwritten<T>(count);
    proof::counters = {};
    gpu::null(out.data(), source.data() + skip, count, nullptr);
    EXPECT(out == in, "count %ld, skip %ld", long(count), long(skip));
    const bool wide = count % gpu::kWidest<T> == 0 && skip == 0;
    const int64_t vectors = wide ? count / gpu::kWidest<T> : count;
    EXPECT(proof::counters.events[gpu::kNullVectors] == vectors, "count %ld, skip %ld", long(count), long(skip));
    EXPECT(proof::counters.launches == 1 && proof::counters.blocks == (vectors + 255) / 256, "count %ld", long(count));
}

void cases() {
    for (const int64_t count : {1, 4, 7, 255, 1024, 1028, 2051})
        for (const int64_t skip : {0, 1}) {
            copies<float>(count, skip);
            copies<double>(count, skip);
        }
}

}  // namespace

int main(int argc, char** argv) { return proof::run(argc, argv, cases); }
