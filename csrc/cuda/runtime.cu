// What the library's CUDA half was built with: for build_info() and `zcpipe doctor`.

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/library.h>

#include <string>

namespace {

std::string cuda_runtime() {
#if defined(ZCPIPE_STATIC_CUDART)
    const char* const kind = "static";
#else
    const char* const kind = "shared";
#endif
    return std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION / 10 % 100) + " " + kind;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(zcpipe, CompositeExplicitAutograd, m) { m.impl("cuda_runtime", TORCH_BOX(&cuda_runtime)); }
