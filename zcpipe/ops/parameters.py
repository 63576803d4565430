"""Statistics of weights and their gradients, of all layers in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from zcpipe.errors import UsageError
from zcpipe.ops._check import check_float, use_native
from zcpipe.ops._library import on_load


class ParameterStatistics(NamedTuple):
    """Sums over each layer's weights w and their gradients g, a value per layer.

    Attributes:
        squared_gradients: sum of g^2; its root is the layer's gradient norm.
        products: sum of g w (plain).
        magnitudes: sum of abs(g w) (snip; synflow of its own weights and gradients).
        squared_weights: sum of w^2; its root is the layer's l2 norm.
    """

    squared_gradients: Tensor  # [n] float64
    products: Tensor  # [n] float64
    magnitudes: Tensor  # [n] float64
    squared_weights: Tensor  # [n] float64


def parameter_statistics(
    weights: Sequence[Tensor],  # n tensors of any shapes
    grads: Sequence[Tensor],  # of the weights' shapes
) -> ParameterStatistics:
    """Sum up every layer's weights and gradients as norms and saliencies need them.

    Each tensor is read once, and sums are taken in double precision. Statistics, not a layer: they are not
    differentiated, and inputs that require gradients are detached.

    Args:
        weights: float32 or float64 tensors, of any strides and not necessarily all of one dtype.
        grads: a gradient for each weight, of its shape and dtype and on its device, of any strides.

    Returns:
        The sums, in the order of `weights`; 0 for tensors without elements.

    Raises:
        UsageError: a tensor has another dtype, or `grads` does not fit `weights`.
    """
    if len(grads) != len(weights):
        raise UsageError(f"grads: got {len(grads)} tensors, expected {len(weights)} as in weights")
    for i, (w, g) in enumerate(zip(weights, grads, strict=True)):
        check_float(f"weights[{i}]", w)
        check_float(f"grads[{i}]", g)
        if g.shape != w.shape:
            raise UsageError(f"grads[{i}]: got shape {tuple(g.shape)}, expected {tuple(w.shape)} as weights[{i}]")
        if g.dtype != w.dtype or g.device != w.device:
            raise UsageError(f"grads[{i}]: got {g.dtype} on {g.device}, expected the weight's {w.dtype} on {w.device}")
        if w.device != weights[0].device:
            raise UsageError(f"weights[{i}]: got device {w.device}, expected {weights[0].device} as weights[0]")
    with torch.no_grad():
        if weights and use_native("parameter_statistics", *weights, *grads):
            table = torch.ops.zcpipe.parameter_statistics(weights, grads)
        else:
            table = _parameter_statistics(weights, grads)
    return ParameterStatistics(*table.unbind(1))


def _parameter_statistics(weights: Sequence[Tensor], grads: Sequence[Tensor]) -> Tensor:  # [n, 4]
    rows = []
    for w, g in zip(weights, grads, strict=True):
        w64, g64 = w.detach().double(), g.detach().double()
        products = w64 * g64
        rows.append(torch.stack([g64.square().sum(), products.sum(), products.abs().sum(), w64.square().sum()]))
    return torch.stack(rows) if rows else torch.zeros(0, 4, dtype=torch.float64)


def _fake(weights: Sequence[Tensor], grads: Sequence[Tensor]) -> Tensor:
    return weights[0].new_empty(len(weights), 4, dtype=torch.float64)


@on_load
def _register() -> None:
    torch.library.register_fake("zcpipe::parameter_statistics", _fake)
