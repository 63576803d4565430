"""avg_pool3x3: the mean over 3x3 windows, the padding not counted."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zcpipe.errors import UsageError
from zcpipe.ops import avg_pool3x3
from zcpipe.ops.pool import _avg_pool3x3

SHAPES = [
    (2, 3, 5, 7),
    (1, 16, 8, 8),
    (3, 1, 4, 4),
    (2, 5, 1, 6),
    (2, 5, 6, 1),
    (1, 2, 1, 1),
    (2, 4, 2, 2),
    (1, 17, 3, 33),
]
EMPTY = [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4), (2, 3, 4, 0)]


def images(shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def test_known_values():
    x = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]).view(1, 1, 3, 3)
    expected = torch.tensor([[3.0, 3.5, 4.0], [4.5, 5.0, 5.5], [6.0, 6.5, 7.0]]).view(1, 1, 3, 3)
    torch.testing.assert_close(avg_pool3x3(x), expected)


def test_ones_stay_ones_exactly(strided, dtype):
    x = strided(torch.ones(2, 3, 5, 4, dtype=dtype))
    assert torch.equal(avg_pool3x3(x), torch.ones(2, 3, 5, 4, dtype=dtype))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_twin_forward_and_backward(native, shape, dtype, strided):
    x = strided(images(shape, dtype)).detach()
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, y_twin = avg_pool3x3(ours), _avg_pool3x3(theirs)
    torch.testing.assert_close(y, y_twin)
    cotangent = strided(images(shape, dtype, seed=1))
    y.backward(cotangent)
    y_twin.backward(cotangent)
    torch.testing.assert_close(ours.grad, theirs.grad)


@given(n=st.integers(1, 3), c=st.integers(1, 20), h=st.integers(1, 9), w=st.integers(1, 9), last=st.booleans())
def test_equals_the_twin_on_any_shape(n, c, h, w, last):
    x = images((n, c, h, w))
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(avg_pool3x3(x), _avg_pool3x3(x))


@pytest.mark.parametrize("shape", EMPTY, ids=str)
def test_no_images_give_no_images(shape, dtype):
    x = torch.empty(shape, dtype=dtype, requires_grad=True)
    y = avg_pool3x3(x)
    assert y.shape == x.shape and y.dtype == dtype
    y.sum().backward()
    assert x.grad.shape == x.shape


@pytest.mark.parametrize("twin", [False, True], ids=["native", "twin"])
def test_output_keeps_channels_last_and_is_contiguous_otherwise(twin, strided, request):
    op = _avg_pool3x3 if twin else avg_pool3x3
    x = strided(images((2, 3, 5, 7)))
    y = op(x)
    channels_last = x.is_contiguous(memory_format=torch.channels_last)
    assert y.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def test_nan_spreads_to_its_neighbours_only():
    x = torch.zeros(1, 2, 5, 5)
    x[0, 0, 2, 2] = float("nan")
    expected = torch.zeros(1, 2, 5, 5, dtype=torch.bool)
    expected[0, 0, 1:4, 1:4] = True
    for layout in (torch.contiguous_format, torch.channels_last):
        assert torch.equal(avg_pool3x3(x.contiguous(memory_format=layout)).isnan(), expected)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 2, 1, 3), (2, 1, 2, 1)], ids=str)
def test_derivatives_of_first_and_second_order(shape):
    x = images(shape).requires_grad_()
    assert torch.autograd.gradcheck(avg_pool3x3, (x,))
    assert torch.autograd.gradgradcheck(avg_pool3x3, (x,))


def test_forward_mode_is_not_silently_zero():
    x, v = images((2, 3, 4, 4)), images((2, 3, 4, 4), seed=1)
    _, tangent = torch.func.jvp(avg_pool3x3, (x,), (v,))
    torch.testing.assert_close(tangent, _avg_pool3x3(v))
    with torch.autograd.forward_ad.dual_level():
        dual = avg_pool3x3(torch.autograd.forward_ad.make_dual(x, v))
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(dual).tangent, _avg_pool3x3(v))


def test_works_under_torch_func():
    x = images((2, 3, 4, 4))
    torch.testing.assert_close(torch.func.vmap(avg_pool3x3)(x[None])[0], _avg_pool3x3(x))
    gradient = torch.func.grad(lambda x: avg_pool3x3(x).pow(2).sum())(x)
    torch.testing.assert_close(gradient, torch.func.grad(lambda x: _avg_pool3x3(x).pow(2).sum())(x))


@pytest.mark.parametrize("op", ["avg_pool3x3", "avg_pool3x3_backward"])
def test_opcheck(native, op, strided):
    x = strided(images((2, 3, 4, 5)))
    torch.library.opcheck(getattr(torch.ops.zcpipe, op).default, (x.detach().requires_grad_(),))


def test_meta_tensors_give_meta_tensors():
    x = torch.empty(2, 3, 4, 4, device="meta").contiguous(memory_format=torch.channels_last)
    y = avg_pool3x3(x)
    assert y.is_meta and y.shape == x.shape and y.stride() == x.stride()


@pytest.mark.parametrize(
    ("x", "got"),
    [
        (torch.zeros(2, 3, 4, 4, dtype=torch.float16), "torch.float16"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.int64), "torch.int64"),
        (torch.zeros(3, 4, 4), r"shape \(3, 4, 4\)"),
        ([1.0], "list"),
    ],
    ids=["half", "integer", "three dimensions", "no tensor"],
)
def test_a_wrong_argument_is_named(x, got):
    with pytest.raises(UsageError, match=rf"^x: got {got}, expected "):
        avg_pool3x3(x)


def test_direct_calls_are_guarded_too(native):
    with pytest.raises(RuntimeError, match="x: got 3 dimensions, expected 4"):
        torch.ops.zcpipe.avg_pool3x3(torch.zeros(3, 4, 4))
    with pytest.raises(RuntimeError, match="x: got Half, expected float32 or float64"):
        torch.ops.zcpipe.avg_pool3x3(torch.zeros(1, 3, 4, 4, dtype=torch.float16))


def test_the_number_of_threads_changes_nothing():
    x = images((8, 16, 32, 32), torch.float32)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(avg_pool3x3(x))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)
