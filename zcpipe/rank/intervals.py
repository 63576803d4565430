"""How far a rank correlation could lie from what it came out as, had other architectures been trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zcpipe.errors import UsageError
from zcpipe.rank.ranking import Floats

LEVEL = 0.95
MOST = 1_000_000  # resamples
_AT_ONCE = 2**19  # numbers of a kind that are worked on together: larger arrays leave the cache

Interval = tuple[float, float]
Places = NDArray[np.int64]
Draws = NDArray[np.float64]  # [n, draws], how often each architecture is in each draw


@dataclass(frozen=True)
class Intervals:
    """Intervals that hold 95 % of the bootstrap's correlations, a half of the rest on either side; NaN where none is.

    Attributes:
        kendall: of Kendall's tau-b.
        spearman: of Spearman's rho.
    """

    kendall: Interval
    spearman: Interval


def bootstrap(
    scores: Floats,
    truth: Floats,
    resamples: int,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Intervals:
    """Correlate again and again over as many architectures, drawn with replacement (Efron's percentile bootstrap).

    An aggregate is a ranking of its whole population, which stays as it is: what varies is whom one asks about it.

    Args:
        scores: [n], NaN where scoring failed, which leaves the architecture out; infinities are data.
        truth: [n], NaN where the truth is unknown, which leaves it out as well.
        resamples: how often to draw; each draw takes n log n steps.
        seed: of the draws.
        progress: told how many are done, of how many.

    Returns:
        The intervals. Draws without two different scores and two different truths count for nothing.

    Raises:
        UsageError: fewer than 2 resamples, or more than a million.
    """
    if not 2 <= resamples <= MOST:
        raise UsageError(f"resamples: got {resamples}, expected 2 or more, and {MOST} at most")
    known = ~(np.isnan(scores) | np.isnan(truth))
    n = int(known.sum())
    if n < 2:
        return Intervals((np.nan, np.nan), (np.nan, np.nan))
    sums = _Sums(*(np.unique(values[known], return_inverse=True)[1] for values in (scores, truth)))
    generator, likely = np.random.default_rng(seed), np.full(n, 1 / n)
    found = []
    for start in range(0, resamples, step := max(1, _AT_ONCE // n)):
        progress(start, resamples)
        drawn = generator.multinomial(n, likely, size=min(step, resamples - start))
        found.append(sums.of(np.ascontiguousarray(drawn.T, np.float64)))
    progress(resamples, resamples)
    kendall, spearman = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
    return Intervals(_bounds(*kendall), _bounds(*spearman))


class _Sums:
    """The sums over pairs of architectures that correlations are made of, for any weights of the architectures.

    Knight's algorithm (1966): in order of score, what lies left and right of the middle of ever smaller blocks is
    compared. Which lies where is the same for all weights and found once.

    Args:
        x: numbers of the scores in their order, [n].
        y: numbers of the truths.
    """

    def __init__(self, x: Places, y: Places) -> None:
        self._order = np.lexsort((y, x))
        x, y = x[self._order], y[self._order]
        self._x, self._y = _Runs(x), _Runs(y)
        self._both = _Runs(x * (int(y.max()) + 1) + y)
        widths = [1 << level for level in range((len(x) - 1).bit_length())]
        self._levels = [_Level(y, width) for width in widths]

    def of(self, draws: Draws) -> tuple[NDArray[np.float64], NDArray[np.float64]]:  # [3, draws] each
        """Return covariance and variances: of the signs of pairs (Kendall), of mid-ranks times two (Spearman).

        Kendall's are whole numbers below 2**53, and exact; Spearman's are beyond some 10**5 architectures.
        """
        draws = draws[self._order]
        total = draws.sum(0) ** 2
        tied_x, tied_y, tied_both = (runs.squares(draws) for runs in (self._x, self._y, self._both))
        # Of two of equal scores the one of better truth lies right: as if they agreed, which is taken off again.
        agreement = 2 * sum(level.agreement(draws) for level in self._levels) - (tied_x - tied_both)
        places_x, places_y = self._x.places(draws), self._y.places(draws)
        signs = np.array([agreement, total - tied_x, total - tied_y])
        return signs, np.array([_sum(draws, a * b) for a, b in _pairs(places_x, places_y)])


class _Runs:
    """Equal numbers among n."""

    def __init__(self, numbers: Places) -> None:
        self._sorted = np.argsort(numbers, kind="stable")
        self._own, self._starts, self._stops = _runs(numbers[self._sorted])

    def squares(self, draws: Draws) -> Floats:  # [draws]
        """Return the pairs, in both orders and each with itself, that have equal numbers."""
        sums = np.diff(_summed(draws[self._sorted])[np.append(self._starts, len(draws))], axis=0)
        return np.asarray(np.square(sums).sum(0))

    def places(self, draws: Draws) -> Draws:
        """Return of each how many lie below it, less how many lie above it."""
        below = _summed(draws[self._sorted])
        found = np.empty_like(draws)
        found[self._sorted] = (below[self._starts] + below[self._stops] - below[-1])[self._own]
        return found


class _Level:
    """Blocks of twice a width, and in each what is right of its middle beside what is left of it."""

    def __init__(self, y: Places, width: int) -> None:
        at = np.arange(len(y))
        block = at // (2 * width)
        self._sorted = np.lexsort((y, block))
        is_left = at // width % 2 == 0
        self._left = is_left[self._sorted, None]
        right = np.flatnonzero(~self._left[:, 0])
        own, starts, stops = _runs((block * (int(y.max()) + 1) + y)[self._sorted])
        self._right = self._sorted[right]
        self._starts, self._stops = starts[own[right]], stops[own[right]]
        # The left half of a block lies before its right half in the order of all.
        self._begin = block[self._right] * 2 * width
        self._end = np.minimum(self._begin + 2 * width, len(y))

    def agreement(self, draws: Draws) -> Floats:  # [draws]
        """Return the pairs of a left and a right one of which the right one is the greater, less those it is not."""
        below = _summed(draws[self._sorted] * self._left)
        greater = below[self._starts] + below[self._stops] - below[self._begin] - below[self._end]
        return _sum(draws[self._right], greater)


def _runs(values: Places) -> tuple[Places, Places, Places]:
    """Return of sorted values which run of equal ones each is in, and where runs start and stop."""
    starts = np.flatnonzero(np.diff(values, prepend=values[:1] - 1))
    own = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(values)))
    return own, starts, np.append(starts[1:], len(values))


def _summed(draws: Draws) -> Draws:  # [n, draws] -> [n + 1, draws]
    """Return the sums of what comes before each, and of all."""
    sums = np.zeros((len(draws) + 1, draws.shape[1]))
    np.cumsum(draws, axis=0, out=sums[1:])
    return sums


def _pairs(x: Draws, y: Draws) -> list[tuple[Draws, Draws]]:
    return [(x, y), (x, x), (y, y)]


def _sum(weights: Draws, values: Draws) -> Floats:  # [n, draws] -> [draws]
    result: Floats = np.einsum("ij,ij->j", weights, values)
    return result


def _bounds(covariance: Floats, variance_x: Floats, variance_y: Floats) -> Interval:
    some = (variance_x > 0) & (variance_y > 0)
    if not some.any():
        return np.nan, np.nan
    found = covariance[some] / np.sqrt(variance_x[some]) / np.sqrt(variance_y[some])
    low, high = np.quantile(np.clip(found, -1, 1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
