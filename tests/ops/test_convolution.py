"""conv_batch_norm_train: ReLU, convolution, batch norm and a sum in one op."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from zcpipe.errors import UsageError
from zcpipe.ops import conv_batch_norm_train
from zcpipe.ops.convolution import _conv_batch_norm_train

EPS = 1e-5
# N, C, D, H, W, kernel, stride, padding
CASES = [
    (2, 16, 16, 8, 8, 3, 1, 1),
    (3, 3, 16, 9, 7, 3, 1, 1),
    (2, 16, 32, 8, 8, 3, 2, 1),
    (2, 17, 35, 9, 11, 3, 2, 1),
    (2, 32, 48, 6, 33, 1, 1, 0),
    (2, 5, 48, 7, 7, 1, 2, 0),
    (1, 20, 40, 12, 13, 5, 2, 2),
    (2, 16, 7, 8, 8, 5, 1, 0),
    (2, 16, 16, 2, 2, 3, 1, 3),
    (1, 1, 1, 1, 2, 1, 1, 0),
]


def normal(shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def tensors(case, dtype=torch.float64):
    """Images, kernels, scales and shifts."""
    n, c, d, h, w, k, *_ = case
    weight = normal((d, c, k, k), dtype, 1) * (2 / (c * k * k)) ** 0.5
    return normal((n, c, h, w), dtype), weight, 1 + normal((d,), dtype, 2) / 4, normal((d,), dtype, 3)


def twin(x, weight, norm_weight=None, norm_bias=None, *, total=None, stride, padding, relu_input, relu_output):
    how = (stride, padding, relu_input, relu_output)
    return _conv_batch_norm_train(x, weight, norm_weight, norm_bias, total, EPS, *how)


@pytest.mark.parametrize("relu_output", [False, True], ids=["linear", "relu"])
@pytest.mark.parametrize("relu_input", [False, True], ids=["as it is", "relu first"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_the_twin_forward_and_backward(native, case, relu_input, relu_output, strided):
    *_, stride, padding = case
    how = {"stride": stride, "padding": padding, "relu_input": relu_input, "relu_output": relu_output}
    x, *parameters = tensors(case)
    x = strided(x)
    shape = twin(x, *parameters, **how).shape
    total, cotangent = normal(shape, seed=4), normal(shape, seed=5)
    leaves = [t.clone().requires_grad_() for t in (x, total)]
    exact = twin(leaves[0], *parameters, total=leaves[1], **how)
    exact_grads = torch.autograd.grad(exact, leaves, cotangent)

    ours = [t.detach().requires_grad_() for t in (strided(x.float()), total.float())]
    y = conv_batch_norm_train(ours[0], *(p.float() for p in parameters), total=ours[1], **how)
    grads = torch.autograd.grad(y, ours, cotangent.float())
    for got, expected in zip((y, *grads), (exact, *exact_grads), strict=True):
        # A rounding error may take a value across zero, which only a ReLU's gradient sees, at few places.
        error = (got.double() - expected).abs() / max(1.0, float(expected.abs().max()))
        assert float(error.quantile(0.99)) < 2e-5, case
    assert y.is_contiguous(memory_format=torch.channels_last)


@given(
    case=st.tuples(
        *(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40), st.integers(3, 9), st.integers(3, 9)),
        *(st.integers(1, 3), st.integers(1, 2), st.integers(0, 3)),
    )
)
def test_equals_the_twin_on_any_shape(case):
    *_, stride, padding = case
    how = {"stride": stride, "padding": padding, "relu_input": True, "relu_output": False}
    x, weight, *_ = (t.float().requires_grad_() for t in tensors(case))
    twin_x = x.detach().double().requires_grad_()
    outputs = [(size + 2 * padding - case[5]) // stride + 1 for size in case[3:5]]
    assume(case[0] * outputs[0] * outputs[1] > 1)  # one value per channel has no variance
    expected = twin(twin_x, weight.detach().double(), **how)
    y = conv_batch_norm_train(x, weight.detach(), **how)
    cotangent = normal(y.shape, seed=5)
    (ours,) = torch.autograd.grad(y, x, cotangent.float())
    (theirs,) = torch.autograd.grad(expected, twin_x, cotangent)
    if y.numel() > 4 * y.shape[1]:  # the norm of few values is steep wherever two of them are close
        torch.testing.assert_close(y.double(), expected, atol=2e-3, rtol=1e-3)
        error = (ours.double() - theirs).abs() / max(1.0, float(theirs.abs().max()))
        assert float(error.quantile(0.9)) < 1e-3


def test_one_pixel_after_another(native):
    """A kernel that moves the image by one pixel shows every tap in its place, forward and backward."""
    x = normal((2, 3, 6, 5), torch.float32).requires_grad_()
    for row in range(3):
        for column in range(3):
            weight = torch.zeros(3, 3, 3, 3)
            weight[range(3), range(3), row, column] = 1.0
            y = conv_batch_norm_train(x, weight, padding=1)
            moved = torch.nn.functional.conv2d(x, weight, padding=1)
            expected = torch.nn.functional.batch_norm(moved, None, None, training=True)
            torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)
            grads = [torch.autograd.grad(t, x, normal(y.shape, torch.float32, 5))[0] for t in (y, expected)]
            torch.testing.assert_close(*grads, atol=1e-5, rtol=1e-5)


def test_parameters_have_gradients_too(native):
    case = CASES[2]
    how = {"stride": 2, "padding": 1, "relu_input": True, "relu_output": True}
    ours = [t.float().requires_grad_() for t in tensors(case)]
    exact = [t.requires_grad_() for t in tensors(case)]
    y, expected = conv_batch_norm_train(*ours, **how), twin(*exact, **how)
    cotangent = normal(y.shape, seed=5)
    grads = torch.autograd.grad(y, ours, cotangent.float())
    for got, want in zip(grads, torch.autograd.grad(expected, exact, cotangent), strict=True):
        assert float((got.double() - want).abs().quantile(0.99)) < 1e-4 * float(want.abs().max())


def test_derivatives_of_first_and_second_order_in_double_precision():
    x, weight, scale, shift = (t.requires_grad_() for t in tensors((2, 2, 3, 4, 4, 3, 1, 1)))
    arguments = (x, weight, scale, shift)

    def op(*arguments):
        return conv_batch_norm_train(*arguments, padding=1, relu_input=True)

    assert torch.autograd.gradcheck(op, arguments)
    assert torch.autograd.gradgradcheck(op, arguments)


def test_second_derivatives_through_the_native_op_are_the_twins(native):
    case = (2, 3, 4, 5, 5, 3, 1, 1)
    how = {"stride": 1, "padding": 1, "relu_input": True, "relu_output": False}
    results = []
    for op in (conv_batch_norm_train, twin):
        x, weight, *_ = (t.float().requires_grad_() for t in tensors(case))
        y = op(x, weight, **how)
        (first,) = torch.autograd.grad(y, x, normal(y.shape, torch.float32, 5), create_graph=True)
        results.append(torch.autograd.grad(first.square().sum(), (x, weight)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3 * float(theirs.abs().max()), rtol=1e-3)


def test_forward_mode_is_not_silently_zero():
    x, weight, *_ = (t.float() for t in tensors(CASES[0]))
    v = normal(x.shape, torch.float32, 6)
    how = {"stride": 1, "padding": 1, "relu_input": False, "relu_output": False}
    tangents = [torch.func.jvp(lambda x, op=op: op(x, weight, **how), (x,), (v,))[1] for op in
                (conv_batch_norm_train, twin)]  # fmt: skip
    torch.testing.assert_close(*tangents)
    assert tangents[0].any()


@pytest.mark.parametrize("case", [CASES[0], CASES[3]], ids=str)
def test_opcheck(native, case, strided):
    *_, stride, padding = case
    x, weight, scale, shift = (t.float() for t in tensors(case))
    x = strided(x).detach()
    op, backward = torch.ops.zcpipe.conv_batch_norm_train, torch.ops.zcpipe.conv_batch_norm_train_backward
    how = (stride, padding, True, False)
    y, z, mean, invstd = op(x, weight, scale, shift, None, EPS, *how)
    arguments = (x.clone().requires_grad_(), weight, scale, shift, torch.ones_like(y), EPS, *how)
    torch.library.opcheck(op.default, arguments)
    torch.library.opcheck(backward.default, (torch.ones_like(y), x, z, weight, scale, shift, mean, invstd, *how))


def test_the_number_of_threads_changes_nothing(native):
    x, weight, *_ = (t.float() for t in tensors((16, 16, 32, 16, 16, 3, 1, 1)))
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            leaf = x.clone().requires_grad_()
            y = conv_batch_norm_train(leaf, weight, padding=1)
            y.backward(normal(y.shape, torch.float32, 5))
            results.append((y.detach(), leaf.grad))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_nan_reaches_the_output(native):
    x, weight, *_ = (t.float() for t in tensors(CASES[0]))
    x[0, 0, 0, 0] = float("nan")
    assert conv_batch_norm_train(x, weight, padding=1, relu_input=True, relu_output=True).isnan().all()


ZEROS, KERNEL = torch.zeros(2, 3, 4, 4), torch.zeros(5, 3, 3, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": ZEROS.half()}, "^x: got torch.float16, expected "),
        ({"x": ZEROS[0]}, r"^x: got shape \(3, 4, 4\), expected four dimensions"),
        ({"weight": KERNEL[:, :2]}, r"^weight: got shape \(5, 2, 3, 3\), expected \(D, 3, K, K\)"),
        ({"weight": KERNEL.double()}, "^weight: got torch.float64 on cpu, expected x's torch.float32"),
        ({"weight": torch.zeros(5, 3, 7, 7)}, "^weight: got shape .* expected a kernel that fits"),
        ({"norm_weight": torch.ones(3)}, r"^norm_weight: got shape \(3,\), expected \(5,\)"),
        ({"total": ZEROS}, r"^total: got shape \(2, 3, 4, 4\), expected \(2, 5, 4, 4\)"),
        ({"stride": 0}, "^stride: got 0, expected 1 or more"),
        ({"padding": -1}, "^padding: got -1, expected 0 or more"),
        ({"x": ZEROS[:1], "stride": 4}, "^x: got shape .* expected more than one value per channel"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_a_wrong_argument_is_named(arguments, message):
    with pytest.raises(UsageError, match=message):
        conv_batch_norm_train(**{"x": ZEROS, "weight": KERNEL, "padding": 1, **arguments})


def test_direct_calls_are_guarded_too(native):
    op = torch.ops.zcpipe.conv_batch_norm_train
    with pytest.raises(RuntimeError, match="x: got Double, expected float32"):
        op(ZEROS.double(), KERNEL, None, None, None, EPS, 1, 1, False, False)
    with pytest.raises(RuntimeError, match="stride: got 3, expected 1 or 2"):
        op(ZEROS, KERNEL, None, None, None, EPS, 3, 1, False, False)


def test_a_kernel_that_depends_on_the_images_is_followed_once(native):
    x, kernel, *_ = (t.float() for t in tensors(CASES[0]))
    x.requires_grad_()
    how = {"stride": 1, "padding": 1, "relu_input": False, "relu_output": False}

    for create_graph in (False, True):
        grads = [
            torch.autograd.grad((op(x, kernel * (1 + x.mean()), **how) ** 3).sum(), x, create_graph=create_graph)[0]
            for op in (conv_batch_norm_train, twin)
        ]
        torch.testing.assert_close(*grads, atol=1e-3 * float(grads[1].detach().abs().max()), rtol=1e-3)
