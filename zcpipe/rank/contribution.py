"""What each proxy contributes to an aggregate."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from zcpipe.errors import UsageError
from zcpipe.rank.aggregate import Combine, log_rank
from zcpipe.rank.correlation import correlate
from zcpipe.rank.ranking import Floats


def leave_one_out(
    columns: Mapping[str, Floats],
    directions: Mapping[str, str],
    truth: Floats,  # [n], NaN where unknown
    combine: Combine = log_rank,
) -> dict[str, float]:
    """Measure by how much Kendall's tau of an aggregate falls when one of its proxies is left out.

    All aggregates are made over the architectures that have every proxy, so that only the proxy differs, not the
    population.

    Args:
        columns: for each proxy its values over the population, [n].
        directions: for each proxy "higher" or "lower".
        truth: trained accuracies.
        combine: how to aggregate.

    Returns:
        For each proxy tau of the whole aggregate less tau without the proxy: negative if it is better left out, NaN if
        what is left orders nothing.

    Raises:
        UsageError: fewer than two proxies, and as ``combine``.
        DataError: as ``combine`` and `correlate`.
    """
    if len(columns) < 2:
        raise UsageError(f"leaving one out of {len(columns)} proxies leaves nothing to compare; give two or more")
    whole = combine(columns, directions)
    known = np.where(np.isnan(whole), np.nan, truth)
    tau = correlate(whole, known).kendall
    inside = ~np.isnan(whole)
    shared = {name: np.where(inside, values, np.nan) for name, values in columns.items()}
    lost = {}
    for left_out in columns:
        others = {name: values for name, values in shared.items() if name != left_out}
        lost[left_out] = tau - correlate(combine(others, directions), known).kendall
    return lost
