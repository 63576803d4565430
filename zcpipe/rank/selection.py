"""Picking architectures out of a ranking."""

from __future__ import annotations

import numpy as np

from zcpipe.errors import UsageError
from zcpipe.rank.ranking import DIRECTIONS, Floats

Positions = np.ndarray[tuple[int], np.dtype[np.int64]]


def top(values: Floats, k: int, direction: str = "higher") -> Positions:
    """Give the positions of the k best values, best first.

    Args:
        values: [n]; NaN is never picked, infinities are data.
        k: how many, all that there are if fewer.
        direction: "higher" if large values are good, "lower" if small ones are.

    Returns:
        At most k positions; of equal values the one that comes first in the array.

    Raises:
        UsageError: k is negative, or another direction.
    """
    if k < 0:
        raise UsageError(f"the {k} best were asked for; give 0 or more")
    if direction not in DIRECTIONS:
        raise UsageError(f"unknown direction {direction!r}; give one of {' and '.join(DIRECTIONS)}")
    numbers = np.asarray(values, dtype=np.float64)
    order = np.argsort(-numbers if direction == "higher" else numbers, kind="stable")  # NaN sorts last either way
    valid = int(np.count_nonzero(~np.isnan(numbers)))
    return np.asarray(order[: min(k, valid)], dtype=np.int64)
