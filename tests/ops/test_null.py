"""null: a copy, and the pattern for the tests of an op."""

import pytest
import torch

from zcpipe.errors import UsageError
from zcpipe.ops import null
from zcpipe.ops.null import _null

SHAPES = [(), (1,), (7,), (3, 5), (2, 3, 5, 7), (1, 17, 3, 3), (0, 3, 4, 4), (2, 3, 0, 4)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_is_a_copy_like_the_twin(native, shape, dtype):
    x = torch.randn(shape, dtype=dtype)
    y = null(x)
    assert torch.equal(y, x) and torch.equal(y, _null(x))
    assert x.numel() == 0 or y.data_ptr() != x.data_ptr()


def test_keeps_channels_last_and_is_contiguous_otherwise(native, strided, dtype):
    x = strided(torch.randn(2, 3, 5, 7, dtype=dtype))
    y = null(x)
    assert torch.equal(y, x) and y.stride() == _null(x).stride()


def test_passes_gradients_of_any_order():
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(null, (x,))
    assert torch.autograd.gradgradcheck(null, (x,))


def test_forward_mode_is_not_silently_zero():
    x, v = torch.randn(2, 3), torch.randn(2, 3)
    assert torch.equal(torch.func.jvp(null, (x,), (v,))[1], v)


def test_opcheck(native, strided):
    x = strided(torch.randn(2, 3, 4, 5)).detach().requires_grad_()
    torch.library.opcheck(torch.ops.zcpipe.null.default, (x,))


def test_a_wrong_argument_is_named():
    with pytest.raises(UsageError, match=r"^x: got torch\.int64, expected torch\.float32 or torch\.float64"):
        null(torch.zeros(2, dtype=torch.int64))


def test_direct_calls_are_guarded_too(native):
    with pytest.raises(RuntimeError, match="x: got Half, expected float32 or float64"):
        torch.ops.zcpipe.null(torch.zeros(2, dtype=torch.float16))
