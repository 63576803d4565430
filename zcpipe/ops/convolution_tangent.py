"""ReLU, convolution and batch normalisation of values and tangents, and the way back: what second derivatives need."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zcpipe.ops._check import check_channels, check_like, use_native
from zcpipe.ops._library import on_load
from zcpipe.ops.convolution import check_convolution

_Channels = Tensor | None  # [D]


def conv_batch_norm_tangent(
    x: Tensor,  # [N, C, H, W]
    x_dot: Tensor | None,  # [N, C, H, W]
    weight: Tensor,  # [D, C, K, K]
    weight_dot: Tensor,  # [D, C, K, K]
    norm_weight: Tensor | None = None,  # [D]
    norm_bias: Tensor | None = None,  # [D]
    eps: float = 1e-5,
    *,
    stride: int = 1,
    padding: int = 0,
    relu_input: bool = False,
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Convolve and normalise images, and their derivative along a line.

    The images are y(t) = conv_batch_norm_train(x + t x_dot, weight + t weight_dot, ...) at t = 0. The result is not
    differentiable by autograd; `conv_batch_norm_tangent_backward` is the way back. The native op is for float32 on the
    CPU and strides 1 and 2; everything else is composed of torch's operations.

    Args:
        x: images, float32 or float64. A native result is channels_last.
        x_dot: the images' derivative, of the shape, dtype and device of `x`; None for zeros.
        weight: the kernels, of the dtype and on the device of `x`.
        weight_dot: the kernels' derivative, likewise.
        norm_weight: the channels' scales, likewise; None for 1.
        norm_bias: the channels' shifts, likewise; None for 0.
        eps: what is added to the variance.
        stride: of the convolution.
        padding: zeros around the image.
        relu_input: whether negative values of `x` count as zero.

    Returns:
        y, its derivative [N, D, H', W'], and what the backward needs: the convolution's output and its derivative, and
        [4, D] in float64: the output's mean and 1 / sqrt(variance + eps), and the means of the derivative and of the
        derivative times the normalised output.

    Raises:
        UsageError: an argument has a wrong dtype, device or shape; it is named.
    """
    _check(x, x_dot, weight, weight_dot, norm_weight, stride, padding)
    check_channels("norm_bias", norm_bias, weight.shape[0], x)
    if _is_native(x, x_dot, weight, weight_dot, norm_weight, norm_bias, stride):
        op = torch.ops.zcpipe.conv_batch_norm_tangent
        y, y_dot, *saved = op(
            x, x_dot, weight, weight_dot, norm_weight, norm_bias, None, None, eps, stride, padding, relu_input
        )
        return y, y_dot, tuple(saved)
    return _conv_batch_norm_tangent(
        x, x_dot, weight, weight_dot, norm_weight, norm_bias, eps, stride, padding, relu_input
    )


def conv_batch_norm_tangent_backward(
    grad: Tensor,  # [N, D, H', W']
    grad_dot: Tensor,  # [N, D, H', W']
    x: Tensor,  # [N, C, H, W]
    x_dot: Tensor | None,  # [N, C, H, W]
    saved: tuple[Tensor, Tensor, Tensor],
    weight: Tensor,  # [D, C, K, K]
    weight_dot: Tensor,  # [D, C, K, K]
    norm_weight: Tensor | None = None,  # [D]
    eps: float = 1e-5,
    *,
    stride: int = 1,
    padding: int = 0,
    relu_input: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x and x_dot, and the sum of weight times its gradient.

    Args:
        grad: the gradient of y, of its shape and of the dtype and on the device of `x`.
        grad_dot: that of y's derivative, likewise.
        x: as in the forward, as all that follows.
        x_dot: likewise.
        saved: what the forward returned.
        weight: as in the forward.
        weight_dot: likewise.
        norm_weight: likewise.
        eps: likewise.
        stride: likewise.
        padding: likewise.
        relu_input: likewise.

    Returns:
        The gradients [N, C, H, W], of no images where `x_dot` is None, and the sum: float64, a scalar.

    Raises:
        UsageError: an argument has a wrong dtype, device or shape; it is named.
    """
    shape = torch.Size(_check(x, x_dot, weight, weight_dot, norm_weight, stride, padding))
    z, z_dot, statistics = saved
    for name, t in (("grad", grad), ("grad_dot", grad_dot), ("z", z), ("z_dot", z_dot)):
        check_like(name, t, shape, x)
    check_like("statistics", statistics, torch.Size((4, shape[1])), statistics.new_empty(0, dtype=torch.float64))
    if _is_native(x, x_dot, weight, weight_dot, norm_weight, None, stride):
        op = torch.ops.zcpipe.conv_batch_norm_tangent_backward
        how = eps, stride, padding, relu_input
        grad_x, grad_x_dot, product = op(
            grad, grad_dot, x, x_dot, z, z_dot, weight, weight_dot, norm_weight, statistics, *how
        )
        return grad_x, grad_x_dot, product
    return _conv_batch_norm_tangent_backward(
        grad, grad_dot, x, x_dot, weight, weight_dot, norm_weight, eps, stride, padding, relu_input
    )


def _check(
    x: Tensor,
    x_dot: Tensor | None,
    weight: Tensor,
    weight_dot: Tensor,
    norm_weight: _Channels,
    stride: int,
    padding: int,
) -> tuple[int, int, int, int]:
    shape = check_convolution(x, weight, stride, padding)
    check_like("x_dot", x_dot, x.shape, x)
    check_like("weight_dot", weight_dot, weight.shape, x)
    check_channels("norm_weight", norm_weight, shape[1], x)
    return shape


def _is_native(
    x: Tensor,
    x_dot: Tensor | None,
    weight: Tensor,
    weight_dot: Tensor,
    norm_weight: _Channels,
    norm_bias: _Channels,
    stride: int,
) -> bool:
    fits = x.dtype == torch.float32 and x.numel() > 0 and stride in (1, 2) and x.device.type in ("cpu", "meta")
    return fits and use_native("conv_batch_norm_tangent", x, x_dot, weight, weight_dot, norm_weight, norm_bias)


def _conv_batch_norm_tangent(
    x: Tensor,
    x_dot: Tensor | None,
    weight: Tensor,
    weight_dot: Tensor,
    norm_weight: _Channels,
    norm_bias: _Channels,
    eps: float,
    stride: int,
    padding: int,
    relu_input: bool,
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
    x_dot = torch.zeros_like(x) if x_dot is None else x_dot
    if relu_input:
        x, x_dot = F.relu(x), torch.where(x > 0, x_dot, 0)
    z = F.conv2d(x, weight, None, stride, padding)
    z_dot = F.conv2d(x_dot, weight, None, stride, padding) + F.conv2d(x, weight_dot, None, stride, padding)
    # In double precision, as the native op's sums.
    dims = (0, 2, 3)
    wide, wide_dot = z.double(), z_dot.double()
    mean, tangent = wide.mean(dims, keepdim=True), wide_dot.mean(dims, keepdim=True)
    invstd = ((wide - mean).square().mean(dims, keepdim=True) + eps).rsqrt()
    normed = (wide - mean) * invstd
    slope = (wide_dot * normed).mean(dims, keepdim=True)
    y, y_dot = normed, invstd * (wide_dot - tangent - normed * slope)
    if norm_weight is not None:
        y, y_dot = (t * norm_weight.view(-1, 1, 1) for t in (y, y_dot))
    if norm_bias is not None:
        y = y + norm_bias.view(-1, 1, 1)
    statistics = torch.stack([t.flatten() for t in (mean, invstd, tangent, slope)])
    return y.to(x.dtype), y_dot.to(x.dtype), (z, z_dot, statistics)


@torch.enable_grad()
def _conv_batch_norm_tangent_backward(
    grad: Tensor,
    grad_dot: Tensor,
    x: Tensor,
    x_dot: Tensor | None,
    weight: Tensor,
    weight_dot: Tensor,
    norm_weight: _Channels,
    eps: float,
    stride: int,
    padding: int,
    relu_input: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    tangents = torch.zeros_like(x) if x_dot is None else x_dot
    a, b, w = (t.detach().requires_grad_() for t in (x, tangents, weight))
    y, y_dot, _ = _conv_batch_norm_tangent(a, b, w, weight_dot, norm_weight, None, eps, stride, padding, relu_input)
    grad_x, grad_x_dot, grad_weight = torch.autograd.grad((y, y_dot), (a, b, w), (grad, grad_dot))
    if x_dot is None:
        grad_x, grad_x_dot = (x.new_empty(0, *x.shape[1:]) for _ in range(2))
    return grad_x, grad_x_dot, (weight.double() * grad_weight).sum()


def _fake(*arguments: Any) -> tuple[Tensor, ...]:  # noqa: ANN401
    x, weight, (stride, padding) = arguments[0], arguments[2], arguments[9:11]
    height, width = ((size + 2 * padding - weight.shape[2]) // stride + 1 for size in x.shape[2:])
    y = x.new_empty(x.shape[0], weight.shape[0], height, width).contiguous(memory_format=torch.channels_last)
    return (y, *(torch.empty_like(y) for _ in range(3)), x.new_empty(4, weight.shape[0], dtype=torch.float64))


def _fake_backward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ANN401
    x, x_dot = arguments[2:4]
    like = x.new_empty(0, *x.shape[1:]) if x_dot is None else x
    grads = [torch.empty_like(like, memory_format=torch.channels_last) for _ in range(2)]
    return (*grads, x.new_empty((), dtype=torch.float64))


@on_load
def _register() -> None:
    fakes = {
        "conv_batch_norm_tangent": _fake,
        "conv_batch_norm_tangent_onto": lambda *arguments: _fake(*arguments)[2:],
        "conv_batch_norm_tangent_backward": _fake_backward,
        "conv_batch_norm_tangent_backward_onto": lambda *arguments: _fake_backward(*arguments)[2],
    }
    for name, fake in fakes.items():
        torch.library.register_fake(f"zcpipe::{name}", fake)
