"""Second moments of feature maps over their positions."""

from __future__ import annotations

import torch
from torch import Tensor

from zcpipe.errors import UsageError
from zcpipe.ops._check import check_float, use_native
from zcpipe.ops._library import on_load

_ROWS_AT_ONCE = 4096  # float64 copies of this many positions stay in the cache


def covariance(
    x: Tensor,  # [N, C, H, W] or [R, C]
) -> Tensor:  # [C, C] float64
    """Population covariance of a map's channels over its positions.

    Sums are taken in double precision around the first position, so that a map which is constant over its positions
    gives exactly zero. A statistic, not a layer: it is not differentiated, and an input that requires gradients is
    detached.

    Args:
        x: a feature map or rows of positions, float32 or float64, of any strides; contiguous rows and channels_last
            maps are read as they are.

    Returns:
        The covariance, divided by the number of positions; not finite in the rows and columns of channels that hold
        non-finite values.

    Raises:
        UsageError: `x` has another dtype, neither two nor four dimensions, or no position.
    """
    _check_map(x)
    x = x.detach()
    if not use_native("covariance", x):
        return _covariance(x)
    return torch.ops.zcpipe.covariance(x)  # type: ignore[no-any-return]


def position_gram(
    x: Tensor,  # [N, C, H, W] or [R, C]
) -> Tensor:  # [R, R] float64
    """Products of a map's positions, the channels' means taken off, divided by their number.

    What `covariance` is to channels: both have the same eigenvalues but for zeros, and this one is smaller where there
    are fewer positions than channels. A map that is constant over its positions gives exactly zero. Not differentiated.

    Args:
        x: a feature map or rows of positions, float32 or float64, of any strides.

    Returns:
        The products, not finite where the map is not.

    Raises:
        UsageError: as `covariance`.
    """
    _check_map(x)
    rows = _as_rows(x.detach()).double()
    shifted = rows - rows[0]
    deviations = shifted - shifted.mean(0)
    return deviations @ deviations.T / len(rows)


def cross_moment(
    a: Tensor,  # [N, Ca, r H, r W] or [R, Ca]
    b: Tensor,  # [N, Cb, H, W] or [R, Cb]
) -> Tensor:  # [r r Ca, Cb] float64
    """Mean over positions of the products of two maps' channels: ``a.T @ b / R`` for rows.

    Where `a` has r times the resolution of `b`, each r x r square of its pixels is one position with r r Ca channels
    (space-to-depth): channel (row of the square, column, channel of `a`). Products of float32 are added up in float32
    for at most 128 positions, and overflow where it does; everything else is added in double precision. A statistic,
    not a layer: it is not differentiated, and inputs that require gradients are detached.

    Args:
        a: rows or a map, float32 or float64, of any strides; contiguous rows and channels_last maps are read as they
            are.
        b: as many rows or samples, of the dtype and on the device of `a`.

    Returns:
        The mean products; not finite in the rows and columns of channels that hold non-finite values.

    Raises:
        UsageError: `a` has another dtype, neither two nor four dimensions or no position, or `b` does not fit it.
    """
    for name, t in (("a", a), ("b", b)):
        check_float(name, t)
        if t.ndim not in (2, 4):
            raise UsageError(f"{name}: got shape {tuple(t.shape)}, expected rows (R, C) or a feature map (N, C, H, W)")
    for name, t in (("a", a), ("b", b)):
        if 0 in (t.shape[0], *t.shape[2:]):
            raise UsageError(f"{name}: got shape {tuple(t.shape)}, expected at least one position")
    if b.ndim != a.ndim or b.shape[0] != a.shape[0]:
        raise UsageError(f"b: got shape {tuple(b.shape)}, expected {a.shape[0]} rows or samples as in a")
    if b.dtype != a.dtype or b.device != a.device:
        raise UsageError(f"b: got {b.dtype} on {b.device}, expected a's {a.dtype} on {a.device}")
    if a.ndim == 4 and a.shape[2:] != tuple(a.shape[2] // b.shape[2] * size for size in b.shape[2:]):
        raise UsageError(
            f"a: got resolution {tuple(a.shape[2:])}, expected an integer multiple of b's {tuple(b.shape[2:])}"
        )
    a, b = a.detach(), b.detach()
    if not use_native("cross_moment", a, b):
        return _cross_moment(a, b)
    return torch.ops.zcpipe.cross_moment(a, b)  # type: ignore[no-any-return]


def _check_map(x: Tensor) -> None:
    check_float("x", x)
    if x.ndim not in (2, 4):
        raise UsageError(f"x: got shape {tuple(x.shape)}, expected rows (R, C) or a feature map (N, C, H, W)")
    if 0 in (x.shape[0], *x.shape[2:]):
        raise UsageError(f"x: got shape {tuple(x.shape)}, expected at least one position")


def _covariance(x: Tensor) -> Tensor:
    rows = _as_rows(x)
    count, channels = rows.shape
    origin = rows[0].double()
    gram = rows.new_zeros(channels, channels, dtype=torch.float64)
    total = rows.new_zeros(channels, dtype=torch.float64)
    for i in range(0, count, _ROWS_AT_ONCE):
        shifted = rows[i : i + _ROWS_AT_ONCE].double() - origin
        gram += shifted.T @ shifted
        total += shifted.sum(0)
    mean = total / count
    return gram / count - torch.outer(mean, mean)


def _cross_moment(a: Tensor, b: Tensor) -> Tensor:
    fold = _fold(a, b)
    if fold > 1:
        samples, channels, height, width = a.shape
        squares = a.reshape(samples, channels, height // fold, fold, width // fold, fold)
        a = squares.permute(0, 2, 4, 3, 5, 1).reshape(-1, fold * fold * channels)
    a, b = _as_rows(a), _as_rows(b)
    total = a.new_zeros(a.shape[1], b.shape[1], dtype=torch.float64)
    for i in range(0, a.shape[0], _ROWS_AT_ONCE):
        total += a[i : i + _ROWS_AT_ONCE].double().T @ b[i : i + _ROWS_AT_ONCE].double()
    return total / a.shape[0]


def _as_rows(x: Tensor) -> Tensor:  # [N, C, H, W] or [R, C] -> [R, C]
    return x if x.ndim == 2 else x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _fold(a: Tensor, b: Tensor) -> int:
    return a.shape[2] // b.shape[2] if a.ndim == 4 else 1


def _fake_covariance(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[1], x.shape[1], dtype=torch.float64)


def _fake_cross_moment(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(_fold(a, b) ** 2 * a.shape[1], b.shape[1], dtype=torch.float64)


@on_load
def _register() -> None:
    torch.library.register_fake("zcpipe::covariance", _fake_covariance)
    torch.library.register_fake("zcpipe::cross_moment", _fake_cross_moment)
