"""Average pooling 3x3 as cell-based search spaces use it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from zcpipe.ops._autograd import differentiable
from zcpipe.ops._check import check_images, dense_format, use_native
from zcpipe.ops._library import on_load


def avg_pool3x3(
    x: Tensor,  # [N, C, H, W]
) -> Tensor:  # [N, C, H, W]
    """Average over 3x3 windows, stride 1, padding 1, the padding not counted.

    Equivalent to ``F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)``, and as differentiable:
    any number of times backward, and forward. A channels_last input gives a channels_last output (on CUDA only from
    the library's kernel), any other a contiguous one.

    Args:
        x: images, float32 or float64, of any strides.

    Returns:
        The means, of the shape and dtype of `x`.

    Raises:
        UsageError: `x` has another dtype or not four dimensions.
    """
    check_images("x", x)
    if not use_native("avg_pool3x3", x):
        return _avg_pool3x3(x)
    return _native(x)


def _avg_pool3x3(x: Tensor) -> Tensor:
    # torch refuses some empty images, for which there is nothing to compute.
    if x.numel() == 0:
        return x.clone(memory_format=dense_format(x))
    # torch 2.13's gradient of padded images in channels_last is wrong on CUDA (pytorch issue 188344).
    # A clone, because images of one channel are contiguous in either layout and torch may take them for the other.
    images = x.clone(memory_format=torch.contiguous_format) if x.is_cuda else x
    return F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)


def _fake(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=dense_format(x))


# The op is linear, so its derivative is its transpose (and the transpose's is the op itself): nothing is saved.
def _backward(ctx: object, grad: Tensor) -> Tensor:
    return torch.ops.zcpipe.avg_pool3x3_backward(grad)  # type: ignore[no-any-return]


def _double_backward(ctx: object, grad: Tensor) -> Tensor:
    return torch.ops.zcpipe.avg_pool3x3(grad)  # type: ignore[no-any-return]


_native = differentiable("avg_pool3x3", _backward)


@on_load
def _register() -> None:
    torch.library.register_fake("zcpipe::avg_pool3x3", _fake)
    torch.library.register_fake("zcpipe::avg_pool3x3_backward", _fake)
    for op in ("avg_pool3x3_onto", "avg_pool3x3_backward_onto"):
        torch.library.register_fake(f"zcpipe::{op}", lambda x, total: None)
    torch.library.register_autograd("zcpipe::avg_pool3x3", _backward)
    torch.library.register_autograd("zcpipe::avg_pool3x3_backward", _double_backward)
