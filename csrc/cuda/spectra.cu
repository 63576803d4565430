// torch's side of symmetric_eigenvalues and largest_singular_values, which have no CPU kernels: LAPACK has them.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <vector>

#include "common/layout.h"
#include "cuda/device.h"
#include "cuda/spectra.cuh"

namespace {

using namespace zcpipe;

template <bool kSymmetric>
Tensor spectra(const std::vector<Tensor>& matrices) {
    STD_TORCH_CHECK(!matrices.empty(), "matrices: expected at least one");
    const gpu::OnDeviceOf device(matrices[0]);
    std::vector<gpu::Matrix> table;
    int64_t results = 0;
    for (const Tensor& m : matrices) {
        check_float(m, "matrices");
        STD_TORCH_CHECK(m.device() == matrices[0].device(), "matrices: expected all on one device");
        STD_TORCH_CHECK(m.dim() == 2 && m.numel() > 0, "matrices: expected two dimensions and an element");
        STD_TORCH_CHECK(!kSymmetric || m.size(0) == m.size(1), "matrices: expected square ones");
        const int64_t size = std::min(m.size(0), m.size(1));
        STD_TORCH_CHECK(size <= gpu::kMostSpectrum, "matrices: got ", size, " rows and columns, expected at most ",
                        gpu::kMostSpectrum);
        gpu::blocks_for(m.numel(), 1);  // refuses what 32 bits do not count
        const bool is_double = m.scalar_type() == ScalarType::Double;
        const void* const data = is_double ? static_cast<const void*>(m.const_data_ptr<double>())
                                           : static_cast<const void*>(m.const_data_ptr<float>());
        table.push_back(
            {data, m.stride(0), m.stride(1), uint32_t(m.size(0)), uint32_t(m.size(1)), uint32_t(results), is_double});
        results += kSymmetric ? size : 1;
    }
    Tensor out = new_vector(matrices[0], results, ScalarType::Double);
    gpu::spectra<kSymmetric>(out.mutable_data_ptr<double>(), table, device.stream());
    return out;
}

Tensor symmetric_eigenvalues(std::vector<Tensor> matrices) {  // [C, C] each -> [sum of C]
    return spectra<true>(matrices);
}

Tensor largest_singular_values(std::vector<Tensor> matrices) {  // [A, B] each -> [n]
    return spectra<false>(matrices);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(zcpipe, CUDA, m) {
    m.impl("symmetric_eigenvalues", TORCH_BOX(&symmetric_eigenvalues));
    m.impl("largest_singular_values", TORCH_BOX(&largest_singular_values));
}
