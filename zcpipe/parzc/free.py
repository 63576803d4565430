"""ParZC without training: the sum of a statistic over the nodes, each weighted by its position alone.

Positions are those of the live nodes, i from 0 to l - 1, as in the network without the layers that it does not have.
The published code weighs the i-th of l layers in one of two ways:

- "sinusoidal": (sin(0.1 i) + 1) / 2, a revision that the paper describes;
- "decaying": ((l - i) / l)^2, its last revision.

It sums the statistics as they are ("none"). "minmax" scales them to [0, 1] within the architecture first, as the
predictor's features are. A statistic that a table keeps as its logarithm is summed as itself, and the result is a
logarithm again, which has the same order; with "minmax" the scaled values are those of the statistic itself, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from zcpipe.errors import unknown_name
from zcpipe.parzc.encodings import scale_within
from zcpipe.parzc.places import ranges
from zcpipe.parzc.rows import Rows, count_live, is_layers
from zcpipe.parzc.spec import FeatureSpec
from zcpipe.rank import aggregate
from zcpipe.table import Table

Floats = NDArray[np.float64]
Scaling = Literal["none", "minmax"]


def _sinusoidal(position: Floats, length: Floats) -> Floats:
    return (np.sin(0.1 * position) + 1) / 2


def _decaying(position: Floats, length: Floats) -> Floats:
    return ((length - position) / length) ** 2


WEIGHTS = {"sinusoidal": _sinusoidal, "decaying": _decaying}
SCALINGS: tuple[Scaling, ...] = ("none", "minmax")


def node_sum(table: Table, statistic: str, weights: str = "sinusoidal", scaling: Scaling = "none") -> Floats:
    """Compute training-free ParZC of one statistic.

    Args:
        table: the architectures.
        statistic: a list column, such as ``snip@layer``.
        weights: a name of `WEIGHTS`.
        scaling: "none" or "minmax".

    Returns:
        [n] in order of index, higher is better, for a statistic whose sum is; NaN where the statistic is missing. An
        architecture without live nodes has the sum 0, of logarithms -inf.

    Raises:
        UsageError: the table has no such statistic, or there are no such weights.
    """
    if weights not in WEIGHTS:
        raise unknown_name("weighting", weights, WEIGHTS)
    rows = Rows.of(table, FeatureSpec(statistics=(statistic,), alignment="packed"))
    result = np.full(len(table), np.nan)
    if not rows.usable.any():
        return result
    lists = rows.lists(statistic)
    live = rows.live_layers if is_layers(statistic) else None
    counts = count_live(lists, live)
    values = (lists.values if live is None else lists.values[live]).astype(np.float64)
    owner = np.repeat(np.arange(len(counts)), counts)
    position = ranges(np.zeros(len(counts), np.int64), counts).astype(np.float64)
    weight = WEIGHTS[weights](position, counts[owner].astype(np.float64))
    sums = np.zeros(len(counts))
    if rows.columns[statistic].unit == "ln":
        top = np.full(len(counts), -np.inf)
        np.maximum.at(top, owner, values)
        top[~np.isfinite(top)] = 0.0  # of none, or of statistics that are all 0
        values = np.exp(values - top[owner])
    if scaling == "minmax":
        padded = np.zeros((len(counts), max(int(counts.max(initial=0)), 1)), np.float32)
        padded[owner, position.astype(np.int64)] = values
        scale_within(padded, counts)
        values = padded[owner, position.astype(np.int64)].astype(np.float64)
    np.add.at(sums, owner, weight * values)
    if rows.columns[statistic].unit == "ln" and scaling == "none":
        with np.errstate(divide="ignore"):
            sums = np.log(sums) + top
    result[rows.usable] = sums
    return result


def free_scores(table: Table, statistics: Sequence[str]) -> dict[str, Floats]:
    """Compute all variants of training-free ParZC of some statistics.

    Returns:
        Name, such as ``parzc-sinusoidal:snip@layer`` or ``parzc-decaying-minmax:snip@layer``, to scores as `node_sum`.
    """
    return {
        f"parzc-{weights}{'' if scaling == 'none' else '-minmax'}:{statistic}": node_sum(
            table, statistic, weights, scaling
        )
        for statistic in statistics
        for weights in WEIGHTS
        for scaling in SCALINGS
    }


def free_aggregate(
    table: Table,
    statistics: Sequence[str],
    weights: str = "sinusoidal",
    scaling: Scaling = "none",
    method: str = "logrank",
) -> Floats:
    """Aggregate training-free ParZC of several statistics by one of `zcpipe.rank.METHODS`: [n], higher is better.

    Raises:
        UsageError: as `node_sum` and `zcpipe.rank.aggregate`.
    """
    columns: Mapping[str, Floats] = {name: node_sum(table, name, weights, scaling) for name in statistics}
    return aggregate(method, columns, dict.fromkeys(columns, "higher"))
