"""batch_norm_train: each channel normalised by the batch's own mean and variance."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zcpipe.errors import UsageError
from zcpipe.ops import batch_norm_train
from zcpipe.ops.batchnorm import _batch_norm_train

SHAPES = [
    (2, 3, 5, 7),
    (1, 16, 8, 8),
    (3, 1, 4, 4),
    (2, 5, 1, 6),
    (4, 5, 1, 1),
    (2, 4, 2, 2),
    (1, 70, 3, 5),
    (5, 3, 17, 9),
]
EPS = 1e-5


def images(shape, dtype=torch.float64, seed=0, mean=0.0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)) + mean


def channels(n, dtype=torch.float64):
    return images((n,), dtype, seed=2), images((n,), dtype, seed=3)


def twin(x, weight=None, bias=None, eps=EPS, relu=False, total=None):
    return _batch_norm_train(x, weight, bias, total, eps, relu)


def test_known_values():
    x = torch.tensor([1.0, 3.0, 5.0, 7.0], dtype=torch.float64).view(2, 1, 1, 2)
    y = batch_norm_train(x, torch.tensor([2.0]).double(), torch.tensor([1.0]).double(), eps=4.0)
    torch.testing.assert_close(y.flatten(), torch.tensor([-3.0, -1.0, 1.0, 3.0]).double() * 2 / 3 + 1)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_twin_forward_and_backward(native, shape, dtype, strided):
    x, cotangent = strided(images(shape, dtype)), strided(images(shape, dtype, seed=1))
    arguments = [[t.detach().clone().requires_grad_() for t in (x, *channels(shape[1], dtype))] for _ in range(2)]
    ys = [batch_norm_train(*arguments[0], EPS), twin(*arguments[1])]
    grads = [torch.autograd.grad(y, args, cotangent) for y, args in zip(ys, arguments, strict=True)]
    # Two pixels of nearly one value have a steep derivative: compare with the size of the largest.
    atol = 2e-5 if dtype == torch.float32 else 1e-11
    torch.testing.assert_close(*ys, atol=atol, rtol=1e-4)
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, atol=atol * max(1, float(theirs.abs().max())), rtol=1e-4)


@pytest.mark.parametrize("relu", [False, True], ids=["linear", "relu"])
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (3, 16, 4, 4), (2, 70, 3, 5)], ids=str)
def test_relu_and_sum_equal_the_twin_forward_and_backward(native, shape, dtype, strided, relu):
    x, total, cotangent = (strided(images(shape, dtype, seed=seed)) for seed in (0, 4, 1))
    results = []
    for op in (batch_norm_train, twin):
        weight, bias = channels(shape[1], dtype)
        arguments = [t.detach().clone().requires_grad_() for t in (x, weight, bias, total)]
        y = op(*arguments[:3], relu=relu, total=arguments[3])
        results.append([y, *torch.autograd.grad(y, arguments, cotangent)])
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=tolerance * max(1, float(theirs.abs().max())), rtol=tolerance)


@given(n=st.integers(1, 4), c=st.integers(1, 80), h=st.integers(1, 6), w=st.integers(2, 6), last=st.booleans())
def test_equals_the_twin_on_any_shape(n, c, h, w, last):
    x = images((n, c, h, w))
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(batch_norm_train(x), twin(x))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("mean", [0.0, 100.0, 10_000.0])
def test_float32_is_at_least_as_accurate_as_torch(native, layout, mean):
    x = images((16, 8, 16, 16), torch.float32, mean=mean).contiguous(memory_format=layout)
    weight, bias = channels(8, torch.float32)
    exact = twin(x.double(), weight.double(), bias.double())
    ours, theirs = (op(x, weight, bias) - exact for op in (batch_norm_train, twin))
    assert ours.abs().max() <= theirs.abs().max() + 1e-6


def test_one_far_sample_does_not_spoil_the_statistics(native):
    x = images((32, 4, 3, 3))
    x[0] += 1e6
    torch.testing.assert_close(batch_norm_train(x), twin(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4)], ids=str)
def test_no_images_give_no_images(shape, dtype):
    x = torch.empty(shape, dtype=dtype, requires_grad=True)
    y = batch_norm_train(x, *channels(shape[1], dtype))
    assert y.shape == x.shape and y.dtype == dtype
    y.sum().backward()
    assert x.grad.shape == x.shape


def test_a_constant_channel_becomes_its_bias(dtype, strided):
    x = strided(torch.full((2, 3, 4, 5), 7.3, dtype=dtype))
    bias = torch.arange(3, dtype=dtype)
    torch.testing.assert_close(
        batch_norm_train(x, None, bias), bias.view(1, 3, 1, 1).expand(x.shape), atol=1e-3, rtol=0
    )


def test_output_keeps_channels_last_and_is_contiguous_otherwise(strided):
    x = strided(images((2, 3, 5, 7)))
    channels_last = x.is_contiguous(memory_format=torch.channels_last)
    y = batch_norm_train(x)
    assert y.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
def test_derivatives_of_first_and_second_order(layout, affine):
    x = images((3, 2, 2, 3)).contiguous(memory_format=layout).requires_grad_()
    arguments = [x, *(t.requires_grad_() for t in channels(2))] if affine else [x]
    assert torch.autograd.gradcheck(batch_norm_train, arguments)
    assert torch.autograd.gradgradcheck(batch_norm_train, arguments)
    total = images(x.shape, seed=4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, total: batch_norm_train(x, relu=True, total=total), (x, total))
    assert torch.autograd.gradgradcheck(lambda x, total: batch_norm_train(x, relu=True, total=total), (x, total))


@pytest.mark.parametrize("needed", [0, 1, 2], ids=["x", "weight", "bias"])
def test_only_what_needs_a_gradient_gets_one(needed):
    arguments = [images((2, 3, 4, 4)), *channels(3)]
    arguments[needed].requires_grad_()
    batch_norm_train(*arguments).square().sum().backward()
    assert [t.grad is not None for t in arguments] == [i == needed for i in range(3)]


def test_forward_mode_is_not_silently_zero():
    x, v = images((2, 3, 4, 4)), images((2, 3, 4, 4), seed=1)
    _, tangent = torch.func.jvp(batch_norm_train, (x,), (v,))
    _, expected = torch.func.jvp(lambda x: twin(x), (x,), (v,))
    torch.testing.assert_close(tangent, expected)
    assert tangent.any()


@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
def test_opcheck(native, affine, strided):
    x = strided(images((2, 3, 4, 5))).detach()
    weight, bias = channels(3) if affine else (None, None)
    ops = torch.ops.zcpipe
    total = images(x.shape, seed=4) if affine else None
    torch.library.opcheck(ops.batch_norm_train.default, (x.clone().requires_grad_(), weight, bias, total, EPS, affine))
    _, mean, invstd = ops.batch_norm_train(x, weight, bias, total, EPS, affine)
    arguments = (images(x.shape, seed=1), x, weight, bias, mean, invstd, affine)
    torch.library.opcheck(ops.batch_norm_train_backward.default, arguments)


def test_the_number_of_threads_changes_nothing():
    x, cotangent = images((8, 16, 32, 32), torch.float32), images((8, 16, 32, 32), torch.float32, seed=1)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            leaf = x.clone().requires_grad_()
            y = batch_norm_train(leaf)
            y.backward(cotangent)
            results.append(torch.stack([y.detach(), leaf.grad]))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 3, 4, 4).half(),), "^x: got torch.float16, expected "),
        ((torch.zeros(3, 4, 4),), r"^x: got shape \(3, 4, 4\), expected four dimensions"),
        ((torch.zeros(1, 3, 1, 1),), r"^x: got shape \(1, 3, 1, 1\), expected more than one value per channel"),
        ((torch.zeros(2, 3, 4, 4), torch.ones(4)), r"^weight: got shape \(4,\), expected \(3,\)"),
        ((torch.zeros(2, 3, 4, 4), None, torch.ones(3).double()), "^bias: got torch.float64 on cpu, expected x's"),
        ((torch.zeros(2, 3, 4, 4), torch.ones(3, device="meta")), "^weight: got torch.float32 on meta, expected x's"),
    ],
    ids=["dtype", "dimensions", "one value", "channels", "other dtype", "other device"],
)
def test_a_wrong_argument_is_named(arguments, message):
    with pytest.raises(UsageError, match=message):
        batch_norm_train(*arguments)


def test_a_sum_of_another_shape_is_refused():
    with pytest.raises(UsageError, match=r"^total: got shape \(2, 3, 4, 5\), expected \(2, 3, 4, 4\)"):
        batch_norm_train(torch.zeros(2, 3, 4, 4), total=torch.zeros(2, 3, 4, 5))


def test_a_parameter_that_depends_on_the_images_is_followed_once():
    x = images((2, 3, 4, 4)).requires_grad_()

    def value(op):
        return (op(x, x.mean((0, 2, 3))) ** 2).sum()

    for create_graph in (False, True):
        ours, theirs = (
            torch.autograd.grad(value(op), x, create_graph=create_graph)[0] for op in (batch_norm_train, twin)
        )
        torch.testing.assert_close(ours, theirs)
