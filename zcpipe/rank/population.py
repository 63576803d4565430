"""Rankings and correlations of the architectures of a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from zcpipe.errors import DataError, UsageError, unknown_name
from zcpipe.proxies import groups
from zcpipe.rank.aggregate import Floats, aggregate
from zcpipe.rank.correlation import correlate
from zcpipe.rank.selection import top
from zcpipe.table import Table


@dataclass(frozen=True)
class Ranked:
    """One architecture of a ranking: its place from 1, the aggregate, and the proxies that made it."""

    rank: int
    index: int
    arch: str
    score: float
    proxies: dict[str, float]


def rank_table(table: Table, method: str, proxies: str, k: int) -> tuple[int, list[Ranked]]:
    """Rank a table's architectures by an aggregate of proxies.

    Args:
        table: the population.
        method: ``logrank`` or ``linear``.
        proxies: names or groups, separated by commas.
        k: how many of the best to return.

    Returns:
        The size of the population (rows in which none of the proxies failed) and the best rows, best first.

    Raises:
        UsageError: an unknown method, or a proxy that the table lacks; ``k`` is not positive.
        DataError: no row has all of the proxies.
    """
    if k < 1:
        raise UsageError(f"--top needs a positive number of rows, got {k}")
    names = _columns(table, proxies)
    values = table.values(names)
    scores = aggregate(method, values, table.directions(names))
    if np.isnan(scores).all():
        raise DataError(
            f"no architecture of the table has values of all of {', '.join(names)}; "
            "zcpipe status says why proxies failed"
        )
    rows = table.to_arrow(["index", "arch"])
    best = top(scores, k)
    indices, archs = rows["index"].to_pylist(), rows["arch"].to_pylist()
    ranked = [
        Ranked(place, indices[i], archs[i], float(scores[i]), {name: float(values[name][i]) for name in names})
        for place, i in enumerate(best.tolist(), start=1)
    ]
    return int(np.count_nonzero(~np.isnan(scores))), ranked


def _columns(table: Table, proxies: str) -> list[str]:
    """Expand groups of proxies to columns of a table, which outlive the packages that computed them."""
    known = groups()
    asked = [member for name in proxies.split(",") for member in known.get(name.strip(), (name.strip(),)) if member]
    held = [column.name for column in table.columns if column.kind in ("proxy", "count")]
    for name in asked or [""]:
        if name not in held:
            error = unknown_name("proxy", name, held)
            raise UsageError(f"{error}; the table holds {', '.join(held)}: name some with --proxies")
    return list(dict.fromkeys(asked))


@dataclass(frozen=True)
class CorrelationRow:
    """How well one proxy or aggregate ranks: ``failed`` architectures have truth but no score."""

    name: str
    kendall: float  # NaN if the scores are constant
    spearman: float
    n: int
    failed: int


def correlate_table(
    table: Table,
    truth: Floats,  # [rows of the table in order of index], NaN where unknown
    target: str,
    aggregates: Mapping[str, str],
) -> list[CorrelationRow]:
    """Correlate every proxy of a table, and aggregates of them, with the truth.

    Args:
        table: the population.
        truth: the truth of each architecture, aligned with the table.
        target: name of the truth's column, for messages.
        aggregates: name -> proxies of further log-rank aggregates.

    Returns:
        params and macs first, the other proxies in table order, then ``aznas`` (log-rank) and ``aznas_linear`` if the
        table has the AZ-NAS four, then the aggregates asked for. Correlations are of raw values, signed.

    Raises:
        UsageError: an aggregate names a proxy that the table lacks.
        DataError: the target is constant, or no architecture has truth.
    """
    names = [c.name for c in table.columns if c.kind == "count"] + [c.name for c in table.columns if c.kind == "proxy"]
    scores = table.values(names)
    four = groups()["aznas"]
    made = [("aznas", "logrank", four), ("aznas_linear", "linear", four)] if set(four) <= set(names) else []
    made += [(name, "logrank", tuple(_columns(table, given))) for name, given in aggregates.items()]
    for name, method, members in made:
        if name in scores:
            raise UsageError(f"aggregate {name!r} would hide a column of that name; give it another")
        scores[name] = aggregate(method, table.values(members), table.directions(members))
    results = {name: correlate(values, truth, target) for name, values in scores.items()}
    return [CorrelationRow(name, r.kendall, r.spearman, r.n, r.failed) for name, r in results.items()]
