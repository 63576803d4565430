"""ReLU, convolution and batch normalisation in one: the weighted operation of most search spaces."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zcpipe.errors import UsageError
from zcpipe.ops._autograd import differentiable
from zcpipe.ops._check import check_channels, check_float, check_images, check_like, dense_format, use_native
from zcpipe.ops._library import on_load
from zcpipe.ops.batchnorm import batch_norm_train

_Channels = Tensor | None  # [D]


def conv_batch_norm_train(
    x: Tensor,  # [N, C, H, W]
    weight: Tensor,  # [D, C, K, K]
    norm_weight: Tensor | None = None,  # [D]
    norm_bias: Tensor | None = None,  # [D]
    eps: float = 1e-5,
    *,
    stride: int = 1,
    padding: int = 0,
    relu_input: bool = False,
    relu_output: bool = False,
    total: Tensor | None = None,  # [N, D, H', W']
) -> Tensor:  # [N, D, H', W']
    """Convolve, normalise each channel with the batch's statistics, and add the result to a sum.

    Equivalent to ``batch_norm_train(F.conv2d(relu(x), weight, None, stride, padding), norm_weight, norm_bias, eps,
    relu=relu_output, total=total)``, where the first ReLU is there only with `relu_input`, and as differentiable. The
    native op is for float32 and strides 1 and 2; everything else is composed of the single operations.

    Args:
        x: images, float32 or float64. A native result is channels_last; on CUDA only if `x` is, contiguous otherwise.
        weight: the kernels, of the dtype and on the device of `x`.
        norm_weight: the channels' scales, likewise; None for 1.
        norm_bias: the channels' shifts, likewise; None for 0.
        eps: what is added to the variance.
        stride: of the convolution.
        padding: zeros around the image.
        relu_input: whether negative values of `x` count as zero.
        relu_output: whether negative values of the normalised images become zero.
        total: images of the result's shape that it is added to; None for none.

    Returns:
        The images.

    Raises:
        UsageError: an argument has a wrong dtype, device or shape; it is named.
    """
    shape = check_convolution(x, weight, stride, padding)
    check_channels("norm_weight", norm_weight, shape[1], x)
    check_channels("norm_bias", norm_bias, shape[1], x)
    check_like("total", total, torch.Size(shape), x)
    native = x.dtype == torch.float32 and x.numel() > 0 and stride in (1, 2)
    if native and use_native("conv_batch_norm_train", x, weight, norm_weight, norm_bias, total):
        return _native(x, weight, norm_weight, norm_bias, total, eps, stride, padding, relu_input, relu_output)
    return _conv_batch_norm_train(
        x, weight, norm_weight, norm_bias, total, eps, stride, padding, relu_input, relu_output
    )


def check_convolution(x: Tensor, weight: Tensor, stride: int, padding: int) -> tuple[int, int, int, int]:
    """Check what decides the result's shape, and return it."""
    check_images("x", x)
    check_float("weight", weight)
    if weight.ndim != 4 or weight.shape[1] != x.shape[1] or weight.shape[2] != weight.shape[3]:
        raise UsageError(f"weight: got shape {tuple(weight.shape)}, expected (D, {x.shape[1]}, K, K)")
    if weight.dtype != x.dtype or weight.device != x.device:
        raise UsageError(f"weight: got {weight.dtype} on {weight.device}, expected x's {x.dtype} on {x.device}")
    for name, value, least in (("stride", stride, 1), ("padding", padding, 0)):
        if value < least:
            raise UsageError(f"{name}: got {value}, expected {least} or more")
    height, width = ((size + 2 * padding - weight.shape[2]) // stride + 1 for size in x.shape[2:])
    if height < 1 or width < 1 or weight.shape[2] == 0:
        raise UsageError(f"weight: got shape {tuple(weight.shape)}, expected a kernel that fits {tuple(x.shape)}")
    if x.shape[0] * height * width == 1:
        raise UsageError(f"x: got shape {tuple(x.shape)}, expected more than one value per channel of the result")
    return x.shape[0], weight.shape[0], height, width


def _conv_batch_norm_train(
    x: Tensor,
    weight: Tensor,
    norm_weight: _Channels,
    norm_bias: _Channels,
    total: Tensor | None,
    eps: float,
    stride: int,
    padding: int,
    relu_input: bool,
    relu_output: bool,
) -> Tensor:
    z = F.conv2d(F.relu(x) if relu_input else x, weight, None, stride, padding)
    return batch_norm_train(z, norm_weight, norm_bias, eps, relu=relu_output, total=total)


def _fake(
    x: Tensor,
    weight: Tensor,
    norm_weight: _Channels,
    norm_bias: _Channels,
    total: Tensor | None,
    eps: float,
    stride: int,
    padding: int,
    relu_input: bool,
    relu_output: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    height, width = ((size + 2 * padding - weight.shape[2]) // stride + 1 for size in x.shape[2:])
    y = x.new_empty(x.shape[0], weight.shape[0], height, width).contiguous(memory_format=_format(x))
    mean = x.new_empty(weight.shape[0], dtype=torch.float64)
    return y, torch.empty_like(y), mean, torch.empty_like(mean)


def _fake_backward(
    grad: Tensor,
    x: Tensor,
    z: Tensor,
    weight: Tensor,
    norm_weight: _Channels,
    norm_bias: _Channels,
    mean: Tensor,
    invstd: Tensor,
    stride: int,
    padding: int,
    relu_input: bool,
    relu_output: bool,
) -> Tensor:
    return torch.empty_like(x, memory_format=_format(x))


def _format(x: Tensor) -> torch.memory_format:
    return dense_format(x) if x.is_cuda else torch.channels_last


def _fake_gradients(
    grad: Tensor,
    x: Tensor,
    z: Tensor,
    weight: Tensor,
    norm_weight: _Channels,
    norm_bias: _Channels,
    mean: Tensor,
    invstd: Tensor,
    stride: int,
    padding: int,
    relu_input: bool,
    relu_output: bool,
    input: bool,
    outputs: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    grad_x = torch.empty_like(x, memory_format=_format(x)) if input else x.new_empty(0, *x.shape[1:])
    channels = weight.new_empty(weight.shape[0])
    products = mean.new_empty(x.shape[0] if outputs else 0, weight.shape[0])
    return grad_x, weight.new_empty(weight.shape), channels, torch.empty_like(channels), products


def _fake_gradients_onto(*arguments: Any) -> tuple[Tensor, ...]:  # noqa: ANN401
    tensors, how, outputs = arguments[:8], arguments[9:13], arguments[13]  # without the total
    return _fake_gradients(*(*tensors, *how, True, outputs))[1:]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:  # noqa: ANN401
    x, weight, norm_weight, norm_bias, _, ctx.eps, *ctx.how = inputs
    _, z, mean, invstd = output
    ctx.mark_non_differentiable(z, mean, invstd)
    ctx.save_for_backward(x, weight, norm_weight, norm_bias, z, mean, invstd)


def _backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
    x, weight, norm_weight, norm_bias, z, mean, invstd = ctx.saved_tensors
    needs = ctx.needs_input_grad[:4]
    grads: list[Tensor | None] = [None] * 4
    if any(needs) and torch.is_grad_enabled():
        grads = _composed(ctx, grad, needs)
    elif any(needs[1:]):
        op = torch.ops.zcpipe.conv_batch_norm_train_gradients
        found = op(grad, x, z, weight, norm_weight, norm_bias, mean, invstd, *ctx.how, needs[0], False)
        grads = [g if needed else None for g, needed in zip(found[:4], needs, strict=True)]
    elif needs[0]:
        op = torch.ops.zcpipe.conv_batch_norm_train_backward
        grads[0] = op(grad, x, z, weight, norm_weight, norm_bias, mean, invstd, *ctx.how)
    return *grads, grad if ctx.needs_input_grad[4] else None, None, None, None, None, None


def _composed(ctx: Any, grad: Tensor, needs: tuple[bool, ...]) -> list[Tensor | None]:  # noqa: ANN401
    """Derive the twin, for derivatives that will be derived again."""
    # Aliases, because a parameter may depend on x: the way through it is autograd's to follow, not ours.
    aliases: list[Any] = [t if t is None else t.view_as(t) for t in ctx.saved_tensors[:4]]
    y = _conv_batch_norm_train(*(*aliases, None, ctx.eps, *ctx.how))
    asked = [t for t, needed in zip(aliases, needs, strict=True) if needed]
    found = iter(torch.autograd.grad(y, asked, grad, create_graph=True))
    return [next(found) if needed else None for needed in needs]


_native = differentiable("conv_batch_norm_train", _backward, _save)


@on_load
def _register() -> None:
    torch.library.register_fake("zcpipe::conv_batch_norm_train", _fake)
    torch.library.register_fake("zcpipe::conv_batch_norm_train_backward", _fake_backward)
    torch.library.register_fake("zcpipe::conv_batch_norm_train_gradients", _fake_gradients)
    torch.library.register_fake("zcpipe::conv_batch_norm_train_gradients_onto", _fake_gradients_onto)
    torch.library.register_fake("zcpipe::conv_batch_norm_train_onto", lambda *arguments: _fake(*arguments)[1:])
    torch.library.register_fake("zcpipe::conv_batch_norm_train_backward_onto", lambda *arguments: None)
    torch.library.register_autograd("zcpipe::conv_batch_norm_train", _backward, setup_context=_save)
