"""Batch normalisation with the batch's own statistics."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zcpipe.errors import UsageError
from zcpipe.ops._check import check_float, check_images, dense_format, use_native
from zcpipe.ops._library import on_load


def batch_norm_train(
    x: Tensor,  # [N, C, H, W]
    weight: Tensor | None = None,  # [C]
    bias: Tensor | None = None,  # [C]
    eps: float = 1e-5,
) -> Tensor:  # [N, C, H, W]
    """Normalise each channel by the batch's mean and (biased) variance, then scale and shift it.

    Equivalent to ``F.batch_norm(x, None, None, weight, bias, training=True, eps=eps)``, and as differentiable. Sums
    are taken in double precision whatever the dtype. A channels_last input gives a channels_last output, any other a
    contiguous one.

    Args:
        x: images, float32 or float64, of any strides.
        weight: the channels' scales, of the dtype and on the device of `x`; None for 1.
        bias: the channels' shifts, likewise; None for 0.
        eps: what is added to the variance.

    Returns:
        The normalised images, of the shape and dtype of `x`.

    Raises:
        UsageError: `x` has another dtype, not four dimensions or one value per channel only, or `weight` or `bias`
            does not fit it.
    """
    check_images("x", x)
    if x.numel() == x.shape[1] != 0:
        raise UsageError(f"x: got shape {tuple(x.shape)}, expected more than one value per channel")
    _check_channels("weight", weight, x)
    _check_channels("bias", bias, x)
    if not use_native("batch_norm_train", x, weight, bias):
        return _batch_norm_train(x, weight, bias, eps)
    return torch.ops.zcpipe.batch_norm_train(x, weight, bias, eps)[0]  # type: ignore[no-any-return]


def _batch_norm_train(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    if x.numel() == 0:
        return x.clone(memory_format=dense_format(x))
    return F.batch_norm(x, None, None, weight, bias, training=True, eps=eps)


def _check_channels(name: str, t: Tensor | None, x: Tensor) -> None:
    if t is None:
        return
    check_float(name, t)
    if t.shape != (x.shape[1],):
        raise UsageError(f"{name}: got shape {tuple(t.shape)}, expected {(x.shape[1],)}, a value per channel of x")
    if t.dtype != x.dtype or t.device != x.device:
        raise UsageError(f"{name}: got {t.dtype} on {t.device}, expected x's {x.dtype} on {x.device}")


def _fake(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    channels = x.new_empty(x.shape[1], dtype=torch.float64)
    return torch.empty_like(x, memory_format=dense_format(x)), channels, torch.empty_like(channels)


def _fake_backward(
    grad: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, invstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    channels = x.new_empty(x.shape[1])
    return torch.empty_like(x, memory_format=dense_format(x)), channels, torch.empty_like(channels)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:  # noqa: ANN401
    x, weight, _, ctx.eps = inputs
    _, mean, invstd = output
    ctx.mark_non_differentiable(mean, invstd)
    ctx.save_for_backward(x, weight, mean, invstd)


def _backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
    x, weight, mean, invstd = ctx.saved_tensors
    needs = ctx.needs_input_grad[:3]
    if torch.is_grad_enabled() and math.prod(x.shape):
        # A second derivative will be asked for: torch's own backward knows it, ours does not.
        stats = (mean.to(x.dtype), invstd.to(x.dtype))
        grads = torch.ops.aten.native_batch_norm_backward(grad, x, weight, None, None, *stats, True, ctx.eps, needs)
    else:
        grads = torch.ops.zcpipe.batch_norm_train_backward(grad, x, weight, mean, invstd)
    return *(g if needed else None for g, needed in zip(grads, needs, strict=True)), None


@on_load
def _register() -> None:
    torch.library.register_fake("zcpipe::batch_norm_train", _fake)
    torch.library.register_fake("zcpipe::batch_norm_train_backward", _fake_backward)
    torch.library.register_autograd("zcpipe::batch_norm_train", _backward, setup_context=_save)
