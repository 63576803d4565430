"""What no other is better than in everything: the Pareto front of several objectives."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from zcpipe.errors import DataError, UsageError
from zcpipe.rank.ranking import DIRECTIONS, Floats
from zcpipe.rank.selection import Positions

Goodness = NDArray[np.float64]  # [n, objectives], higher is better


def front(objectives: Mapping[str, Floats], directions: Mapping[str, str]) -> Positions:
    """Find those that no other dominates: none is at least as good in every objective and better in one.

    Args:
        objectives: the values of each, [n]; infinities are data, one with any NaN is left out.
        directions: for each objective "higher" or "lower", whichever is better.

    Returns:
        Positions in the order of the first objective, best first, then of the others. Of members that are equal in
        everything none dominates another: all are there, by position.

    Raises:
        UsageError: no objective, or one without a direction.
        DataError: objectives of different lengths.
    """
    if not objectives:
        raise UsageError("a front needs at least one objective")
    for name in objectives:
        if directions.get(name) not in DIRECTIONS:
            raise UsageError(f"no direction is known for {name}; a front needs one for each objective")
    lengths = {name: len(values) for name, values in objectives.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"objectives of one population must be equally long, not {lengths}")
    signs = [1.0 if directions[name] == "higher" else -1.0 for name in objectives]
    columns = [np.asarray(values, np.float64) for values in objectives.values()]
    goodness = np.stack([sign * values for sign, values in zip(signs, columns, strict=True)], axis=1)
    inside = np.flatnonzero(~np.isnan(goodness).any(axis=1))
    order = inside[np.lexsort(-goodness[inside].T[::-1])]  # stable: the first objective decides first, position last
    ordered = goodness[order]
    first_of_equal = np.ones(len(order), dtype=bool)
    first_of_equal[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    distinct = ordered[first_of_equal]
    kept = _sweep(distinct) if distinct.shape[1] <= 2 else _sieve(distinct)
    return np.asarray(order[kept[np.cumsum(first_of_equal) - 1]], dtype=np.int64)


def _sweep(goodness: Goodness) -> NDArray[np.bool_]:
    """Say who is on the front of one or two objectives, of distinct members in descending order."""
    last = goodness[:, -1]
    before = np.concatenate([[-np.inf], np.maximum.accumulate(last)[:-1]]) if len(last) else last
    kept: NDArray[np.bool_] = last > before
    kept[:1] = True  # also where it is -inf
    return kept


def _sieve(goodness: Goodness) -> NDArray[np.bool_]:
    """Say the same of any number of objectives: the next that is left is on the front, and rules others out."""
    kept = np.zeros(len(goodness), dtype=bool)
    left = np.arange(len(goodness))
    while len(left):
        kept[left[0]] = True
        better = (goodness[left] > goodness[left[0]]).any(axis=1)
        left = left[better]
    return kept
