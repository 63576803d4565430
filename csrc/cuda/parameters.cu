// torch's side of parameter_statistics.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "common/layout.h"
#include "cuda/device.h"
#include "cuda/parameters.cuh"

namespace {

using namespace zcpipe;

// Whether both tensors lie in memory in one order and without gaps, so that they can be read as they lie.
bool same_dense_order(const Tensor& a, const Tensor& b) {
    std::vector<std::pair<int64_t, int64_t>> dimensions;  // stride, size
    for (int64_t d = 0; d < a.dim(); ++d) {
        if (a.size(d) == 1) continue;
        if (a.stride(d) != b.stride(d)) return false;
        dimensions.emplace_back(a.stride(d), a.size(d));
    }
    std::sort(dimensions.begin(), dimensions.end());
    int64_t expected = 1;
    for (const auto& [stride, size] : dimensions) {
        if (stride != expected) return false;
        expected *= size;
    }
    return true;
}

template <typename T>
gpu::Layer layer_of(const Tensor& weight, const Tensor& grad) {
    return gpu::Layer::of(weight.const_data_ptr<T>(), grad.const_data_ptr<T>(), weight.numel());
}

Tensor parameter_statistics(std::vector<Tensor> weights, std::vector<Tensor> grads) {  // -> [n, 4]
    STD_TORCH_CHECK(!weights.empty(), "weights: expected at least one tensor");
    STD_TORCH_CHECK(grads.size() == weights.size(), "grads: expected as many tensors as weights");
    const gpu::OnDeviceOf device(weights[0]);
    std::vector<gpu::Layer> layers;
    for (size_t k = 0; k < weights.size(); ++k) {
        Tensor &weight = weights[k], &grad = grads[k];  // copies, where they are made, live as long as the launch needs
        check_float(weight, "weights");
        STD_TORCH_CHECK(grad.scalar_type() == weight.scalar_type(), "grads: expected the dtypes of weights");
        STD_TORCH_CHECK(grad.sizes() == weight.sizes(), "grads: expected the shapes of weights");
        STD_TORCH_CHECK(weight.device() == weights[0].device() && grad.device() == weights[0].device(),
                        "weights: expected all tensors on one device");
        if (!same_dense_order(weight, grad)) {
            weight = torch::stable::contiguous(weight);
            grad = torch::stable::contiguous(grad);
        }
        layers.push_back(weight.scalar_type() == ScalarType::Double ? layer_of<double>(weight, grad)
                                                                    : layer_of<float>(weight, grad));
    }
    Tensor out = new_matrix(weights[0], int64_t(weights.size()), gpu::kStatistics, ScalarType::Double);
    const Tensor scratch = new_vector(weights[0], gpu::parameters_scratch(layers), ScalarType::Double);
    gpu::parameter_statistics(out.mutable_data_ptr<double>(), scratch.mutable_data_ptr<double>(), layers,
                              device.stream());
    return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(zcpipe, CUDA, m) { m.impl("parameter_statistics", TORCH_BOX(&parameter_statistics)); }
