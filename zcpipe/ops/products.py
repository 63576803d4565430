"""Sums over pixels of a map and its gradient, multiplied."""

from __future__ import annotations

import torch
from torch import Tensor

from zcpipe.errors import UsageError
from zcpipe.ops._check import check_float, use_native
from zcpipe.ops._library import on_load


def product_sums(
    z: Tensor,  # [N, C, H, W], [N, T, C] or [N, C]
    dz: Tensor,  # of the shape of z
) -> Tensor:  # [N, C] float64
    """Sum ``z * dz`` over the pixels (or tokens) of each sample and channel.

    Sums are taken in double precision. A statistic, not a layer: it is not differentiated, and inputs that require
    gradients are detached. fisher, synflow and plain are reductions of it.

    Args:
        z: feature maps, tokens or rows, float32 or float64, of any strides; contiguous and channels_last ones are read
            as they are.
        dz: its gradient, of its shape and dtype and on its device; copied where it has another layout than `z`.

    Returns:
        The sums; 0 where there are no pixels.

    Raises:
        UsageError: `z` has another dtype or number of dimensions, or `dz` does not fit it.
    """
    check_float("z", z)
    check_float("dz", dz)
    if z.ndim not in (2, 3, 4):
        raise UsageError(f"z: got shape {tuple(z.shape)}, expected (N, C, H, W), (N, T, C) or (N, C)")
    if dz.shape != z.shape:
        raise UsageError(f"dz: got shape {tuple(dz.shape)}, expected {tuple(z.shape)} as z")
    if dz.dtype != z.dtype or dz.device != z.device:
        raise UsageError(f"dz: got {dz.dtype} on {dz.device}, expected z's {z.dtype} on {z.device}")
    z, dz = z.detach(), dz.detach()
    if not use_native("product_sums", z, dz):
        return _product_sums(z, dz)
    return torch.ops.zcpipe.product_sums(z, dz)  # type: ignore[no-any-return]


def _product_sums(z: Tensor, dz: Tensor) -> Tensor:
    products = z.double() * dz.double()
    pixels = {2: (), 3: (1,), 4: (2, 3)}[z.ndim]
    return products.sum(pixels) if pixels else products


def _fake(z: Tensor, dz: Tensor) -> Tensor:
    return z.new_empty(z.shape[0], z.shape[2 if z.ndim == 3 else 1], dtype=torch.float64)


@on_load
def _register() -> None:
    torch.library.register_fake("zcpipe::product_sums", _fake)
