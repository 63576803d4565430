"""Encodings: what becomes of raw values before a network sees them.

"minmax" is after ParZC's: each architecture's values of one statistic go to [0, 1] within the architecture
(`scale_within`). It differs from the published code in what is scaled, which is what the table holds:

- synflow, synflow_bn and dss are scaled as the natural logarithms that they are kept as, for those of deep networks fit
  no float; the published code scales synflow itself, where the largest layer may leave nothing of the others;
- a statistic of a layer is the sum over its weights, for a proxy is the sum of its statistics; the published code takes
  the mean of snip, synflow, plain, grasp and fisher, so that there large layers do not weigh more;
- aligned by slots, an empty or dead place counts as 0 in the smallest and largest value, for a list does not say
  which of its values are such, and among logarithms 0 may lie anywhere; published lists are filled up with zeros after
  the scaling. Packed, live nodes alone count, where published lists hold 0 for layers that no gradient reaches.

The others see a coordinate over the population, which they are fitted on once and frozen with: "zscore" standardises,
"log" standardises a signed logarithm (`Standard`), "rank" takes the normal score of the mid-rank (`Scores`), and
"live-rank" that among the values other than 0, which stays 0, and 1 where these are all equal (`LiveScores`). A proxy
is one value an architecture, so that "minmax" takes it to [0, 1] over the population (`Span`).

Infinities are data, the worst or best value there is, and have a finite place in each:

- minmax: that of the smallest or largest finite value, so 0 or 1;
- zscore, log: one standard deviation beyond the smallest or largest finite value of the population, where further
  values of other tables are clipped, too;
- rank, live-rank: they are values as others, tied among each other.

All encodings are weakly monotone in each coordinate, save minmax, which is so within an architecture, and live-rank,
which is so among values other than 0. What is fitted
works through a few columns at a time: besides its argument it needs some arrays of 32 MiB, or of one column in double
precision where that is more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from zcpipe.parzc.spec import Encoding

Floats = NDArray[np.float64]
Reals = NDArray[np.float32] | NDArray[np.float64]
Bools = NDArray[np.bool_]
Tensors = dict[str, NDArray[Any]]

GRID = 512  # the most points of a coordinate's ranking that are kept
_AT_ONCE = 1 << 22  # elements of a block in double precision
_FAINT = 0.1  # the share of a coordinate's magnitudes in which "log" is about linear


class Coding(Protocol):
    """An encoding with what it took from a population."""

    @classmethod
    def fit(cls, values: Reals, take_log: Bools) -> Self:
        """Take what the encoding needs from a population.

        Args:
            values: [n, k], not NaN, n at least 1.
            take_log: [k], whether a coordinate shall be seen as its logarithm.
        """
        ...

    def encode(
        self,
        values: Reals,  # [n, k], not NaN
        out: NDArray[np.float32],  # [n, k], may be ``values``
    ) -> None:
        """Encode rows, each by itself: the others have no influence."""
        ...

    def tensors(self) -> Tensors:
        """Return the arrays that it consists of: the arguments of its class."""
        ...


def fit_coding(encoding: Encoding, values: Reals, take_log: Bools) -> Coding:
    """Fit an encoding of single coordinates; see `Coding.fit`. ``take_log`` counts for "log" alone."""
    return _CODINGS[encoding].fit(values, take_log if encoding == "log" else np.zeros_like(take_log))


def of_proxies(encoding: Encoding) -> Encoding:
    """Return how proxies are encoded beside statistics: a proxy of 0 is a value as others, not an empty place."""
    return "rank" if encoding == "live-rank" else encoding


def arrays_of(encoding: Encoding) -> tuple[str, ...]:
    """Return the names of the arrays that an encoding of single coordinates consists of."""
    return tuple(field.name for field in fields(_CODINGS[encoding]))


def restore_coding(encoding: Encoding, tensors: Mapping[str, NDArray[Any]]) -> Coding:
    """Rebuild what `fit_coding` gave from its ``tensors()``, others beside them apart."""
    return _CODINGS[encoding](**{name: tensors[name] for name in arrays_of(encoding)})


def scale_within(
    values: NDArray[np.float32],  # [n, nodes], changed in place
    live: NDArray[np.int64] | None = None,  # [n]: how many of a row's values count, the first ones; None for all
) -> None:
    """Scale each row to [0, 1]; a row of equal values, and what does not count, becomes 0.

    An infinity counts as the smallest or largest finite value of its row.
    """
    n, width = values.shape
    step = max(_AT_ONCE // max(width, 1), 1)
    for start in range(0, n, step):
        rows = values[start : start + step].astype(np.float64)
        counts = np.ones(rows.shape, bool) if live is None else np.arange(width) < live[start : start + step, None]
        finite = counts & np.isfinite(rows)
        low = np.min(rows, axis=1, where=finite, initial=np.inf, keepdims=True)
        high = np.max(rows, axis=1, where=finite, initial=-np.inf, keepdims=True)
        # Without a finite value between them, -inf and +inf are 0 and 1, and equal ones among themselves 0.
        empty = ~finite.any(axis=1, keepdims=True)
        worst = (counts & np.isneginf(rows)).any(axis=1, keepdims=True)
        low, high = np.where(empty, np.where(worst, 0.0, 1.0), low), np.where(empty, 1.0, high)
        span = high - low
        scaled = (np.clip(rows, low, high) - low) / np.where(span > 0, span, 1.0)
        values[start : start + step] = np.where(counts, scaled, 0.0)


@dataclass(frozen=True)
class Span:
    """The smallest and largest finite value of each coordinate, which become 0 and 1; a constant one becomes 0."""

    low: Floats  # [k]
    high: Floats  # [k]

    @classmethod
    def fit(cls, values: Reals, take_log: Bools) -> Self:
        """See `Coding.fit`; of infinities alone the range is 0 to 1."""
        low, high = np.zeros(values.shape[1]), np.ones(values.shape[1])
        for k, column in _columns(values):
            finite = column[np.isfinite(column)]
            if finite.size:
                low[k], high[k] = finite.min(), finite.max()
        return cls(low, high)

    def encode(self, values: Reals, out: NDArray[np.float32]) -> None:
        """See `Coding.encode`."""
        for part in _blocks(values):
            low, high = self.low[part], self.high[part]
            span = high - low
            block = values[:, part].astype(np.float64)
            out[:, part] = (np.clip(block, low, high) - low) / np.where(span > 0, span, 1.0)

    def tensors(self) -> Tensors:
        """See `Coding.tensors`."""
        return asdict(self)


@dataclass(frozen=True)
class Standard:
    """Values, or their signed logarithms sign(v) log(1 + |v| / faint), by mean and standard deviation.

    ``faint`` is the magnitude below which a tenth of the population's finite magnitudes other than 0 lie, so that small
    values keep their sign without the logarithm tearing them apart. All is in units of the largest magnitude. Mean and
    deviation are over finite values; where these are all equal they become 0.
    """

    faint: Floats  # [k], 0 where no logarithm is taken
    unit: Floats  # [k]
    mean: Floats  # [k]
    deviation: Floats  # [k]
    low: Floats  # [k], bounds of what comes out
    high: Floats  # [k]

    @classmethod
    def fit(cls, values: Reals, take_log: Bools) -> Self:
        """See `Coding.fit`."""
        shape = values.shape[1]
        faint, mean, low, high = (np.zeros(shape) for _ in range(4))
        unit, deviation = np.ones(shape), np.ones(shape)
        for k, column in _columns(values):
            finite = column[np.isfinite(column)]
            if take_log[k]:
                magnitudes = np.abs(finite[finite != 0])
                faint[k] = np.quantile(magnitudes, _FAINT, method="lower") if magnitudes.size else 1.0
                finite = _signed_log(finite, faint[k])
            if not finite.size or not finite.any():
                continue
            unit[k] = np.abs(finite).max()
            finite /= unit[k]
            low[k], high[k], mean[k] = finite.min(), finite.max(), finite.mean()
            if low[k] < high[k]:
                deviation[k] = finite.std()
            else:
                mean[k] = low[k]
        return cls(faint, unit, mean, deviation, (low - mean) / deviation - 1, (high - mean) / deviation + 1)

    def encode(self, values: Reals, out: NDArray[np.float32]) -> None:
        """See `Coding.encode`."""
        for part in _blocks(values):
            block = values[:, part].astype(np.float64)
            logged = np.flatnonzero(self.faint[part])
            block[:, logged] = _signed_log(block[:, logged], self.faint[part][logged])
            with np.errstate(over="ignore"):  # what overflows is clipped
                block = (block / self.unit[part] - self.mean[part]) / self.deviation[part]
            out[:, part] = np.clip(block, self.low[part], self.high[part])

    def tensors(self) -> Tensors:
        """See `Coding.tensors`."""
        return asdict(self)


@dataclass(frozen=True)
class Scores:
    """The normal score of a value's mid-rank in the population, read off a grid of `GRID` points by interpolation.

    The r-th of n values has the score norm.ppf((r - 1/2) / n), equal values that of the mean of their ranks. Up to
    `GRID` distinct finite values of a coordinate are all kept; of more there are kept the smallest, the largest and
    values whose scores are about evenly spaced, and those between are off by no more than two neighbours are apart.
    """

    LIVE: ClassVar[bool] = False  # whether values of 0 stay apart

    values: Floats  # the points of all coordinates, ascending within each
    scores: NDArray[np.float32]  # theirs
    offsets: NDArray[np.int64]  # [k + 1]: where each coordinate's points begin
    low: NDArray[np.float32]  # [k]: the score of -inf
    high: NDArray[np.float32]  # [k]: the score of +inf

    @classmethod
    def fit(cls, values: Reals, take_log: Bools) -> Self:
        """See `Coding.fit`."""
        width = values.shape[1]
        low, high = np.zeros(width, np.float32), np.zeros(width, np.float32)
        kept: list[tuple[Floats, NDArray[np.float32]]] = []
        for k, column in _columns(values):
            column = column[column != 0] if cls.LIVE else column
            if not column.size:
                kept.append((np.zeros(1), np.zeros(1, np.float32)))
                continue
            n = len(column)
            column.sort()
            starts = np.flatnonzero(np.r_[True, column[1:] != column[:-1]])
            counts = np.diff(starts, append=n)
            points, scores = column[starts], ndtri((starts + counts / 2) / n)
            if cls.LIVE and len(points) == 1:
                scores = np.ones(1)  # their middle is that of what is dead, which they must differ from
            # The first and last rank that there could be, where the population holds no infinity.
            low[k] = scores[0] if np.isneginf(points[0]) else ndtri(0.5 / n)
            high[k] = scores[-1] if np.isposinf(points[-1]) else max(ndtri(1 - 0.5 / n), scores[-1])
            finite = np.isfinite(points)
            if not finite.any():  # any number is above -inf and below +inf
                points, scores, finite = np.zeros(1), np.array([(low[k] + high[k]) / 2]), np.ones(1, bool)
            chosen = _spaced(scores[finite])
            kept.append((points[finite][chosen], scores[finite][chosen].astype(np.float32)))
        offsets = np.cumsum([0, *(len(points) for points, _ in kept)], dtype=np.int64)
        points = np.concatenate([np.zeros(0), *(points for points, _ in kept)])
        return cls(points, np.concatenate([np.zeros(0, np.float32), *(s for _, s in kept)]), offsets, low, high)

    def encode(self, values: Reals, out: NDArray[np.float32]) -> None:
        """See `Coding.encode`."""
        for k, column in _columns(values):
            grid = slice(self.offsets[k], self.offsets[k + 1])
            points, scores = self.values[grid], self.scores[grid].astype(np.float64)
            clipped = np.clip(column, points[0], points[-1])
            left = np.maximum(np.searchsorted(points, clipped, side="right") - 1, 0)
            right = np.minimum(left + 1, len(points) - 1)
            gap = points[right] - points[left]
            share = (clipped - points[left]) / np.where(gap > 0, gap, 1.0)
            # Rounding must not lift a value above the next point.
            found = np.minimum(scores[left] + share * (scores[right] - scores[left]), scores[right])
            found[np.isneginf(column)] = self.low[k]
            found[np.isposinf(column)] = self.high[k]
            if self.LIVE:
                found[column == 0] = 0.0
            out[:, k] = found

    def tensors(self) -> Tensors:
        """See `Coding.tensors`."""
        return asdict(self)


class LiveScores(Scores):
    """Normal scores as `Scores` gives them, among the values that are not 0, while 0 becomes 0, the middle of them.

    A slot that nothing fills then says nothing, and does not press the others together at one end. Where the values
    that are not 0 are all equal, as numbers of layers may be, they become 1: that the slot is filled is all there is.
    """

    LIVE: ClassVar[bool] = True


_CODINGS: Mapping[str, type[Span] | type[Standard] | type[Scores]] = {
    "minmax": Span,
    "log": Standard,
    "zscore": Standard,
    "rank": Scores,
    "live-rank": LiveScores,
}


def _signed_log(values: Floats, faint: Floats | float) -> Floats:
    with np.errstate(divide="ignore"):  # the logarithm of 0 is -inf, and 0 becomes 0
        result: Floats = np.sign(values) * np.logaddexp(0.0, np.log(np.abs(values)) - np.log(faint))
    return result


def _spaced(scores: Floats) -> NDArray[np.int64]:
    """Choose at most `GRID` of ascending scores, the ends among them, about evenly spaced."""
    if len(scores) <= GRID:
        return np.arange(len(scores))
    found = np.searchsorted(scores, np.linspace(scores[0], scores[-1], GRID))
    return np.unique(np.minimum(found, len(scores) - 1))


def _blocks(values: Reals) -> Iterator[slice]:
    """Yield ranges of columns that are small enough to work with in double precision."""
    n, width = values.shape
    step = max(_AT_ONCE // max(n, 1), 1)
    return (slice(start, start + step) for start in range(0, width, step))


def _columns(values: Reals) -> Iterator[tuple[int, Floats]]:
    """Yield each column with its number, copied to double precision in one piece."""
    for part in _blocks(values):
        yield from enumerate(values[:, part].T.astype(np.float64, order="C"), start=part.start)
