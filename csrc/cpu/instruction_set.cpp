// Which of the compiled instruction sets this processor uses: the same choice that the kernels' clones make.

#include <torch/csrc/stable/library.h>

#include <string>

#include "common/simd.h"

namespace {

#if ZCPIPE_HAS_CLONES
__attribute__((target("default"))) const char* chosen() { return "default"; }
__attribute__((target("arch=x86-64-v3"))) const char* chosen() { return "x86-64-v3"; }
__attribute__((target("arch=x86-64-v4"))) const char* chosen() { return "x86-64-v4"; }
#else
const char* chosen() { return "default"; }
#endif

std::string instruction_set() { return chosen(); }

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(zcpipe, CompositeExplicitAutograd, m) {
    m.impl("instruction_set", TORCH_BOX(&instruction_set));
}
