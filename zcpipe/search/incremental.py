"""An aggregate of ranks over a history that grows: the same bits as aggregating it anew, without doing so.

The aggregate of a few members needs but their ranks, which are searches in the sorted values of each proxy. The best
members can only come from few: a rank rises by at most one with each architecture that joins, so a member that would
not be among the best with all its ranks risen by all that are yet to join will not be until they have. Everything is
ranked anew only after the history has grown by a share of itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from zcpipe.errors import DataError, UsageError, unknown_name
from zcpipe.rank.aggregate import OF_RANKS, Ranks, add_terms
from zcpipe.rank.ranking import DIRECTIONS, Floats, ranks
from zcpipe.rank.selection import Positions, top

_SHARE = 1 / 64  # of its size by which a population grows before all of it is gone through again
_LEAST = 64  # members by which it grows at least before that
_SLACK = 1e-9  # relative: more than rounding can move a sum of terms


class History:
    """Scores of a growing population and the aggregate of their ranks.

    Members are numbered from 0 in the order in which they come. As everywhere in `zcpipe.rank`, infinities are data,
    equal values share the mean of their ranks, and a member with any NaN is outside the population.

    Args:
        directions: the proxies that are aggregated, and for each "higher" or "lower".
        method: "logrank" or "linear" (`zcpipe.rank.log_rank`, `zcpipe.rank.linear_rank`).

    Raises:
        UsageError: no proxy, a direction that is none, or another method.
    """

    def __init__(self, directions: Mapping[str, str], method: str = "logrank") -> None:
        if not directions:
            raise UsageError("nothing to aggregate; name at least one proxy")
        for name, direction in directions.items():
            if direction not in DIRECTIONS:
                raise UsageError(f"unknown direction {direction!r} of {name}; give one of {' and '.join(DIRECTIONS)}")
        if method not in OF_RANKS:
            raise unknown_name("aggregation method of a growing history", method, OF_RANKS)
        self.method = method
        self._signs = {name: 1.0 if direction == "higher" else -1.0 for name, direction in directions.items()}
        self._goodness = np.empty((len(directions), 0))  # [proxies, capacity], NaN for members outside
        self._len = 0
        self._population = 0
        # Of each proxy the values in order, in two parts of which few are in the second: sorting those again with each
        # batch is cheap, and the others are moved seldom.
        self._settled: list[Floats] = [np.empty(0)] * len(directions)
        self._recent: list[Floats] = [np.empty(0)] * len(directions)
        self._contenders: Positions = np.empty(0, np.int64)  # who may be among the best
        self._their_ranks = np.empty((len(directions), 0))  # when the history had ...
        self._seen = 0  # ... so many members
        self._best = -1  # of how many best that holds
        self._until = 0  # and up to which size of the population

    def __len__(self) -> int:
        return self._len

    @property
    def population(self) -> int:
        """How many members have all values: the m of their ranks."""
        return self._population

    def append(self, columns: Mapping[str, Floats]) -> None:
        """Add members.

        Args:
            columns: for each proxy their values, [n]; further columns are ignored.

        Raises:
            DataError: a proxy is missing, or columns are of different lengths.
        """
        if missing := [name for name in self._signs if name not in columns]:
            raise DataError(f"scores lack {', '.join(missing)}; the history aggregates {', '.join(self._signs)}")
        arrays = {name: np.asarray(columns[name], dtype=np.float64) for name in self._signs}
        lengths = {name: len(values) for name, values in arrays.items()}
        if len(set(lengths.values())) > 1:
            raise DataError(f"columns of one population must be equally long, not {lengths}")
        joined = np.stack([sign * arrays[name] for name, sign in self._signs.items()])  # [proxies, n]
        joined[:, np.isnan(joined).any(axis=0)] = np.nan
        self._reserve(self._len + joined.shape[1])
        self._goodness[:, self._len : self._len + joined.shape[1]] = joined
        self._len += joined.shape[1]
        inside = _inside(joined)
        self._population += inside.shape[1]
        self._recent = [np.sort(np.concatenate(pair)) for pair in zip(self._recent, inside, strict=True)]
        if len(self._recent[0]) > self._share():
            pairs = zip(self._settled, self._recent, strict=True)
            self._settled = [np.sort(np.concatenate(pair), kind="stable") for pair in pairs]  # two runs: one merge
            self._recent = [values[:0] for values in self._recent]

    def aggregate(self, members: Positions | None = None) -> Floats:
        """Return the aggregate over the whole history.

        Args:
            members: whose, [n], by default everybody's.

        Returns:
            [n], higher is better, to the bit what `zcpipe.rank.aggregate` gives; NaN for members outside.
        """
        values = self._goodness[:, : self._len]
        ranked = _rank_anew(values) if members is None else self._rank(values[:, members])
        return add_terms(self.method, ranked, self._population)

    def best(self, k: int) -> Positions:
        """Return the best k members, best first: what `zcpipe.rank.top` finds in the aggregate.

        Args:
            k: how many, all of the population if it has fewer.

        Returns:
            At most k members; of equal ones the one that came first.

        Raises:
            UsageError: k is negative.
        """
        if k < 0:
            raise UsageError(f"the {k} best were asked for; give 0 or more")
        if k > self._best or self._population > self._until:
            members = np.arange(self._len)
            ranked = _rank_anew(self._goodness[:, : self._len])
            self._best, self._until = max(k, self._best), self._population + self._share()
        else:
            new = self._goodness[:, self._seen : self._len]
            arrived = [np.sort(values) for values in _inside(new)]
            risen = self._their_ranks + _below(self._goodness[:, self._contenders], arrived)
            members = np.concatenate([self._contenders, np.arange(self._seen, self._len)])
            ranked = np.concatenate([risen, self._rank(new)], axis=1)
        values = add_terms(self.method, ranked, self._population)
        found = top(values, self._best)
        most = add_terms(self.method, ranked + (self._until - self._population), self._population)
        worst = values[found[-1]] if 0 < len(found) == self._best else -np.inf
        kept = most >= worst - _SLACK * max(1.0, abs(worst))
        self._contenders, self._their_ranks, self._seen = members[kept], ranked[:, kept], self._len
        return np.asarray(members[found[:k]], dtype=np.int64)

    def _rank(self, goodness: Ranks) -> Ranks:  # [proxies, n]
        """Rank values that are among the population's; NaN stays NaN."""
        ranked = 0.5 + _below(goodness, self._settled) + _below(goodness, self._recent)
        ranked[np.isnan(goodness)] = np.nan
        return ranked

    def _share(self) -> int:
        """Return by how many members the population may grow before it is gone through."""
        return max(_LEAST, int(self._population * _SHARE))

    def _reserve(self, capacity: int) -> None:
        if capacity > self._goodness.shape[1]:
            grown = np.empty((len(self._goodness), max(capacity, 2 * self._goodness.shape[1])))
            grown[:, : self._len] = self._goodness[:, : self._len]
            self._goodness = grown


def _inside(goodness: Ranks) -> Ranks:  # [proxies, population]
    return goodness[:, ~np.isnan(goodness[0])]


def _rank_anew(goodness: Ranks) -> Ranks:  # [proxies, n]
    return np.array([ranks(values) for values in goodness])


def _below(goodness: Ranks, parts: Sequence[Floats]) -> Ranks:  # [proxies, n]
    """Count for each value those of the sorted ones of its proxy that are less, and half of those that are equal."""
    counts = [
        ordered.searchsorted(values, "left") + ordered.searchsorted(values, "right")
        for values, ordered in zip(goodness, parts, strict=True)
    ]
    return 0.5 * np.array(counts)
