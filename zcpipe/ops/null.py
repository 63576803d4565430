"""The op that does nothing: the shortest example of an op, from its Python face to its kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from zcpipe.ops._autograd import differentiable
from zcpipe.ops._check import check_float, dense_format, use_native
from zcpipe.ops._library import on_load


def null(
    x: Tensor,  # any shape
) -> Tensor:  # the same
    """Copy a tensor.

    A channels_last input gives a channels_last output, any other a contiguous one. Those who write an op copy this
    one: csrc/cuda/launch.h lists its files.

    Args:
        x: float32 or float64, of any strides.

    Returns:
        A copy that shares no memory with `x`, and through which gradients pass.

    Raises:
        UsageError: `x` has another dtype.
    """
    check_float("x", x)
    if not use_native("null", x):
        return _null(x)
    return _native(x)


# The twin: what the op computes, in torch's own words.
def _null(x: Tensor) -> Tensor:
    return x.clone(memory_format=dense_format(x))


# What the output looks like, for meta tensors and torch.compile.
def _fake(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=dense_format(x))


def _backward(ctx: object, grad: Tensor) -> Tensor:
    return torch.ops.zcpipe.null(grad)  # type: ignore[no-any-return]


_native = differentiable("null", _backward)


@on_load
def _register() -> None:
    torch.library.register_fake("zcpipe::null", _fake)
    torch.library.register_autograd("zcpipe::null", _backward)
