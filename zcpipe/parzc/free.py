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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from zcpipe.errors import DataError, UsageError, unknown_name
from zcpipe.parzc.encodings import scale_within
from zcpipe.parzc.places import ranges
from zcpipe.parzc.rows import Rows, count_live, is_layers
from zcpipe.parzc.spec import FeatureSpec
from zcpipe.rank import aggregate, top
from zcpipe.rank.population import Ranked
from zcpipe.table import Table

Floats = NDArray[np.float64]
Scaling = Literal["none", "minmax"]


def _sinusoidal(position: Floats, length: Floats) -> Floats:
    return (np.sin(0.1 * position) + 1) / 2


def _decaying(position: Floats, length: Floats) -> Floats:
    return ((length - position) / length) ** 2


WEIGHTS = {"sinusoidal": _sinusoidal, "decaying": _decaying}
PUBLISHED = ("grad_norm@layer", "snip@layer", "synflow@layer")
"""What ParZC learns from on NAS-Bench-101 and 201."""
SCALINGS: tuple[Scaling, ...] = ("none", "minmax")


@dataclass(frozen=True)
class Nodes:
    """The live nodes of a table's architectures, one after the other, with one statistic of them.

    Attributes:
        values: of the statistic.
        owner: of each node which of the usable rows it belongs to.
        position: of each node within its row.
        counts: of each usable row how many nodes it has.
        usable: [n], whether a row of the table has the statistic.
        logarithms: whether values are logarithms of the statistic.
    """

    values: Floats
    owner: NDArray[np.int64]
    position: NDArray[np.int64]
    counts: NDArray[np.int64]
    usable: NDArray[np.bool_]
    logarithms: bool

    @classmethod
    def of(cls, table: Table, statistic: str) -> Self:
        """Read a statistic.

        Raises:
            UsageError: the table has no such statistic.
        """
        rows = Rows.of(table, FeatureSpec(statistics=(statistic,), alignment="packed"))
        lists = rows.lists(statistic)
        live = rows.live_layers if is_layers(statistic) else None
        counts = count_live(lists, live)
        values = (lists.values if live is None else lists.values[live]).astype(np.float64)
        owner = np.repeat(np.arange(len(counts)), counts)
        position = ranges(np.zeros(len(counts), np.int64), counts)
        return cls(values, owner, position, counts, rows.usable, rows.columns[statistic].unit == "ln")

    def total(self, weights: str = "sinusoidal", scaling: Scaling = "none") -> Floats:
        """Sum over each architecture's nodes.

        Args:
            weights: a name of `WEIGHTS`.
            scaling: "none" or "minmax".

        Returns:
            [n] in order of index, higher is better, for a statistic whose sum is; NaN where the statistic is missing.
            An architecture without live nodes has the sum 0, of logarithms -inf.

        Raises:
            UsageError: there are no such weights.
        """
        if weights not in WEIGHTS:
            raise unknown_name("weighting", weights, WEIGHTS)
        weight = WEIGHTS[weights](self.position.astype(np.float64), self.counts[self.owner].astype(np.float64))
        values, largest = self.values, np.zeros(len(self.counts))
        if self.logarithms:
            largest = np.full(len(self.counts), -np.inf)
            np.maximum.at(largest, self.owner, values)
            largest[~np.isfinite(largest)] = 0.0  # of no node, or of statistics that are all 0
            values = np.exp(values - largest[self.owner])
        if scaling == "minmax":
            padded = np.zeros((len(self.counts), max(int(self.counts.max(initial=0)), 1)), np.float32)
            padded[self.owner, self.position] = values
            scale_within(padded, self.counts)
            values = padded[self.owner, self.position].astype(np.float64)
        sums = np.bincount(self.owner, weight * values, len(self.counts)).astype(np.float64)
        if self.logarithms and scaling == "none":
            with np.errstate(divide="ignore"):
                sums = np.log(sums) + largest
        result = np.full(len(self.usable), np.nan)
        result[self.usable] = sums
        return result


def node_sums(table: Table, statistics: Sequence[str]) -> dict[tuple[str, str, Scaling], Floats]:
    """Compute training-free ParZC of some statistics in all its variants, by statistic, weights and scaling.

    Raises:
        UsageError: the table has no such statistic.
    """
    found: dict[tuple[str, str, Scaling], Floats] = {}
    for statistic in statistics:
        nodes = Nodes.of(table, statistic)
        found |= {(statistic, w, scaling): nodes.total(w, scaling) for w in WEIGHTS for scaling in SCALINGS}
    return found


def name_of(weights: str, scaling: Scaling) -> str:
    """Return what a variant is called, such as ``parzc-sinusoidal`` or ``parzc-decaying-minmax``."""
    return f"parzc-{weights}{'' if scaling == 'none' else '-minmax'}"


VARIANTS = {name_of(weights, scaling): (weights, scaling) for weights in WEIGHTS for scaling in SCALINGS}
"""The variants by name, each of which `rank_free` takes for a method of an aggregate."""


def rank_free(table: Table, method: str, statistics: str | None, k: int) -> tuple[int, list[Ranked]]:
    """Rank a table's architectures by training-free ParZC, as `zcpipe.rank.population.rank_table` does by proxies.

    Args:
        table: the population.
        method: a name of `VARIANTS`.
        statistics: names separated by commas, by default `PUBLISHED`; of several the ranks are aggregated (log-rank).
        k: how many of the best to return.

    Returns:
        The size of the population and the best rows, best first, with the sums of each statistic.

    Raises:
        UsageError: no such method, or the table lacks a statistic; ``k`` is not positive.
        DataError: no row has all of the statistics.
    """
    if k < 1:
        raise UsageError(f"--top needs a positive number of rows, got {k}")
    if method not in VARIANTS:
        raise unknown_name("method", method, VARIANTS)
    names = list(PUBLISHED) if statistics is None else [name.strip() for name in statistics.split(",")]
    sums = {name: Nodes.of(table, name).total(*VARIANTS[method]) for name in names}
    scores = aggregate("logrank", sums, dict.fromkeys(sums, "higher"))
    if np.isnan(scores).all():
        raise DataError(f"no architecture of the table has {', '.join(names)}; zcpipe status says why they failed")
    rows = table.to_arrow(["index", "arch"])
    indices, archs = rows["index"].to_pylist(), rows["arch"].to_pylist()
    ranked = [
        Ranked(place, indices[i], archs[i], float(scores[i]), {name: float(sums[name][i]) for name in names})
        for place, i in enumerate(top(scores, k).tolist(), start=1)
    ]
    return int(np.count_nonzero(~np.isnan(scores))), ranked
