"""Ranks of a population, which every aggregate starts from."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from zcpipe.errors import DataError, UsageError

Floats = np.ndarray[tuple[int], np.dtype[np.float64]]

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


def ranked(
    columns: Mapping[str, Floats], directions: Mapping[str, str]
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Rank every column among the architectures that are valid in all of them.

    Args:
        columns: for each proxy its values over the population, [n].
        directions: for each proxy "higher" or "lower".

    Returns:
        [proxies, n], as `ranks`; NaN in all rows where any column is.

    Raises:
        UsageError: no column, or one without a direction.
        DataError: columns of different lengths.
    """
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
