"""Argument checks and layouts that the ops share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from zcpipe.errors import PrecisionError, UsageError
from zcpipe.ops import _library

FLOATS = (torch.float32, torch.float64)


def check_float(name: str, t: Tensor) -> None:
    """Refuse anything but a float32 or float64 tensor, naming the argument."""
    if not isinstance(t, Tensor):
        raise UsageError(f"{name}: got {type(t).__name__}, expected a tensor")
    if t.dtype not in FLOATS:
        raise PrecisionError(f"{name}: got {t.dtype}, expected torch.float32 or torch.float64")
    if t.layout is not torch.strided:
        raise UsageError(f"{name}: got layout {t.layout}, expected torch.strided")


def check_images(name: str, t: Tensor) -> None:
    """Refuse anything but float images, naming the argument."""
    check_float(name, t)
    if t.ndim != 4:
        raise UsageError(f"{name}: got shape {tuple(t.shape)}, expected four dimensions (N, C, H, W)")


def check_channels(name: str, t: Tensor | None, channels: int, x: Tensor) -> None:
    """Refuse anything but None or a value per channel of the dtype and on the device of `x`, naming the argument."""
    if t is None:
        return
    check_float(name, t)
    if t.shape != (channels,):
        raise UsageError(f"{name}: got shape {tuple(t.shape)}, expected {(channels,)}, a value per channel")
    _check_kind(name, t, x)


def check_like(name: str, t: Tensor | None, shape: torch.Size, x: Tensor) -> None:
    """Refuse anything but None or a tensor of a shape with the dtype and device of `x`, naming the argument."""
    if t is None:
        return
    check_float(name, t)
    if t.shape != shape:
        raise UsageError(f"{name}: got shape {tuple(t.shape)}, expected {tuple(shape)}")
    _check_kind(name, t, x)


def _check_kind(name: str, t: Tensor, x: Tensor) -> None:
    if t.dtype != x.dtype or t.device != x.device:
        raise UsageError(f"{name}: got {t.dtype} on {t.device}, expected x's {x.dtype} on {x.device}")


def use_native(op: str, *tensors: Tensor | None) -> bool:
    """Whether the op of this name goes to the native library for `tensors`.

    The library has every op for the CPU (and fake kernels for meta tensors), and for CUDA those that it was built
    with. Its kernels know no tangents, so that a forward-mode derivative through them would silently be zero, and
    torch.func refuses them: both get the twin.
    """
    if torch._C._are_functorch_transforms_active() or not _library.available():
        return False
    return all(t is None or (_has_kernel(op, t) and not _has_tangent(t)) for t in tensors)


def _has_kernel(op: str, t: Tensor) -> bool:
    return t.is_cpu or t.is_meta or (t.is_cuda and _library.has_cuda(op))


def _has_tangent(t: Tensor) -> bool:
    return forward_ad.unpack_dual(t).tangent is not None  # type: ignore[no-untyped-call]


def dense_format(t: Tensor) -> torch.memory_format:
    """The layout an op's output has: channels_last for a channels_last input, contiguous for every other."""
    channels_last = t.ndim == 4 and t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format
