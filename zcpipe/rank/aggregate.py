"""Rankings made from several proxies.

An aggregate belongs to the population it was made over: another set of architectures gives other ranks, so aggregates
are made on reading and never stored as scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from zcpipe.errors import DataError, UsageError, unknown_name

Floats = np.ndarray[tuple[int], np.dtype[np.float64]]
Combine = Callable[[Mapping[str, Floats], Mapping[str, str]], Floats]

DIRECTIONS = ("higher", "lower")


def ranks(values: Floats, direction: str = "higher") -> Floats:
    """Rank values by goodness, from 1 for the worst to m for the best, ties averaged.

    Args:
        values: [n], NaN where there is none; infinities are data.
        direction: "higher" if large values are good, "lower" if small ones are.

    Returns:
        [n], NaN where the value is; m is the number of the others.

    Raises:
        UsageError: another direction.
    """
    if direction not in DIRECTIONS:
        raise UsageError(f"unknown direction {direction!r}; give one of {' and '.join(DIRECTIONS)}")
    from scipy import stats  # here, because importing it takes a second that every worker would pay

    numbers = np.asarray(values, dtype=np.float64)
    goodness = numbers if direction == "higher" else -numbers
    result = np.full(len(numbers), np.nan)
    valid = ~np.isnan(numbers)
    result[valid] = stats.rankdata(goodness[valid], method="average")
    return result


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
    stacked = _ranked(columns, directions)
    m = int(np.count_nonzero(~np.isnan(stacked[0])))
    # Sorted before adding: architectures with the same ranks in another order must tie exactly, not up to rounding.
    terms = np.sort(np.log(stacked / max(m, 1)), axis=0)
    return np.asarray(terms.sum(axis=0), dtype=np.float64)


def linear_rank(columns: Mapping[str, Floats], directions: Mapping[str, str]) -> Floats:
    """The linear alternative AZ-NAS compares with: the plain sum of the ranks 1..m.

    Args and errors are those of `log_rank`.

    Returns:
        [n], higher is better; NaN where any proxy is NaN.
    """
    return np.asarray(_ranked(columns, directions).sum(axis=0), dtype=np.float64)


METHODS: Mapping[str, Combine] = {"logrank": log_rank, "linear": linear_rank}


def aggregate(method: str, columns: Mapping[str, Floats], directions: Mapping[str, str]) -> Floats:
    """Aggregate by the name of a method.

    Raises:
        UsageError: no such method (the message names near ones), and as `log_rank`.
        DataError: as `log_rank`.
    """
    if method not in METHODS:
        raise unknown_name("aggregation method", method, METHODS)
    return METHODS[method](columns, directions)


def _ranked(
    columns: Mapping[str, Floats], directions: Mapping[str, str]
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Rank every column among the architectures that are valid in all of them: [proxies, n]."""
    if not columns:
        raise UsageError("nothing to aggregate; name at least one proxy")
    missing = [name for name in columns if name not in directions]
    if missing:
        raise UsageError(f"no direction is known for {', '.join(missing)}; an aggregate needs one for each proxy")
    arrays = {name: np.array(values, dtype=np.float64) for name, values in columns.items()}
    lengths = {name: len(values) for name, values in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"columns of one population must be equally long, not {lengths}")
    outside = np.any([np.isnan(values) for values in arrays.values()], axis=0)
    for values in arrays.values():
        values[outside] = np.nan
    return np.array([ranks(values, directions[name]) for name, values in arrays.items()])
