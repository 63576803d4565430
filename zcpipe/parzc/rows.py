"""The rows of a table as features are made of them: which have all that is asked for, and their lists in one piece."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from zcpipe.errors import DataError, UsageError, unknown_name
from zcpipe.parzc.places import Integers, Sequences, places_of
from zcpipe.parzc.spec import FeatureSpec
from zcpipe.proxies import get_proxy, list_proxies
from zcpipe.scoring.columns import Column
from zcpipe.table import Table

Bools = NDArray[np.bool_]
Reals = NDArray[np.float32]

LIVE = "num_layers@layer"  # the column that says which layers live
_AT_ONCE = 1 << 22  # values


@dataclass(frozen=True)
class Lists:
    """A list column, or some of its rows."""

    values: Reals  # of all rows, one after the other
    lengths: Integers  # [rows]

    @classmethod
    def of(cls, table: Table, name: str) -> tuple[Self, Bools]:
        """Read a column; return with it which rows have a list without NaN."""
        column = table.to_arrow([name])[name]
        values = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
        lists = cls(
            np.concatenate([np.zeros(0, np.float32), *values]),
            pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64),
        )
        whole = column.is_valid().to_numpy().copy()
        whole[np.searchsorted(np.cumsum(lists.lengths), np.flatnonzero(np.isnan(lists.values)), side="right")] = False
        return lists, whole

    def take(self, rows: Bools) -> Lists:
        """Return those of some rows."""
        if rows.all():
            return self
        return Lists(self.values[np.repeat(rows, self.lengths)], self.lengths[rows])

    def pieces(self) -> Iterator[tuple[slice, slice]]:
        """Yield rows, a few at a time, and where their values are."""
        ends = np.cumsum(self.lengths)
        step = max(_AT_ONCE * len(ends) // max(len(self.values), 1), 1)
        for start in range(0, len(ends), step):
            rows = slice(start, min(start + step, len(ends)))
            yield rows, slice(int(ends[start] - self.lengths[start]), int(ends[rows.stop - 1]))


@dataclass(frozen=True)
class Rows:
    """What is asked for of the usable rows of a table, column by column."""

    table: Table
    spec: FeatureSpec
    columns: Mapping[str, Column]
    live: str  # the column that says which layers live, if one does
    usable: Bools  # [n]

    @classmethod
    def of(cls, table: Table, spec: FeatureSpec, live: str | None = None) -> Self:
        """Look which rows are usable; by default the table decides what says which layers live."""
        packed = spec.alignment == "packed" and any(map(is_layers, spec.statistics))
        if live is None:
            live = LIVE if packed and LIVE in (column.name for column in table.columns) else ""
        columns = _require(table, [*dict.fromkeys((*spec.statistics, *filter(None, [live])))], spec.proxies)
        usable = np.ones(len(table), bool)
        for _, whole in wholes(table, list(columns.values())):
            usable &= whole
        return cls(table, spec, columns, live, usable)

    def require_some(self) -> None:
        """Refuse a population without rows, saying what is missing in most."""
        if self.usable.any():
            return
        n = len(self.table)
        failed = {name: n - int(whole.sum()) for name, whole in wholes(self.table, list(self.columns.values()))}
        if not n or not failed:
            raise DataError("the table has no rows; run zcpipe on it first")
        worst = max(failed, key=lambda name: failed[name])
        raise DataError(
            f"no row of the table has all that the features need: {worst} failed or is missing in {failed[worst]} of "
            f"{n} rows; zcpipe status says why, or leave it out"
        )

    def lists(self, name: str) -> Lists:
        """Read a statistic."""
        return Lists.of(self.table, name)[0].take(self.usable)

    def places(self, name: str, lists: Lists) -> Sequences:
        """Return the slots of a statistic's values."""
        places = places_of(self.table, self.columns[name]).take(self.usable)
        expected = places.lengths[places.of_row]
        if not (is_layers(name) or self.columns[name].slots) and (lists.lengths == expected - 1).all():
            places, expected = places.without_first(), expected - 1  # of a block and the one before it
        wrong = np.flatnonzero(lists.lengths != expected)
        if len(wrong):
            row = int(wrong[0])
            raise DataError(
                f"{name} has {lists.lengths[row]} values for {self.arch(row)}, whose network has {expected[row]} such "
                "slots; the table was made by another version of the space: run it anew"
            )
        return places

    @cached_property
    def live_layers(self) -> Bools:  # [values of a statistic of layers]
        """Which layers live."""
        if self.live:
            of_column: Bools = self.lists(self.live).values != 0
            return of_column
        names = filter(is_layers, self.spec.statistics)
        found: Bools = self.lists(next(names)).values != 0
        for name in names:
            found |= self.lists(name).values != 0
        return found

    def arch(self, row: int) -> str:
        """Return the text of a usable row's architecture."""
        text: str = self.table.to_arrow(["arch"])["arch"][int(np.flatnonzero(self.usable)[row])].as_py()
        return text


def is_layers(name: str) -> bool:
    """Whether a statistic is of layers, and not of blocks."""
    return name.endswith("@layer")


def count_live(lists: Lists, live: Bools | None) -> Integers:  # [rows]
    """Count the values of each row that are live; None for all."""
    if live is None:
        return lists.lengths
    passed = np.concatenate([[0], np.cumsum(live, dtype=np.int64)])
    ends = np.cumsum(lists.lengths)
    counts: Integers = passed[ends] - passed[ends - lists.lengths]
    return counts


def wholes(table: Table, columns: Sequence[Column]) -> Iterator[tuple[str, Bools]]:  # [n] each
    """Yield of each column which rows have a value: of statistics, which are read one by one, and then of scalars."""
    for column in columns:
        if column.kind == "statistic":
            yield column.name, Lists.of(table, column.name)[1]
    scalars = table.values([column.name for column in columns if column.kind != "statistic"])
    for name, values in scalars.items():
        yield name, ~np.isnan(values)


def _require(table: Table, statistics: Sequence[str], proxies: Sequence[str]) -> dict[str, Column]:
    """Return the columns asked for, statistics first."""
    held = {column.name: column for column in table.columns}
    makers: list[str] = []
    lacking = []
    for kind, names in (("statistic", statistics), ("proxy", proxies)):
        right = [name for name, column in held.items() if (column.kind == "statistic") == (kind == "statistic")]
        for name in names:
            if name not in right:
                made_by = _makers(name) if kind == "statistic" else [name] * (name in list_proxies())
                if not made_by:
                    raise unknown_name(kind, name, right)
                lacking.append(name)
                makers += made_by[:1]
    if lacking:
        raise UsageError(
            f"the table lacks {', '.join(lacking)}; `zcpipe run ... --proxies {','.join(dict.fromkeys(makers))} "
            f"--out DIR` adds {'it' if len(lacking) == 1 else 'them'}"
        )
    return {name: held[name] for name in (*statistics, *proxies)}


def _makers(statistic: str) -> list[str]:
    """Return the installed proxies that read a statistic, one of its own name first."""
    makers = [
        name for name in list_proxies() if statistic in (f"{s.name}@{s.node}" for s in get_proxy(name).statistics)
    ]
    return sorted(makers, key=lambda name: name != statistic.partition("@")[0])
