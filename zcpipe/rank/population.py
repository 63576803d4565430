"""Rankings and correlations of the architectures of a table."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from zcpipe.errors import DataError, UsageError, unknown_name
from zcpipe.proxies import groups, list_proxies
from zcpipe.rank.aggregate import METHODS, aggregate
from zcpipe.rank.correlation import correlate
from zcpipe.rank.intervals import Intervals, bootstrap
from zcpipe.rank.majority import vote_accuracy
from zcpipe.rank.named import NAMED, Named
from zcpipe.rank.ranking import Floats
from zcpipe.rank.selection import top
from zcpipe.table import Table

Bools = NDArray[np.bool_]
Progress = Callable[[int, int], None]  # told how much is done, of how much
VOTED_AT_MOST = 30_000  # architectures: a vote looks at every pair, which takes seconds there and hours at a million


def silent(done: int, total: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Ranked:
    """One architecture of a ranking: its place from 1, the aggregate, and the proxies that made it."""

    rank: int
    index: int
    arch: str
    score: float
    proxies: dict[str, float]


def rank_table(table: Table, method: str, proxies: str | None, k: int) -> tuple[int, list[Ranked]]:
    """Rank a table's architectures by an aggregate of proxies.

    Args:
        table: the population.
        method: a name of `NAMED`, or one of `METHODS`.
        proxies: what a method combines: names or groups, separated by commas, by default the AZ-NAS four. A named
            aggregate has proxies of its own.
        k: how many of the best to return.

    Returns:
        The size of the population (rows in which none of the proxies failed) and the best rows, best first.

    Raises:
        UsageError: an unknown method, proxies for a named aggregate that is no method, or a proxy that the table
            lacks; ``k`` is not positive.
        DataError: no row has all of the proxies.
    """
    if k < 1:
        raise UsageError(f"--top needs a positive number of rows, got {k}")
    how, asked = _recipe(method, proxies)
    names = _columns(table, asked)
    values = table.values(names)
    scores = aggregate(how, values, table.directions(names))
    if np.isnan(scores).all():
        raise DataError(
            f"no architecture of the table has values of all of {', '.join(names)}; "
            "zcpipe status says on how many rows each was run, and why proxies failed"
        )
    rows = table.to_arrow(["index", "arch"])
    best = top(scores, k)
    indices, archs = rows["index"].to_pylist(), rows["arch"].to_pylist()
    ranked = [
        Ranked(place, indices[i], archs[i], float(scores[i]), {name: float(values[name][i]) for name in names})
        for place, i in enumerate(best.tolist(), start=1)
    ]
    return int(np.count_nonzero(~np.isnan(scores))), ranked


def _recipe(method: str, proxies: str | None) -> tuple[str, str]:
    """Return how to aggregate, and which proxies."""
    if proxies is None and method in NAMED:
        return NAMED[method].method, ",".join(NAMED[method].proxies)
    if method in METHODS:
        return method, "aznas" if proxies is None else proxies
    if method in NAMED:
        entry = NAMED[method]
        raise UsageError(
            f"{method} combines {', '.join(entry.proxies)}: leave --proxies out, or combine others by "
            f"--method {entry.method}"
        )
    raise unknown_name("aggregate or method", method, [*NAMED, *METHODS])


def _columns(table: Table, proxies: str) -> list[str]:
    """Expand groups of proxies to columns of a table, which outlive the packages that computed them."""
    known = groups()
    asked = [member for name in proxies.split(",") for member in known.get(name.strip(), (name.strip(),)) if member]
    held = [column.name for column in table.columns if column.kind in ("proxy", "count")]
    lacking = [name for name in dict.fromkeys(asked or [""]) if name not in held]
    installed = list_proxies()
    for name in lacking:
        if name not in installed:
            error = unknown_name("proxy", name, [*held, *installed, *known])
            raise UsageError(f"{error}; the table holds {', '.join(held)}: name some with --proxies")
    if lacking:
        raise UsageError(
            f"the table lacks {', '.join(lacking)}; `zcpipe run ... --proxies {','.join(lacking)} --out DIR` adds "
            f"{'it' if len(lacking) == 1 else 'them'}; the table holds {', '.join(held)}: name some with --proxies"
        )
    return list(dict.fromkeys(asked))


@dataclass(frozen=True)
class CorrelationRow:
    """How well one proxy or aggregate ranks, as `Correlation`.

    A vote's ``pair_accuracy`` is that of the votes themselves, which decide more than the ranking made from them.
    ``failed`` counts the architectures with a truth whose value failed, ``missing`` those that were not scored: rows
    that a column's group lacks. An aggregate fails where one of its proxies does. The bounds of 95 % intervals
    are NaN unless they were asked for.
    """

    name: str
    kendall: float
    spearman: float
    pair_accuracy: float
    n: int
    failed: int
    missing: int
    kendall_low: float = float("nan")
    kendall_high: float = float("nan")
    spearman_low: float = float("nan")
    spearman_high: float = float("nan")


def correlate_table(
    table: Table,
    truth: Floats,  # [rows of the table in order of index], NaN where unknown
    target: str,
    aggregates: Mapping[str, str],
    resamples: int | None = None,
    progress: Progress = silent,
) -> list[CorrelationRow]:
    """Correlate every proxy of a table, and aggregates of them, with the truth.

    Args:
        table: the population.
        truth: the truth of each architecture, aligned with the table.
        target: name of the truth's column, for messages.
        aggregates: name -> proxies of further log-rank aggregates.
        resamples: of the bootstrap that gives intervals; None for no intervals.
        progress: told how many resamples are done, of how many.

    Returns:
        params and macs first, the other proxies in table order, then the named aggregates (`NAMED`) of which the table
        has all proxies and no column of that name, but for those of `left_out`, then the aggregates asked for.
        Correlations are of raw values, signed.

    Raises:
        UsageError: an aggregate names a proxy that the table lacks, or is called as another row.
        DataError: the target is constant, or no architecture has truth.
    """
    names = [c.name for c in table.columns if c.kind == "count"] + [c.name for c in table.columns if c.kind == "proxy"]
    omitted = left_out(table)
    made = [entry for entry in available(names) if entry.name not in omitted]
    for name, given in aggregates.items():
        if name in (*names, *(entry.name for entry in made)):
            raise UsageError(f"aggregate {name!r} would hide the row of that name; give it another")
        made.append(Named(name, "logrank", tuple(_columns(table, given)), ""))
    members = dict.fromkeys(member for entry in made for member in entry.proxies)
    values = table.values(names)
    directions = table.directions(list(members))
    return correlate_columns(values, directions, truth, target, made, table.missing(values), resamples, progress)


def left_out(table: Table) -> list[str]:
    """Return the named aggregates that `correlate_table` leaves out of a table because it has too many rows."""
    if len(table) <= VOTED_AT_MOST:
        return []
    names = [column.name for column in table.columns if column.kind in ("count", "proxy")]
    return [entry.name for entry in available(names) if entry.method == "vote"]


def available(columns: Collection[str]) -> list[Named]:
    """Return the named aggregates that can be made from columns and that no column hides by its name."""
    return [entry for entry in NAMED.values() if set(entry.proxies) <= set(columns) and entry.name not in columns]


def correlate_columns(
    columns: Mapping[str, Floats],
    directions: Mapping[str, str],
    truth: Floats,
    target: str,
    aggregates: Iterable[Named],
    missing: Mapping[str, Bools] | None = None,
    resamples: int | None = None,
    progress: Progress = silent,
) -> list[CorrelationRow]:
    """Correlate columns of one population, and aggregates of them, with the truth: what `correlate_table` reads.

    Args:
        columns: proxies and counts, [n] each, NaN where they failed.
        directions: "higher" or "lower", for each column that an aggregate combines.
        truth: [n], NaN where unknown.
        target: name of the truth, for messages.
        aggregates: what to make of the columns.
        missing: [n] each, where a column has no value because nobody scored it; by default nowhere.
        resamples: of the bootstrap that gives intervals; None for no intervals.
        progress: told how many resamples are done, of how many.

    Returns:
        The columns, then the aggregates, in the order given.

    Raises:
        UsageError: an aggregate that cannot be made of its columns.
        DataError: the target is constant, or no architecture has truth.
    """
    unscored = dict.fromkeys(columns, np.zeros(len(truth), dtype=bool)) if missing is None else missing
    made = list(aggregates)
    total = len(columns) + len(made)
    rows: list[CorrelationRow] = []

    def add(name: str, scores: Floats, missing: Bools) -> None:
        row = _row(name, scores, truth, target, missing)
        if resamples is not None:
            told = partial(_part, progress, len(rows), total)
            row = _with_bounds(row, bootstrap(scores, truth, resamples, progress=told))
        rows.append(row)

    for name, scores in columns.items():
        add(name, scores, unscored[name])
    for entry in made:
        values = {name: columns[name] for name in entry.proxies}
        failed = np.any([np.isnan(values[name]) & ~unscored[name] for name in values], axis=0)
        add(entry.name, aggregate(entry.method, values, directions), ~failed)
        if entry.method == "vote":
            rows[-1] = replace(rows[-1], pair_accuracy=vote_accuracy(values, directions, truth))
    return rows


def _part(progress: Progress, part: int, parts: int, done: int, total: int) -> None:
    """Tell of one part's progress as that of all parts."""
    progress(part * total + done, parts * total)


def _row(name: str, scores: Floats, truth: Floats, target: str, missing: Bools) -> CorrelationRow:
    """Correlate scores; where one is not a number, ``missing`` says that it has not failed."""
    found = correlate(scores, truth, target)
    absent = int(np.count_nonzero(missing & np.isnan(scores) & ~np.isnan(truth)))
    return CorrelationRow(
        name, found.kendall, found.spearman, found.pair_accuracy, found.n, found.failed - absent, absent
    )


def _with_bounds(row: CorrelationRow, bounds: Intervals) -> CorrelationRow:
    (kendall_low, kendall_high), (spearman_low, spearman_high) = bounds.kendall, bounds.spearman
    return replace(
        row,
        kendall_low=kendall_low,
        kendall_high=kendall_high,
        spearman_low=spearman_low,
        spearman_high=spearman_high,
    )
