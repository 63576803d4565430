"""conv_batch_norm_train_gradients: all first derivatives of the fused convolution, and z dz summed over the pixels."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from zcpipe.ops import conv_batch_norm_train
from zcpipe.ops.convolution import _conv_batch_norm_train
from zcpipe.ops.products import _product_sums

EPS = 1e-5
# N, C, D, H, W, kernel, stride, padding
CASES = [
    (2, 16, 16, 8, 8, 3, 1, 1),
    (3, 3, 16, 9, 7, 3, 1, 1),
    (2, 17, 35, 9, 11, 3, 2, 1),
    (2, 33, 48, 6, 33, 1, 1, 0),
    (2, 5, 48, 7, 7, 1, 2, 0),
    (1, 20, 40, 12, 13, 5, 2, 2),
    (2, 16, 7, 8, 8, 5, 1, 0),
    (1, 40, 5, 5, 7, 3, 1, 0),
    (2, 3, 4, 5, 4, 3, 1, 3),
    (2, 16, 16, 2, 3, 3, 1, 1),
    (9, 2, 3, 31, 30, 3, 1, 1),
]


@pytest.fixture(autouse=True)
def _native(native):
    """There is nothing to test without the library."""


def normal(shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def tensors(case):
    """Images, kernels, scales and shifts."""
    n, c, d, h, w, k, *_ = case
    weight = normal((d, c, k, k), 1) * (2 / (c * k * k)) ** 0.5
    return normal((n, c, h, w)), weight, 1 + normal((d,), 2) / 4, normal((d,), 3)


def exact(x, weight, scale, shift, cotangent, stride, padding, relu_input, relu_output):
    """The gradients by autograd, and the sums."""
    x, weight, scale, shift = (t if t is None else t.detach().requires_grad_() for t in (x, weight, scale, shift))
    z = F.conv2d(F.relu(x) if relu_input else x, weight, None, stride, padding)
    y = F.batch_norm(z, None, None, scale, shift, training=True, eps=EPS)
    asked = [t for t in (x, weight, scale, shift) if t is not None]
    *grads, dz = torch.autograd.grad(F.relu(y) if relu_output else y, [*asked, z], cotangent)
    # A sample's sums may cancel (with one sample they do: the norm takes every scale out), so they carry their size.
    return [*grads, (_product_sums(z.detach(), dz), _product_sums(z.detach().abs(), dz.abs()))]


def ours(x, weight, scale, shift, cotangent, *how):
    ops = torch.ops.zcpipe
    _, z, mean, invstd = ops.conv_batch_norm_train(x, weight, scale, shift, None, EPS, *how)
    arguments = (cotangent, x, z, weight, scale, shift, mean, invstd)
    return ops.conv_batch_norm_train_gradients(*arguments, *how, True, True), arguments


def assert_near(got, expected, tolerance, least=0.0):
    for a, b in zip(got, expected, strict=True):
        b, size = b if isinstance(b, tuple) else (b, b)
        assert a.shape == b.shape
        assert float((a.double() - b).abs().max()) <= tolerance * max(least, float(size.abs().max()))


@pytest.mark.parametrize("relu_output", [False, True], ids=["linear", "relu"])
@pytest.mark.parametrize("relu_input", [False, True], ids=["as it is", "relu first"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equal_autograds_in_double_precision(case, relu_input, relu_output):
    how = (*case[-2:], relu_input, relu_output)
    x, *parameters = tensors(case)
    cotangent = normal(F.conv2d(x, parameters[0], None, *how[:2]).shape, 5)
    found, _ = ours(*(t.float() for t in (x, *parameters, cotangent)), *how)
    assert_near(found, exact(x, *parameters, cotangent, *how), 2e-5)
    assert found[1].is_contiguous()


def test_any_strides_do(strided):
    how = (*CASES[2][-2:], True, True)
    x, *parameters = tensors(CASES[2])
    x, cotangent = strided(x), strided(normal((2, 35, 5, 6), 5))
    found, _ = ours(*(t.float() for t in (x, *parameters, cotangent)), *how)
    assert_near(found, exact(x, *parameters, cotangent, *how), 2e-5)


def test_without_scales_and_shifts():
    how = (1, 1, True, True)
    x, weight, *_ = tensors(CASES[0])
    cotangent = normal((2, 16, 8, 8), 5)
    found, _ = ours(x.float(), weight.float(), None, None, cotangent.float(), *how)
    *grads, products = exact(x, weight, None, None, cotangent, *how)
    assert_near([*found[:2], found[4]], [*grads, products], 2e-5)


@settings(max_examples=60)
@given(
    case=st.tuples(
        *(st.integers(2, 5), st.integers(1, 40), st.integers(1, 40), st.integers(5, 12), st.integers(5, 12)),
        *(st.integers(1, 5), st.integers(1, 2), st.integers(0, 3)),
    )
)
def test_equal_autograds_on_any_shape(case):
    how = (*case[-2:], True, False)
    x, *parameters = tensors(case)
    z = F.conv2d(x, parameters[0], None, *how[:2])
    cotangent = normal(z.shape, 5)
    found, _ = ours(*(t.float() for t in (x, *parameters, cotangent)), *how)
    if z.numel() > 4 * z.shape[1]:  # the norm of few values is steep wherever two of them are close
        assert_near(found, exact(x, *parameters, cotangent, *how), 1e-3, least=1.0)


@pytest.mark.parametrize(
    "case", [(64, 16, 16, 32, 32, 3, 1, 1), (64, 16, 8, 32, 32, 1, 1, 0), (64, 4, 8, 64, 64, 3, 2, 1)], ids=str
)
@pytest.mark.parametrize("offset", [0, 3], ids=["centred", "all of one sign"])
def test_long_sums_keep_their_accuracy(case, offset):
    """65,536 products each, of which those of one sign lose the most where they are added up one by one."""
    how = (*case[-2:], False, False)
    x, *parameters = tensors(case)
    x = (x + offset).float()
    shape = F.conv2d(x, parameters[0].float(), None, *how[:2]).shape
    cotangent = normal(shape, 5).float()
    parameters = [t.float() for t in parameters]
    found, (_, _, z, *_) = ours(x, *parameters, cotangent, *how)
    expected = exact(*(t.double() for t in (x, *parameters, cotangent)), *how)
    assert_near(found[1:], expected[1:], 1e-5)
    assert z.numel() // z.shape[1] == 65536


def test_every_tap_in_its_place():
    """One source pixel and one gradient at a time: their distance tells the tap."""
    for kernel, stride in ((3, 1), (3, 2), (5, 1)):
        how, padding = (stride, kernel // 2, False, False), kernel // 2
        x = torch.zeros(1, 2, 9, 9)
        x[0, 1, 4, 5] = 1
        weight = torch.randn(3, 2, kernel, kernel, generator=torch.Generator().manual_seed(0))
        shape = F.conv2d(x, weight, None, stride, padding).shape
        for row in range(shape[2]):
            for column in range(shape[3]):
                cotangent = torch.zeros(shape)
                cotangent[0, 2, row, column] = 1
                found, _ = ours(x, weight, None, None, cotangent, *how)
                expected = exact(x.double(), weight.double(), None, None, cotangent.double(), *how)
                assert_near(found[:2], expected[:2], 1e-5)


def test_only_what_is_wanted_is_filled():
    case = CASES[2]
    how = (*case[-2:], True, False)
    x, *parameters = (t.float() for t in tensors(case))
    cotangent = normal((2, 35, 5, 6), 5).float()
    whole, arguments = ours(x, *parameters, cotangent, *how)
    op = torch.ops.zcpipe.conv_batch_norm_train_gradients
    grad_x, *grads, products = op(*arguments, *how, False, False)
    assert grad_x.shape == (0, 17, 9, 11) and products.shape == (0, 35)
    assert all(torch.equal(a, b) for a, b in zip(grads, whole[1:4], strict=True))
    assert torch.equal(whole[0], torch.ops.zcpipe.conv_batch_norm_train_backward(*arguments, *how))


@pytest.mark.parametrize("case", [CASES[0], CASES[2], CASES[3]], ids=str)
def test_a_sum_grows_where_it_lies(case):
    how = (*case[-2:], True, False)
    x, *parameters = (t.float() for t in tensors(case))
    shape = F.conv2d(x, parameters[0], None, *how[:2]).shape
    whole, arguments = ours(x, *parameters, normal(shape, 5).float(), *how)
    total = normal(x.shape, 6).float().contiguous(memory_format=torch.channels_last)
    expected = total + whole[0]
    op = torch.ops.zcpipe.conv_batch_norm_train_gradients_onto
    torch.library.opcheck(op.default, (*arguments, total.clone(), *how, True))
    found = op(*arguments, total, *how, True)
    torch.testing.assert_close(total, expected)
    assert all(torch.equal(a, b) for a, b in zip(found, whole[1:], strict=True))


@pytest.mark.parametrize("case", [CASES[0], CASES[2]], ids=str)
@pytest.mark.parametrize("wanted", [(True, True), (False, True), (True, False), (False, False)], ids=str)
def test_opcheck(case, wanted, strided):
    how = (*case[-2:], True, False)
    x, *parameters = (t.float() for t in tensors(case))
    shape = F.conv2d(x, parameters[0], None, *how[:2]).shape
    _, arguments = ours(strided(x), *parameters, normal(shape, 5).float(), *how)
    torch.library.opcheck(torch.ops.zcpipe.conv_batch_norm_train_gradients.default, (*arguments, *how, *wanted))


def test_wrong_arguments_are_named():
    case, how = CASES[0], (1, 1, True, False)
    x, *parameters = (t.float() for t in tensors(case))
    _, (grad, _, z, *rest) = ours(x, *parameters, torch.ones(2, 16, 8, 8), *how)
    op = torch.ops.zcpipe.conv_batch_norm_train_gradients
    onto = torch.ops.zcpipe.conv_batch_norm_train_gradients_onto
    for arguments, message in (
        ((grad.double(), x, z, *rest), "grad: expected the dtype of x"),
        ((grad[:1], x, z, *rest), "grad: expected the shape of x"),
        ((grad[:1], x, z[:1], *rest), "z: expected the convolution's output"),
        ((grad, x.double(), z, *rest), "x: got Double, expected float32"),
        ((grad, x, z, *rest[:3], rest[3].float(), rest[4]), "mean: expected float64"),
    ):
        with pytest.raises(RuntimeError, match=message):
            op(*arguments, *how, True, True)
    with pytest.raises(RuntimeError, match="total: got another shape"):
        onto(grad, x, z, *rest, x[:1], *how, True)
    with pytest.raises(RuntimeError, match="total: expected channels_last images"):
        onto(grad, x, z, *rest, x.contiguous(), *how, True)


def test_the_number_of_threads_changes_nothing():
    x, *parameters = (t.float() for t in tensors((33, 16, 32, 16, 16, 3, 1, 1)))
    cotangent = normal((33, 32, 16, 16), 5).float()
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(ours(x, *parameters, cotangent, 1, 1, True, False)[0])
    finally:
        torch.set_num_threads(before)
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], others, strict=True))


def test_an_image_of_nan_reaches_the_kernels_gradient():
    x, *parameters = (t.float() for t in tensors(CASES[0]))
    cotangent = torch.ones(2, 16, 8, 8)
    cotangent[0, 3, 2, 2] = float("nan")
    (_, grad_weight, *_), _ = ours(x, *parameters, cotangent, 1, 1, False, False)
    assert grad_weight[3].isnan().all() and not grad_weight[[*range(3), *range(4, 16)]].isnan().any()


@pytest.mark.parametrize("asked", [(1,), (0, 1), (2, 3), (0, 3), (0, 1, 2, 3)], ids=str)
def test_autograd_takes_them_from_the_native_pass(asked, monkeypatch):
    case = CASES[2]
    how = {"stride": 2, "padding": 1, "relu_input": True, "relu_output": True}
    exact_tensors = [t.requires_grad_(i in asked) for i, t in enumerate(tensors(case))]
    leaves = [t.detach().float().requires_grad_(i in asked) for i, t in enumerate(exact_tensors)]
    y = conv_batch_norm_train(*leaves, **how)
    cotangent = normal(y.shape, 5)
    expected = _conv_batch_norm_train(*exact_tensors, None, EPS, *how.values())
    grads = torch.autograd.grad(expected, [exact_tensors[i] for i in asked], cotangent)
    # What is composed of single operations would call it.
    monkeypatch.setattr(nn.functional, "conv2d", None)
    assert_near(torch.autograd.grad(y, [leaves[i] for i in asked], cotangent.float()), grads, 2e-5)
