"""AZ-NAS (Lee & Ham, CVPR 2024, arXiv 2403.19232): expressivity, progressivity, trainability, complexity.

All four come from one forward pass over noise and one backward pass that never crosses a block. Block maps are the
stem's and every cell's output; f_l is the l-th of L maps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zcpipe.errors import UnsupportedError
from zcpipe.ops import covariance, cross_moment, largest_singular_values, position_gram, symmetric_eigenvalues
from zcpipe.proxies.base import JacobianStatistic, MapStatistic, Proxy, Recipe, positions_of

PAPER = "Lee & Ham, AZ-NAS: Assembling Zero-Cost Proxies for Network Architecture Search, CVPR 2024"
RECIPE = Recipe(init="kaiming_normal", inputs="noise", norm="batch")

_LOG_EPSILON = 1e-8  # inside the logarithm of the entropy only
_RECIPROCAL_EPSILON = 1e-6


def moments(feature: Tensor) -> Tensor:  # [N, C, H, W] or [R, C] -> [C, C] or [R, R] float64
    """Return the channel covariance of a block map (AZ-NAS Eq. 1), or a smaller matrix that has its eigenvalues.

    Deep maps have fewer positions than channels, and the covariance many zeros for eigenvalues, which add nothing to
    any entropy.
    """
    positions = feature.numel() // max(feature.shape[1], 1)
    return position_gram(feature) if positions < feature.shape[1] else covariance(feature)


def spectral_entropies(covariances: Sequence[Tensor]) -> list[float]:  # [C, C] float64 each
    """Entropy of the normalised eigenvalues of each covariance, in nats (AZ-NAS Eq. 2-3).

    Eigenvalues that rounding pushed below zero count as zero, so no finite map ever gives NaN.

    Args:
        covariances: channel covariances of block maps, divided by N (AZ-NAS Eq. 1), or what else has their eigenvalues.

    Returns:
        The entropies; -inf where a map is constant over its positions (a dead block); NaN where it holds non-finite
        values.
    """
    return [_entropy(spectrum) for spectrum in _fetched(symmetric_eigenvalues(covariances))]


def _entropy(eigenvalues: NDArray[np.float64]) -> float:
    eigenvalues = np.maximum(eigenvalues, 0.0)  # keeps NaN
    total = eigenvalues.sum()
    if total == 0:
        return -math.inf
    share = eigenvalues / total
    return float(-(share * np.log(share + _LOG_EPSILON)).sum())


@dataclass(frozen=True)
class LocalJacobian:
    """Estimate of a block's local Jacobian; whether the block is the identity may be known on the device only."""

    estimate: Tensor | None  # [r r C_in, C_out] float64; None for an identity that is known to be one
    identity: Tensor | bool  # [] bool


def local_jacobian(g_in: Tensor, g_out: Tensor) -> LocalJacobian:  # of maps
    """Estimate of a block's local Jacobian: g_in^T g_out / N over the N positions of its output (AZ-NAS Eq. 8).

    Where the block reduces the resolution by r, g_in is folded by space-to-depth first.

    Args:
        g_in: gradient with respect to the block's input map, [N, C, H, W] or [N, T, C] or [N, C].
        g_out: the +-1 probe on the block's output map, same kind of layout.

    Returns:
        The estimate, and whether the block is the identity (g_in equals g_out everywhere).

    Raises:
        UnsupportedError: the maps are not of one kind, or the resolutions are not an integer multiple of each other.
    """
    identity = _same(g_in, g_out)
    if identity is True:
        return LocalJacobian(None, identity)
    if g_in.ndim != g_out.ndim:
        raise UnsupportedError(
            f"trainability needs maps of one kind, "
            f"got {tuple(g_in.shape)} before and {tuple(g_out.shape)} after a block"
        )
    if g_in.ndim == 4:
        strides = [before // max(after, 1) for before, after in zip(g_in.shape[2:], g_out.shape[2:], strict=True)]
        if strides[0] != strides[1] or g_in.shape[2:] != tuple(strides[0] * size for size in g_out.shape[2:]):
            raise UnsupportedError(
                f"trainability needs maps whose resolutions are integer multiples, "
                f"got {tuple(g_in.shape[2:])} before and {tuple(g_out.shape[2:])} after a block"
            )
    return LocalJacobian(cross_moment(positions_of(g_in), positions_of(g_out)), identity)


def _same(g_in: Tensor, g_out: Tensor) -> Tensor | bool:  # [] bool
    """Compare two maps; on a GPU without waiting for the answer."""
    if g_in.shape != g_out.shape:
        return False
    if g_in.is_cuda:
        return (g_in == g_out).all()
    # Almost every block differs within the first sample; only candidates are compared whole.
    return torch.equal(g_in[:1], g_out[:1]) and torch.equal(g_in, g_out)


def pair_trainabilities(jacobians: Sequence[LocalJacobian]) -> list[float]:
    """How far each local Jacobian is from preserving gradients: 2 - s - 1/(s + 1e-6), at most 0 (AZ-NAS Eq. 9-10).

    s is the largest singular value.

    Returns:
        The scores of the pairs; -inf for the identity; NaN where a gradient is not finite.
    """
    estimates = [jacobian.estimate for jacobian in jacobians if jacobian.estimate is not None]
    sigmas = iter(_fetched(largest_singular_values(estimates)))
    scores = [-math.inf if jacobian.estimate is None else _pair_score(float(next(sigmas))) for jacobian in jacobians]
    asked = iter(_fetched([jacobian.identity for jacobian in jacobians if isinstance(jacobian.identity, Tensor)]))
    identities = (next(asked) if isinstance(jacobian.identity, Tensor) else jacobian.identity for jacobian in jacobians)
    return [-math.inf if identity else score for score, identity in zip(scores, identities, strict=True)]


def _fetched(tensors: Sequence[Tensor]) -> list[NDArray[Any]]:
    """Fetch tensors of one dtype, all of a device at once: it is waited for each time."""
    devices: dict[torch.device, list[int]] = {}
    for i, tensor in enumerate(tensors):
        devices.setdefault(tensor.device, []).append(i)
    found: dict[int, NDArray[Any]] = {}
    for members in devices.values():
        parts = [tensors[i].reshape(-1) for i in members]
        ends = np.cumsum([len(part) for part in parts])[:-1]
        found.update(zip(members, np.split(torch.cat(parts).cpu().numpy(), ends), strict=True))
    return [found[i].reshape(tensor.shape) for i, tensor in enumerate(tensors)]


def _pair_score(sigma: float) -> float:
    return -sigma - 1 / (sigma + _RECIPROCAL_EPSILON) + 2


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


ENTROPY = MapStatistic("expressivity", "nat", moments, spectral_entropies)
_PAIR = JacobianStatistic("trainability", "", local_jacobian, pair_trainabilities)

PROXIES = (
    Proxy(
        name="expressivity",
        direction="higher",
        scope="function",
        cost="cheap",
        recipe=RECIPE,
        statistics=(ENTROPY,),
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
        statistics=(ENTROPY,),
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

_NAMES = tuple(proxy.name for proxy in PROXIES)
GROUPS = {
    "aznas": _NAMES,
    "aznas_vit": tuple(name for name in _NAMES if name != "progressivity"),  # as published for transformers
}
