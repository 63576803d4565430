"""Which columns of a table are features where nobody says so."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from zcpipe.errors import DataError
from zcpipe.parzc.rows import wholes
from zcpipe.parzc.spec import Alignment, Encoding, FeatureSpec
from zcpipe.table import Table

COVERAGE = 0.99
"""The share of a table's rows that a column must have values in to be a feature unless it is named."""


def choose_spec(
    table: Table,
    statistics: Sequence[str] | None = None,
    proxies: Sequence[str] | None = None,
    *,
    encoding: Encoding = "live-rank",
    alignment: Alignment = "slots",
    graph: bool = False,
) -> tuple[FeatureSpec, dict[str, float]]:
    """Choose features: what is named, and by default all statistics, proxies and counts of the table.

    A row without a value of any feature is not usable. So, by default, columns that lack values in more than 1 % of
    the rows are left out.

    Returns:
        The features, and the columns that were left out with the share of the rows that have values in each.

    Raises:
        UsageError: names that mean nothing.
        DataError: the table has no rows, or no statistics, though none are named that could do without, or all columns
            lack values in too many rows.
    """
    held = [column for column in table.columns if column.kind == "statistic"]
    if statistics is None and not held:
        raise DataError(
            "the table has no statistics of nodes to learn from; run zcpipe with proxies that have some (aznas, snip, "
            'synflow ...), or name scalar --proxies and --statistics ""'
        )
    if not len(table):
        raise DataError("the table has no rows; run zcpipe on it first")
    left_out: dict[str, float] = {}
    chosen: dict[str, list[str]] = {}
    for kind, given in (("statistics", statistics), ("proxies", proxies)):
        if given is not None:
            chosen[kind] = list(given)
            continue
        columns = [column for column in table.columns if (column.kind == "statistic") == (kind == "statistics")]
        shares = {name: float(np.mean(whole)) for name, whole in wholes(table, columns)}
        left_out |= {name: share for name, share in shares.items() if share < COVERAGE}
        chosen[kind] = [name for name in shares if name not in left_out]
    if left_out and not (chosen["statistics"] or chosen["proxies"] or graph):
        lacking = ", ".join(f"{name} in {share:.1%}" for name, share in left_out.items())
        raise DataError(
            f"no column has values in {COVERAGE:.0%} of the {len(table)} rows: {lacking}; zcpipe status says why, or "
            "name --statistics and --proxies, to leave out the rows that lack them"
        )
    spec = FeatureSpec(
        statistics=tuple(chosen["statistics"]),
        proxies=tuple(chosen["proxies"]),
        encoding=encoding,
        alignment=alignment,
        graph=graph,
    )
    return spec, left_out
