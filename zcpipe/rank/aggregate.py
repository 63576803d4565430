"""Rankings made from several proxies.

An aggregate belongs to the population it was made over: another set of architectures gives other ranks, so aggregates
are made on reading and never stored as scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce

import numpy as np

from zcpipe.errors import DataError, UsageError, unknown_name
from zcpipe.rank.majority import vote
from zcpipe.rank.ranking import Floats, ranked

_SIZE = "params"

Combine = Callable[[Mapping[str, Floats], Mapping[str, str]], Floats]
Ranks = np.ndarray[tuple[int, int], np.dtype[np.float64]]  # [proxies, architectures]


def _log_of(ranks: Ranks, m: int) -> Ranks:
    return np.asarray(np.log(ranks / max(m, 1)), dtype=np.float64)


def _linear_of(ranks: Ranks, m: int) -> Ranks:
    return ranks


OF_RANKS: Mapping[str, Callable[[Ranks, int], Ranks]] = {"logrank": _log_of, "linear": _linear_of}
"""The methods that add a term for each proxy, which rises with the rank: of ranks among m, the terms."""


def add_terms(method: str, ranks: Ranks, m: int) -> Floats:  # [proxies, n] -> [n]
    """Aggregate ranks by a method of `OF_RANKS`: the same bits for an architecture, whichever others are beside it.

    Args:
        method: its name.
        ranks: among m architectures, from 1; NaN for those outside the population.
        m: how many architectures the population has.
    """
    # Sorted before adding: architectures with the same ranks in another order must tie exactly, not up to rounding.
    # Added row by row: how numpy groups a sum depends on the shape of the array.
    terms = np.sort(OF_RANKS[method](ranks, m), axis=0)
    return np.asarray(reduce(np.add, terms), dtype=np.float64)


def _of_columns(method: str, columns: Mapping[str, Floats], directions: Mapping[str, str]) -> Floats:
    stacked = ranked(columns, directions)
    return add_terms(method, stacked, int(np.count_nonzero(~np.isnan(stacked[0]))))


def log_rank(columns: Mapping[str, Floats], directions: Mapping[str, str]) -> Floats:
    """AZ-NAS's non-linear aggregation: the sum over the proxies of ln(rank / m).

    Args:
        columns: for each proxy its values over the population, [n].
        directions: for each proxy "higher" or "lower".

    Returns:
        [n], higher is better, 0 for an architecture that is best in everything; NaN where any proxy is NaN, and the
        ranks are among the other m alone.

    Raises:
        UsageError: no column, or one without a direction.
        DataError: columns of different lengths.
    """
    return _of_columns("logrank", columns, directions)


def linear_rank(columns: Mapping[str, Floats], directions: Mapping[str, str]) -> Floats:
    """The linear alternative AZ-NAS compares with: the plain sum of the ranks 1..m.

    Args and errors are those of `log_rank`.

    Returns:
        [n], higher is better; NaN where any proxy is NaN.
    """
    return _of_columns("linear", columns, directions)


def size_regularised(columns: Mapping[str, Floats], directions: Mapping[str, str]) -> Floats:
    """SWAP's control of size: a proxy times exp(-(P - mu)^2 / sigma), P being the number of parameters.

    The published code takes mu and sigma as arguments, to be chosen by the sizes of a space. Here mu is the largest
    size of the population and sigma its square: nothing is punished for being large, the factor lies between 1/e and 1
    whatever the unit of size, and the proxy keeps its say.

    Args:
        columns: the proxy and ``params``, over the population, [n] each.
        directions: for each "higher": a product says nothing of others.

    Returns:
        [n], higher is better; NaN where either is NaN, and the largest size is that of the others.

    Raises:
        UsageError: other columns than those two, one that is not the better the higher, or one with negative scores,
            which a factor below 1 would raise.
        DataError: columns of different lengths, or no architecture has parameters.
    """
    names = [name for name in columns if name != _SIZE]
    if len(columns) != 2 or len(names) != 1:
        raise UsageError(f"size_regularised takes {_SIZE} and one proxy, not {', '.join(columns) or 'nothing'}")
    outside = np.isnan(ranked(columns, directions)[0])
    lower = [name for name in columns if directions[name] != "higher"]
    if lower:
        raise UsageError(f"size_regularised takes proxies that are the better the higher, which {lower[0]} is not")
    scores, sizes = (np.array(columns[name], dtype=np.float64) for name in (*names, _SIZE))
    scores[outside] = sizes[outside] = np.nan
    if np.any(np.isfinite(scores) & (scores < 0)):
        raise UsageError(f"size_regularised takes proxies that are never negative, but {names[0]} has negative scores")
    if outside.all():
        return scores
    largest = np.nanmax(sizes)
    if largest <= 0:
        raise DataError(f"no architecture has any parameters: {_SIZE} is at most {largest:g}")
    return np.asarray(scores * np.exp(-np.square(sizes / largest - 1)), dtype=np.float64)


METHODS: Mapping[str, Combine] = {
    "logrank": log_rank,
    "linear": linear_rank,
    "vote": vote,
    "size_regularised": size_regularised,
}


def aggregate(method: str, columns: Mapping[str, Floats], directions: Mapping[str, str]) -> Floats:
    """Aggregate by the name of a method.

    Raises:
        UsageError: no such method (the message names near ones), and as `log_rank`.
        DataError: as `log_rank`.
    """
    if method not in METHODS:
        raise unknown_name("aggregation method", method, METHODS)
    return METHODS[method](columns, directions)
