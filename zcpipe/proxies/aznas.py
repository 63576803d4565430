"""AZ-NAS (Lee & Ham, CVPR 2024, arXiv 2403.19232): expressivity, progressivity, trainability, complexity.

All four come from one forward pass over noise and one backward pass that never crosses a block. Block maps are the
stem's and every cell's output; f_l is the l-th of L maps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zcpipe.errors import UsageError
from zcpipe.ops import covariance, cross_moment
from zcpipe.proxies.base import JacobianStatistic, MapStatistic, Proxy, Recipe, as_rows

PAPER = "Lee & Ham, AZ-NAS: Assembling Zero-Cost Proxies for Network Architecture Search, CVPR 2024"
RECIPE = Recipe(init="kaiming_normal", inputs="noise", norm="batch")

_LOG_EPSILON = 1e-8  # inside the logarithm of the entropy only
_RECIPROCAL_EPSILON = 1e-6


def spectral_entropy(rows: Tensor) -> float:  # [N, C]
    """Entropy of the normalised eigenvalues of a map's channel covariance, in nats (AZ-NAS Eq. 1-3).

    The covariance is divided by N and accumulated in float64, and eigenvalues that rounding pushed below zero count as
    zero, so no finite map ever gives NaN.

    Args:
        rows: the map as positions x channels, [N, C], float32 or float64.

    Returns:
        The entropy; -inf if the map is constant over its positions (a dead block); NaN if it holds non-finite values.
    """
    moments = covariance(rows)
    if not bool(torch.isfinite(moments).all()):
        return math.nan
    eigenvalues = torch.linalg.eigvalsh(moments).clamp_min_(0.0)
    total = eigenvalues.sum()
    if total == 0:
        return -math.inf
    share = eigenvalues / total
    return float(-(share * torch.log(share + _LOG_EPSILON)).sum())


def pair_trainability(g_in: Tensor, g_out: Tensor) -> float:  # layouts of the two maps
    """How far a block's local Jacobian is from preserving gradients: 2 - s - 1/(s + 1e-6), at most 0 (AZ-NAS Eq. 8-10).

    s is the largest singular value of g_in^T g_out / N over the N positions of the block's output; where the block
    reduces the resolution by r, g_in is folded by space-to-depth first.

    Args:
        g_in: gradient with respect to the block's input map, [N, C, H, W] or [N, T, C] or [N, C].
        g_out: the +-1 probe on the block's output map, same kind of layout.

    Returns:
        The score of the pair; -inf if the block is the identity (g_in equals g_out everywhere); NaN if g_in is not
        finite.

    Raises:
        UsageError: the resolutions are not an integer multiple of each other.
    """
    # Almost every block differs within the first sample; only candidates are compared whole.
    if g_in.shape == g_out.shape and torch.equal(g_in[0], g_out[0]) and torch.equal(g_in, g_out):
        return -math.inf
    product = cross_moment(_folded_rows(g_in, g_out), as_rows(g_out))
    if not bool(torch.isfinite(product).all()):
        return math.nan
    sigma = float(torch.linalg.svdvals(product)[0])
    return -sigma - 1 / (sigma + _RECIPROCAL_EPSILON) + 2


def _folded_rows(g_in: Tensor, g_out: Tensor) -> Tensor:  # -> [N, C_in * r * r]
    """Rows of ``g_in`` after space-to-depth to the resolution of ``g_out``.

    The order of the folded channels differs from PixelUnshuffle's, which no singular value sees, so that each copied
    run is a whole pixel in channels-last layout.
    """
    if g_in.ndim != 4 or g_in.shape[2:] == g_out.shape[2:]:
        return as_rows(g_in)
    (height, width), (rows, columns) = g_in.shape[2:], g_out.shape[2:]
    stride = height // max(rows, 1)
    if stride < 1 or (height, width) != (rows * stride, columns * stride):
        raise UsageError(
            f"trainability needs maps whose resolutions are integer multiples, "
            f"got {(height, width)} before and {(rows, columns)} after a block"
        )
    samples, channels = g_in.shape[:2]
    pixels = g_in.permute(0, 2, 3, 1).reshape(samples, rows, stride, columns, stride, channels)  # a view
    return pixels.transpose(2, 3).reshape(-1, channels * stride * stride)


def _sum_of_entropies(statistics: Mapping[str, NDArray[np.float64]]) -> float:
    return float(np.sum(statistics["expressivity"]))


def _smallest_gain(statistics: Mapping[str, NDArray[np.float64]]) -> float:
    entropy = statistics["expressivity"]
    if np.isnan(entropy).any():
        return math.nan
    if np.isneginf(entropy).any():  # a dead block: the differences around it are not numbers
        return -math.inf
    return float(np.min(np.diff(entropy)))


def _mean_of_pairs(statistics: Mapping[str, NDArray[np.float64]]) -> float:
    return float(np.mean(statistics["trainability"]))


_ENTROPY = MapStatistic("expressivity", "nat", spectral_entropy)
_PAIR = JacobianStatistic("trainability", "", pair_trainability)

PROXIES = (
    Proxy(
        name="expressivity",
        direction="higher",
        scope="function",
        cost="cheap",
        recipe=RECIPE,
        statistics=(_ENTROPY,),
        reduce=_sum_of_entropies,
        unit="nat",
        formula="sum over maps of the spectral entropy of the channel covariance",
        paper=PAPER,
    ),
    Proxy(
        name="progressivity",
        direction="higher",
        scope="function",
        cost="cheap",
        recipe=RECIPE,
        statistics=(_ENTROPY,),
        reduce=_smallest_gain,
        unit="nat",
        formula="smallest difference of the entropies of successive maps",
        paper=PAPER,
    ),
    Proxy(
        name="trainability",
        direction="higher",
        scope="function",
        cost="cheap",
        recipe=RECIPE,
        statistics=(_PAIR,),
        reduce=_mean_of_pairs,
        unit="",
        formula="mean over successive maps of 2 - s - 1/(s + 1e-6), s the largest singular value of the local Jacobian",
        paper=PAPER,
    ),
    Proxy(
        name="complexity",
        direction="higher",
        scope="full",
        cost="static",
        recipe=None,
        statistics=(),
        reduce=lambda counts: float(counts["macs"]),
        unit="MAC",
        formula="multiply-accumulates of the full architecture",
        paper=PAPER,
    ),
)

GROUPS = {"aznas": tuple(proxy.name for proxy in PROXIES)}
