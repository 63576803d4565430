"""How far a rank correlation could lie from what it came out as, had other architectures been trained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zcpipe.errors import UsageError
from zcpipe.rank.ranking import Floats

LEVEL = 0.95
_AT_ONCE = 2**24  # signs of pairs that are in memory together

Interval = tuple[float, float]


@dataclass(frozen=True)
class Intervals:
    """Intervals that hold 95 % of the bootstrap's correlations, a half of the rest on either side; NaN where none is.

    Attributes:
        kendall: of Kendall's tau-b.
        spearman: of Spearman's rho.
    """

    kendall: Interval
    spearman: Interval


def bootstrap(scores: Floats, truth: Floats, resamples: int, seed: int = 0) -> Intervals:
    """Correlate again and again over as many architectures, drawn with replacement (Efron's percentile bootstrap).

    An aggregate is a ranking of its whole population, which stays as it is: what varies is whom one asks about it.

    Args:
        scores: [n], NaN where scoring failed, which leaves the architecture out; infinities are data.
        truth: [n], NaN where the truth is unknown, which leaves it out as well.
        resamples: how often to draw.
        seed: of the draws.

    Returns:
        The intervals. Draws without two different scores and two different truths count for nothing.

    Raises:
        UsageError: fewer than 2 resamples.
    """
    if resamples < 2:
        raise UsageError(f"resamples: got {resamples}, expected 2 or more")
    known = ~(np.isnan(scores) | np.isnan(truth))
    n = int(known.sum())
    if n < 2:
        return Intervals((np.nan, np.nan), (np.nan, np.nan))
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float32)
    x, y = scores[known], truth[known]
    agreement, untied_x, untied_y, rank_x, rank_y = (np.zeros(resamples) for _ in range(5))
    product = np.zeros(resamples)
    for own, to_x, to_y in _signs(x, y):
        weights = counts[:, own].astype(np.float64)
        agreement += _sum(weights, counts @ (to_x * to_y).T)
        untied_x += _sum(weights, counts @ np.abs(to_x).T)
        untied_y += _sum(weights, counts @ np.abs(to_y).T)
        # Twice the mid-rank of an architecture, less a constant: how many lie below, less how many lie above.
        places_x, places_y = (counts @ to_x.T).astype(np.float64), (counts @ to_y.T).astype(np.float64)
        product += _sum(weights, places_x * places_y)
        rank_x += _sum(weights, places_x**2)
        rank_y += _sum(weights, places_y**2)
    return Intervals(_bounds(agreement, untied_x, untied_y), _bounds(product, rank_x, rank_y))


def _signs(x: Floats, y: Floats) -> Iterator[tuple[slice, NDArray[np.float32], NDArray[np.float32]]]:
    """Yield some architectures at a time, and whether each lies above (1), at (0) or below (-1) all others."""
    n = len(x)
    rows = max(1, _AT_ONCE // n)
    for start in range(0, n, rows):
        own = slice(start, start + rows)
        to_x, to_y = (
            (v[own, None] > v).astype(np.float32) - (v[own, None] < v).astype(np.float32)  # inf - inf is no number
            for v in (x, y)
        )
        yield own, to_x, to_y


def _sum(weights: Floats, values: NDArray[np.floating]) -> Floats:  # [resamples, architectures] -> [resamples]
    result: Floats = np.einsum("ij,ij->i", weights, values.astype(np.float64))
    return result


def _bounds(covariance: Floats, variance_x: Floats, variance_y: Floats) -> Interval:
    some = (variance_x > 0) & (variance_y > 0)
    if not some.any():
        return np.nan, np.nan
    found = covariance[some] / np.sqrt(variance_x[some]) / np.sqrt(variance_y[some])
    low, high = np.quantile(np.clip(found, -1, 1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
