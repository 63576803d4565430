// Every op's schema, and nothing else. The implementations register themselves from cpu/<op>.cpp.

#include <Python.h>
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(zcpipe, m) {
    m.def("instruction_set() -> str");
    m.def("cuda_runtime() -> str");  // not implemented where the library is for the CPU alone
    m.def("null(Tensor x) -> Tensor");

    m.def("philox_bits_(Tensor(a!) out, int key, int nonce, int first_block) -> ()");
    m.def("philox_normal_(Tensor(a!) out, int key, int nonce) -> ()");
    m.def("philox_uniform_(Tensor(a!) out, int key, int nonce) -> ()");
    m.def("philox_rademacher_(Tensor(a!) out, int key, int nonce) -> ()");
    m.def("philox_fills_(Tensor(a!)[] outs, int[] keys, int[] nonces, float[] scales, bool normal) -> ()");

    m.def("avg_pool3x3(Tensor x) -> Tensor");
    m.def("avg_pool3x3_backward(Tensor grad) -> Tensor");
    m.def("avg_pool3x3_onto(Tensor x, Tensor(a!) total) -> ()");
    m.def("avg_pool3x3_backward_onto(Tensor grad, Tensor(a!) total) -> ()");

    m.def(
        "batch_norm_train(Tensor x, Tensor? weight, Tensor? bias, Tensor? total, float eps, bool relu) "
        "-> (Tensor y, Tensor mean, Tensor invstd)");
    m.def(
        "batch_norm_train_backward(Tensor grad, Tensor x, Tensor? weight, Tensor? bias, Tensor mean, Tensor invstd, "
        "bool relu) -> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias)");

    m.def(
        "conv_batch_norm_train(Tensor x, Tensor weight, Tensor? norm_weight, Tensor? norm_bias, Tensor? total, "
        "float eps, int stride, int padding, bool relu_input, bool relu_output) "
        "-> (Tensor y, Tensor z, Tensor mean, Tensor invstd)");
    m.def(
        "conv_batch_norm_train_backward(Tensor grad, Tensor x, Tensor z, Tensor weight, Tensor? norm_weight, Tensor? "
        "norm_bias, Tensor mean, Tensor invstd, int stride, int padding, bool relu_input, bool relu_output) "
        "-> Tensor grad_x");

    m.def(
        "conv_batch_norm_train_onto(Tensor x, Tensor weight, Tensor? norm_weight, Tensor? norm_bias, Tensor(a!) total, "
        "float eps, int stride, int padding, bool relu_input, bool relu_output) "
        "-> (Tensor z, Tensor mean, Tensor invstd)");
    m.def(
        "conv_batch_norm_train_backward_onto(Tensor grad, Tensor x, Tensor z, Tensor weight, Tensor? norm_weight, "
        "Tensor? norm_bias, Tensor mean, Tensor invstd, Tensor(a!) total, int stride, int padding, bool relu_input, "
        "bool relu_output) -> ()");

    // grad_x is empty unless `input`, products unless `outputs`; the sums of z times its gradient over the pixels.
    m.def(
        "conv_batch_norm_train_gradients(Tensor grad, Tensor x, Tensor z, Tensor weight, Tensor? norm_weight, Tensor? "
        "norm_bias, Tensor mean, Tensor invstd, int stride, int padding, bool relu_input, bool relu_output, "
        "bool input, bool outputs) "
        "-> (Tensor grad_x, Tensor grad_weight, Tensor grad_norm_weight, Tensor grad_norm_bias, Tensor products)");
    m.def(
        "conv_batch_norm_train_gradients_onto(Tensor grad, Tensor x, Tensor z, Tensor weight, Tensor? norm_weight, "
        "Tensor? norm_bias, Tensor mean, Tensor invstd, Tensor(a!) total, int stride, int padding, bool relu_input, "
        "bool relu_output, bool outputs) "
        "-> (Tensor grad_weight, Tensor grad_norm_weight, Tensor grad_norm_bias, Tensor products)");

    // Values and tangents along weight + t weight_dot; statistics are mean, invstd and the means of z_dot and of z_dot
    // times the normalised z. The backward's product is the sum of weight times its gradient.
    m.def(
        "conv_batch_norm_tangent(Tensor x, Tensor? x_dot, Tensor weight, Tensor weight_dot, Tensor? norm_weight, "
        "Tensor? norm_bias, Tensor? total, Tensor? total_dot, float eps, int stride, int padding, bool relu_input) "
        "-> (Tensor y, Tensor y_dot, Tensor z, Tensor z_dot, Tensor statistics)");
    m.def(
        "conv_batch_norm_tangent_onto(Tensor x, Tensor? x_dot, Tensor weight, Tensor weight_dot, Tensor? norm_weight, "
        "Tensor? norm_bias, Tensor(a!) total, Tensor(b!) total_dot, float eps, int stride, int padding, "
        "bool relu_input) -> (Tensor z, Tensor z_dot, Tensor statistics)");
    m.def(
        "conv_batch_norm_tangent_backward(Tensor grad, Tensor grad_dot, Tensor x, Tensor? x_dot, Tensor z, "
        "Tensor z_dot, Tensor weight, Tensor weight_dot, Tensor? norm_weight, Tensor statistics, float eps, "
        "int stride, int padding, bool relu_input) -> (Tensor grad_x, Tensor grad_x_dot, Tensor product)");
    m.def(
        "conv_batch_norm_tangent_backward_onto(Tensor grad, Tensor grad_dot, Tensor x, Tensor? x_dot, Tensor z, "
        "Tensor z_dot, Tensor weight, Tensor weight_dot, Tensor? norm_weight, Tensor statistics, Tensor(a!) total, "
        "Tensor(b!) total_dot, float eps, int stride, int padding, bool relu_input) -> Tensor product");

    m.def("covariance(Tensor x) -> Tensor");
    m.def("cross_moment(Tensor a, Tensor b) -> Tensor");

    // For CUDA alone: the CPU has LAPACK.
    m.def("symmetric_eigenvalues(Tensor[] matrices) -> Tensor");
    m.def("largest_singular_values(Tensor[] matrices) -> Tensor");

    m.def("parameter_statistics(Tensor[] weights, Tensor[] grads) -> Tensor");
    m.def("product_sums(Tensor z, Tensor dz) -> Tensor");

    m.def("sign_codes(Tensor x) -> Tensor");
    m.def("hamming_distances(Tensor codes) -> Tensor");
}

// Python finds the library as the module zcpipe._C; the module itself is empty.
extern "C" PyMODINIT_FUNC PyInit__C() {
    static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
    return PyModule_Create(&module);
}
