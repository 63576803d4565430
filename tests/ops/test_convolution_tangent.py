"""conv_batch_norm_tangent: the fused convolution along a line in its weights, and the gradients that come back."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from zcpipe.errors import UsageError
from zcpipe.ops import conv_batch_norm_tangent, conv_batch_norm_tangent_backward
from zcpipe.ops.convolution import _conv_batch_norm_train
from zcpipe.ops.convolution_tangent import _conv_batch_norm_tangent, _conv_batch_norm_tangent_backward

EPS = 1e-2  # large enough to be seen: without it, sums of weights and their gradients nearly cancel
# N, C, D, H, W, kernel, stride, padding
CASES = [
    (2, 16, 16, 8, 8, 3, 1, 1),
    (3, 3, 16, 9, 7, 3, 1, 1),
    (2, 17, 35, 9, 11, 3, 2, 1),
    (2, 33, 48, 6, 33, 1, 1, 0),
    (2, 5, 48, 7, 7, 1, 2, 0),
    (1, 20, 40, 12, 13, 5, 2, 2),
    (2, 3, 4, 5, 4, 3, 1, 3),
    (2, 16, 16, 2, 3, 3, 1, 1),
    (9, 2, 3, 31, 30, 3, 1, 1),
]


@pytest.fixture(autouse=True)
def _native(native):
    """There is nothing to compare the twin with without the library."""


def normal(shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def tensors(case):
    """Images, their tangents, kernels, theirs, scales and shifts, in double precision."""
    n, c, d, h, w, k, *_ = case
    size = (2 / (c * k * k)) ** 0.5
    weight, weight_dot = normal((d, c, k, k), 1) * size, normal((d, c, k, k), 2) * size
    return normal((n, c, h, w)), normal((n, c, h, w), 3), weight, weight_dot, 1 + normal((d,), 4) / 4, normal((d,), 5)


def cotangents(case, like=torch.float64):
    x, _, weight, *_ = tensors(case)
    shape = F.conv2d(x, weight, None, *case[-2:]).shape
    return normal(shape, 6).to(like), normal(shape, 7).to(like)


def single(*given):
    return tuple(None if t is None else t.float() for t in given)


def twin(x, x_dot, weight, weight_dot, scale, shift, grad, grad_dot, how):
    """What the forward and the backward return."""
    y, y_dot, saved = _conv_batch_norm_tangent(x, x_dot, weight, weight_dot, scale, shift, EPS, *how)
    back = _conv_batch_norm_tangent_backward(grad, grad_dot, x, x_dot, weight, weight_dot, scale, EPS, *how)
    return y, y_dot, *saved, *back


def native(x, x_dot, weight, weight_dot, scale, shift, grad, grad_dot, how):
    names = dict(zip(("stride", "padding", "relu_input"), how, strict=True))
    y, y_dot, saved = conv_batch_norm_tangent(x, x_dot, weight, weight_dot, scale, shift, EPS, **names)
    back = conv_batch_norm_tangent_backward(grad, grad_dot, x, x_dot, saved, weight, weight_dot, scale, EPS, **names)
    return y, y_dot, *saved, *back


def size_of_product(x, x_dot, weight, weight_dot, scale, shift, grad, grad_dot, how):
    """What is added up to the sum of weights and their gradients: numbers of both signs that may cancel."""
    x_dot = torch.zeros_like(x) if x_dot is None else x_dot
    weight = weight.clone().requires_grad_()
    y, y_dot, (z, z_dot, _) = _conv_batch_norm_tangent(x, x_dot, weight, weight_dot, scale, shift, EPS, *how)
    dz, dz_dot = torch.autograd.grad((y, y_dot), (z, z_dot), (grad, grad_dot))
    return float((z * dz).abs().sum() + (z_dot * dz_dot).abs().sum())


def assert_near(given, how, tolerance, least=0.0):
    found, expected = native(*single(*given), how), twin(*given, how)
    sizes = [float(t.abs().max()) if t.numel() else 0.0 for t in expected[:-1]]
    for got, wanted, size in zip(found, expected, [*sizes, size_of_product(*given, how)], strict=True):
        assert got.shape == wanted.shape
        assert torch.all((got.double() - wanted).abs() <= tolerance * max(least, size))


@pytest.mark.parametrize("relu_input", [False, True], ids=["as it is", "relu first"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_twin_is_the_derivative_of_the_fused_convolution(case, relu_input):
    """By forward-mode derivatives in double precision, and the backward by those of a difference quotient."""
    x, x_dot, weight, weight_dot, scale, shift = tensors(case)
    how = (*case[-2:], relu_input)

    def along(t):
        arguments = (x + t * x_dot, weight + t * weight_dot, scale, shift, None, EPS, *how, False)
        return _conv_batch_norm_train(*arguments)

    y, y_dot, _ = _conv_batch_norm_tangent(x, x_dot, weight, weight_dot, scale, shift, EPS, *how)
    torch.testing.assert_close(y, along(0.0))
    step = 1e-7
    torch.testing.assert_close(y_dot, (along(step) - along(-step)) / (2 * step), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("relu_input", [False, True], ids=["as it is", "relu first"])
@pytest.mark.parametrize("moves", [True, False], ids=["tangents", "zeros"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_the_twin(case, moves, relu_input):
    x, x_dot, *parameters = tensors(case)
    given, how = (x, x_dot if moves else None, *parameters, *cotangents(case)), (*case[-2:], relu_input)
    assert_near(given, how, 2e-5)


@settings(max_examples=60)
@given(
    case=st.tuples(
        *(st.integers(2, 5), st.integers(1, 40), st.integers(1, 40), st.integers(5, 12), st.integers(5, 12)),
        *(st.integers(1, 5), st.integers(1, 2), st.integers(0, 3)),
    )
)
def test_equals_the_twin_on_any_shape(case):
    given, how = (*tensors(case), *cotangents(case)), (*case[-2:], True)
    if given[-1].numel() > 4 * given[-1].shape[1]:  # the norm of few values is steep
        assert_near(given, how, 1e-3, least=1.0)


def test_any_strides_do(strided):
    case = CASES[2]
    x, x_dot, *parameters = tensors(case)
    given = (strided(x), strided(x_dot), *parameters, *map(strided, cotangents(case)))
    assert_near(given, (2, 1, True), 2e-5)


def test_without_scales_and_shifts():
    case = CASES[0]
    given = (*tensors(case)[:4], None, None, *cotangents(case))
    assert_near(given, (1, 1, False), 2e-5)


def test_images_far_from_zero_lose_nothing():
    case = (8, 1, 4, 9, 9, 1, 1, 0)
    x, *rest = tensors(case)
    given = (x + 1000, *rest, *cotangents(case))
    given = tuple(t.float().double() for t in given)
    found, expected = native(*single(*given), (1, 0, False)), twin(*given, (1, 0, False))
    for a, b in zip(found[:2], expected[:2], strict=True):
        assert float((a.double() - b).abs().max()) < 1e-3 * float(b.abs().max())


def test_double_precision_goes_to_the_twin():
    given, how = (*tensors(CASES[0]), *cotangents(CASES[0])), (1, 1, True)
    assert all(torch.equal(a, b) for a, b in zip(native(*given, how), twin(*given, how), strict=True))


@pytest.mark.parametrize("case", [CASES[0], CASES[2], CASES[3]], ids=str)
def test_sums_grow_where_they_lie(case):
    ops, how = torch.ops.zcpipe, (EPS, *case[-2:], True)
    x, x_dot, weight, weight_dot, scale, shift = single(*tensors(case))
    grad, grad_dot = cotangents(case, torch.float32)
    arguments = x, x_dot, weight, weight_dot, scale, shift
    totals = [t.contiguous(memory_format=torch.channels_last) for t in (grad.roll(1), grad_dot.roll(1))]
    y, y_dot, *saved = ops.conv_batch_norm_tangent(*arguments, None, None, *how)
    expected = [total + t for total, t in zip(totals, (y, y_dot), strict=True)]
    added = ops.conv_batch_norm_tangent(*arguments, *totals, *how)
    torch.testing.assert_close(added[:2], tuple(expected))
    torch.library.opcheck(ops.conv_batch_norm_tangent_onto.default, (*arguments, *(t.clone() for t in totals), *how))
    again = ops.conv_batch_norm_tangent_onto(*arguments, *totals, *how)
    torch.testing.assert_close(totals, expected)
    assert all(torch.equal(a, b) for a, b in zip(again, saved, strict=True))

    z, z_dot, statistics = saved
    back = grad, grad_dot, x, x_dot, z, z_dot, weight, weight_dot, scale, statistics
    *grads, product = ops.conv_batch_norm_tangent_backward(*back, *how)
    totals = [t.roll(1).contiguous(memory_format=torch.channels_last) for t in (x, x_dot)]
    expected = [total + g for total, g in zip(totals, grads, strict=True)]
    op = ops.conv_batch_norm_tangent_backward_onto
    torch.library.opcheck(op.default, (*back, *(t.clone() for t in totals), *how))
    assert torch.equal(op(*back, *totals, *how), product)
    torch.testing.assert_close(totals, expected)


@pytest.mark.parametrize("case", [CASES[0], CASES[2]], ids=str)
@pytest.mark.parametrize("moves", [True, False], ids=["tangents", "zeros"])
def test_opcheck(case, moves, strided):
    ops, how = torch.ops.zcpipe, (EPS, *case[-2:], True)
    x, x_dot, weight, weight_dot, scale, shift = single(*tensors(case))
    x, x_dot = strided(x), strided(x_dot) if moves else None
    arguments = (x, x_dot, weight, weight_dot, scale, shift, None, None, *how)
    torch.library.opcheck(ops.conv_batch_norm_tangent.default, arguments)
    _, _, z, z_dot, statistics = ops.conv_batch_norm_tangent(*arguments)
    grads = cotangents(case, torch.float32)
    back = (*grads, x, x_dot, z, z_dot, weight, weight_dot, scale, statistics, *how)
    torch.library.opcheck(ops.conv_batch_norm_tangent_backward.default, back)


def test_wrong_arguments_are_named():
    x, x_dot, weight, weight_dot, scale, shift = single(*tensors(CASES[0]))
    _, _, saved = conv_batch_norm_tangent(x, x_dot, weight, weight_dot, scale, shift, padding=1)
    for arguments, message in (
        ((x, x_dot[:1], weight, weight_dot, scale, shift), "x_dot: got shape"),
        ((x, x_dot, weight, weight_dot[:1], scale, shift), "weight_dot: got shape"),
        ((x, x_dot, weight, weight_dot.double(), scale, shift), "weight_dot: got torch.float64"),
        ((x, x_dot, weight, weight_dot, scale[:1], shift), "norm_weight: got shape"),
        ((x, x_dot, weight, weight_dot, scale, shift[:1]), "norm_bias: got shape"),
        ((x[0], None, weight, weight_dot, scale, shift), "x: got shape"),
    ):
        with pytest.raises(UsageError, match=message):
            conv_batch_norm_tangent(*arguments, padding=1)
    grad = torch.zeros_like(saved[0])
    statistics = saved[2]
    for grads, kept, message in (
        ((grad[:1], grad), saved, "grad: got shape"),
        ((grad, grad.double()), saved, "grad_dot: got torch.float64"),
        ((grad, grad), (saved[0][:1], *saved[1:]), "z: got shape"),
        ((grad, grad), (*saved[:2], statistics.float()), "statistics: got torch.float32"),
        ((grad, grad), (*saved[:2], statistics[:2]), "statistics: got shape"),
    ):
        with pytest.raises(UsageError, match=message):
            conv_batch_norm_tangent_backward(*grads, x, x_dot, kept, weight, weight_dot, scale, padding=1)


def test_direct_calls_are_guarded():
    ops, how = torch.ops.zcpipe, (EPS, 1, 1, True)
    x, x_dot, weight, weight_dot, scale, shift = single(*tensors(CASES[0]))
    _, _, z, z_dot, statistics = ops.conv_batch_norm_tangent(
        x, x_dot, weight, weight_dot, scale, shift, None, None, *how
    )
    total = z.clone()
    with pytest.raises(RuntimeError, match="x_dot: expected the shape of x"):
        ops.conv_batch_norm_tangent(x, x_dot[:1], weight, weight_dot, scale, shift, None, None, *how)
    with pytest.raises(RuntimeError, match="weight_dot: expected the shape and dtype"):
        ops.conv_batch_norm_tangent(x, x_dot, weight, weight_dot[:1], scale, shift, None, None, *how)
    with pytest.raises(RuntimeError, match="total_dot: got another shape"):
        ops.conv_batch_norm_tangent_onto(x, x_dot, weight, weight_dot, scale, shift, total, total[:1], *how)
    with pytest.raises(RuntimeError, match="total: expected channels_last"):
        ops.conv_batch_norm_tangent_onto(x, x_dot, weight, weight_dot, scale, shift, z.contiguous(), total, *how)
    rest = weight, weight_dot, scale
    for arguments, message in (
        ((z[:1], z, x, x_dot, z, z_dot, *rest, statistics), "grad: expected the shape"),
        ((z, z, x, x_dot, z[:1], z_dot[:1], *rest, statistics), "(grad|z): expected"),
        ((z, z, x, x_dot, z, z_dot, *rest, statistics.float()), "statistics: expected float64"),
    ):
        with pytest.raises(RuntimeError, match=message):
            ops.conv_batch_norm_tangent_backward(*arguments, *how)
    with pytest.raises(RuntimeError, match="x_dot: got None"):
        ops.conv_batch_norm_tangent_backward_onto(z, z, x, None, z, z_dot, *rest, statistics, x, x, *how)


def test_the_number_of_threads_changes_nothing():
    case = (33, 16, 32, 16, 16, 3, 1, 1)
    given = single(*tensors(case), *cotangents(case))
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(native(*given, (1, 1, True)))
    finally:
        torch.set_num_threads(before)
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], others, strict=True))
