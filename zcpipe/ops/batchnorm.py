"""Batch normalisation with the batch's own statistics."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zcpipe.errors import UsageError
from zcpipe.ops._autograd import differentiable
from zcpipe.ops._check import check_channels, check_images, check_like, dense_format, use_native
from zcpipe.ops._library import on_load


def batch_norm_train(
    x: Tensor,  # [N, C, H, W]
    weight: Tensor | None = None,  # [C]
    bias: Tensor | None = None,  # [C]
    eps: float = 1e-5,
    *,
    relu: bool = False,
    total: Tensor | None = None,  # [N, C, H, W]
) -> Tensor:  # [N, C, H, W]
    """Normalise each channel by the batch's mean and (biased) variance, scale and shift it, and add it to a sum.

    Equivalent to ``total + relu(F.batch_norm(x, None, None, weight, bias, training=True, eps=eps))``, where ReLU and
    sum are left out by default, and as differentiable. Sums over positions are taken in double precision, but for few
    neighbouring rows. A channels_last input gives a channels_last output, any other a contiguous one.

    Args:
        x: images, float32 or float64, of any strides.
        weight: the channels' scales, of the dtype and on the device of `x`; None for 1.
        bias: the channels' shifts, likewise; None for 0.
        eps: what is added to the variance.
        relu: whether negative values of the normalised images become zero.
        total: images of the shape, dtype and device of `x` that the result is added to; None for none.

    Returns:
        The images, of the shape and dtype of `x`.

    Raises:
        UsageError: `x` has another dtype, not four dimensions or one value per channel only, or another argument does
            not fit it.
    """
    check_images("x", x)
    if x.numel() == x.shape[1] != 0:
        raise UsageError(f"x: got shape {tuple(x.shape)}, expected more than one value per channel")
    check_channels("weight", weight, x.shape[1], x)
    check_channels("bias", bias, x.shape[1], x)
    check_like("total", total, x.shape, x)
    if not use_native("batch_norm_train", x, weight, bias, total):
        return _batch_norm_train(x, weight, bias, total, eps, relu)
    return _native(x, weight, bias, total, eps, relu)


def _batch_norm_train(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, total: Tensor | None, eps: float, relu: bool
) -> Tensor:
    if x.numel() == 0:
        y = x.clone(memory_format=dense_format(x))
    else:
        # In double precision: torch's sums of float32 images are off by more than the native op's.
        scales, shifts = (t if t is None else t.double() for t in (weight, bias))
        y = F.batch_norm(x.double(), None, None, scales, shifts, training=True, eps=eps).to(x.dtype)
    y = F.relu(y) if relu else y
    return y if total is None else total + y


def _fake(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, total: Tensor | None, eps: float, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    channels = x.new_empty(x.shape[1], dtype=torch.float64)
    return torch.empty_like(x, memory_format=dense_format(x)), channels, torch.empty_like(channels)


def _fake_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    invstd: Tensor,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    channels = x.new_empty(x.shape[1])
    return torch.empty_like(x, memory_format=dense_format(x)), channels, torch.empty_like(channels)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:  # noqa: ANN401
    x, weight, bias, _, ctx.eps, ctx.relu = inputs
    _, mean, invstd = output
    ctx.mark_non_differentiable(mean, invstd)
    ctx.save_for_backward(x, weight, bias, mean, invstd)


def _backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
    x, weight, bias, mean, invstd = ctx.saved_tensors
    needs = ctx.needs_input_grad[:3]
    grads: tuple[Tensor | None, ...]
    if torch.is_grad_enabled() and math.prod(x.shape):
        # A second derivative will be asked for: the twin knows it, the native backward does not.
        # Aliases, because a parameter may depend on x: the way through it is autograd's to follow, not ours.
        aliases: list[Any] = [t if t is None else t.view_as(t) for t in (x, weight, bias)]
        y = _batch_norm_train(*(*aliases, None, ctx.eps, ctx.relu))
        asked = [t for t, needed in zip(aliases, needs, strict=True) if needed]
        found = iter(torch.autograd.grad(y, asked, grad, create_graph=True) if asked else ())
        grads = tuple(next(found) if needed else None for needed in needs)
    elif any(needs):
        grads = torch.ops.zcpipe.batch_norm_train_backward(grad, x, weight, bias, mean, invstd, ctx.relu)
    else:
        grads = (None, None, None)
    chosen = (g if needed else None for g, needed in zip(grads, needs, strict=True))
    return *chosen, grad if ctx.needs_input_grad[3] else None, None, None


_native = differentiable("batch_norm_train", _backward, _save)


@on_load
def _register() -> None:
    torch.library.register_fake("zcpipe::batch_norm_train", _fake)
    torch.library.register_fake("zcpipe::batch_norm_train_backward", _fake_backward)
    torch.library.register_autograd("zcpipe::batch_norm_train", _backward, setup_context=_save)
