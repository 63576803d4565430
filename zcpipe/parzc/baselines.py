"""What predictors are held against: every proxy and aggregate as it is, and plain learners on the same features."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from zcpipe.parzc.free import PUBLISHED, VARIANTS, name_of, node_sums
from zcpipe.rank import aggregate, log_rank
from zcpipe.rank.population import available
from zcpipe.table import Table

Floats = NDArray[np.float64]

TREES = ("extra-trees", "boosted-trees")
LEARNERS = (*TREES, "ridge")


def training_free(table: Table) -> tuple[dict[str, Floats], Mapping[str, str]]:
    """Give the scores of all that needs no training: counts, proxies, aggregates, and training-free ParZC.

    Aggregates are made over the whole table, which takes no label.

    Returns:
        Name to values, [n] in order of index, NaN where there is none; and each name's direction.
    """
    names = [c.name for c in table.columns if c.kind == "count"] + [c.name for c in table.columns if c.kind == "proxy"]
    scores: dict[str, Floats] = dict(table.values(names))
    directions = {c.name: c.direction for c in table.columns if c.name in scores}
    for entry in available(names):
        values = table.values(entry.proxies)
        scores[entry.name] = aggregate(entry.method, values, table.directions(entry.proxies))
    statistics = [c.name for c in table.columns if c.kind == "statistic"]
    sums = node_sums(table, statistics)
    scores |= {f"{name_of(weights, scaling)}:{name}": values for (name, weights, scaling), values in sums.items()}
    if set(PUBLISHED) <= set(statistics):
        for variant, (weights, scaling) in VARIANTS.items():
            columns = {name: sums[name, weights, scaling] for name in PUBLISHED}
            scores[variant] = log_rank(columns, dict.fromkeys(columns, "higher"))
    return scores, {name: directions.get(name, "higher") for name in scores}
