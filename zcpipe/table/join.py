"""Joining the groups of a table by row: what one holds of a row and another lacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from zcpipe.table.files import each
from zcpipe.table.place import Place
from zcpipe.table.schema import STATUSES, Header
from zcpipe.table.store import check_distinct, read_columns

_KINDS = ("proxy", "count", "statistic")
_WHOLE = 2**28  # bytes of a column that are put together, far less than its offsets can count: rows differ in length
_BY_NAME = np.argsort(STATUSES)


class Columns(Protocol):
    """Rows of a header's columns."""

    @property
    def header(self) -> Header:
        """What the columns are."""
        ...

    @property
    def index(self) -> NDArray[np.int64]:  # [rows], sorted
        """The indices of the rows."""
        ...

    def read(self, names: Sequence[str]) -> pa.Table:
        """Read columns, sorted by index."""
        ...


class Part:
    """A table itself or one of its groups: a header and shard files with their numbers of rows."""

    def __init__(self, header: Header, files: Mapping[Place, int]) -> None:
        self.header = header
        self._files = dict(files)

    def __len__(self) -> int:
        return sum(self._files.values())

    @cached_property
    def index(self) -> NDArray[np.int64]:  # [rows], sorted
        """The indices of its rows."""
        return self._stored_index[self._order]

    def read(self, names: Sequence[str]) -> pa.Table:
        """Read columns, sorted by index."""
        return take(self._stored(names), self._order)

    @cached_property
    def _stored_index(self) -> NDArray[np.int64]:
        index: NDArray[np.int64] = self._stored(["index"])["index"].to_numpy()
        stops = np.cumsum(list(self._files.values()))
        check_distinct(list(self._files), np.split(index, stops)[:-1])
        return index

    @cached_property
    def _order(self) -> NDArray[np.int64]:
        """Where each row, in order of index, lies in the order of the files."""
        order: NDArray[np.int64] = np.argsort(self._stored_index, kind="stable")
        return order

    def _stored(self, names: Sequence[str]) -> pa.Table:
        """Read columns in the order of the files."""
        wanted = pa.schema([self.header.schema.field(name) for name in names])
        parts = each(lambda file: read_columns(file, names).cast(wanted), list(self._files))
        return pa.concat_tables([wanted.empty_table(), *parts])


def take(table: pa.Table, rows: NDArray[np.int64]) -> pa.Table:
    """Take rows of a table, piece by piece where a column is large.

    Arrow puts the chunks of each column together first, where beyond 2 GiB of text their 32-bit offsets overflow.
    """
    count = max((-(-column.nbytes // _WHOLE) for column in table.columns), default=0)
    if count <= 1:
        return table.take(rows)
    step = -(-len(table) // count)
    pieces = [table.slice(start, step).combine_chunks() for start in range(0, len(table), step)]
    taken = []
    for begin in range(0, len(rows), step):
        part = rows[begin : begin + step]
        number = part // step  # which piece each is of
        held = [piece.take(part[number == k] - k * step) for k, piece in enumerate(pieces)]
        places = np.empty(len(part), np.int64)
        places[np.argsort(number, kind="stable")] = np.arange(len(part))
        taken.append(pa.concat_tables(held).take(places))
    return pa.concat_tables([table.schema.empty_table(), *taken])


def joined_header(headers: Sequence[Header]) -> Header:
    """Return the header of a table with its groups: columns of all by kind, each as the first that has it says."""
    first = headers[0]
    if len(headers) == 1:
        return first
    columns = {column.name: column for header in reversed(headers) for column in header.columns}
    names = dict.fromkeys(column.name for header in headers for column in header.columns)
    ordered = sorted((columns[name] for name in names), key=lambda column: _KINDS.index(column.kind))
    return Header(tuple(ordered), first.spec, first.identity)


def union(parts: Sequence[Columns]) -> NDArray[np.int64]:  # [rows], sorted
    """Return the indices of the rows that any part has."""
    index: NDArray[np.int64] = np.unique(np.concatenate([part.index for part in parts]))
    return index


def join(parts: Sequence[Columns], names: Sequence[str], schema: pa.Schema) -> pa.Table:
    """Read columns of several parts, sorted by index.

    A value is that of the first part which has one. Seconds are added, failures put together, equal ones once, and the
    status is the worst among the parts that have the row.

    Args:
        parts: the table, and then its groups.
        names: columns of ``schema``.
        schema: that of the joined header.
    """
    index = union(parts)
    rows = [np.searchsorted(index, part.index) for part in parts]
    held = [part.read([name for name in dict.fromkeys(names) if name in part.header.schema.names]) for part in parts]
    columns = []
    for name in names:
        found = [(table[name], at) for table, at in zip(held, rows, strict=True) if name in table.column_names]
        match name:
            case "seconds":
                columns.append(pa.array(_added(found, len(index))))
            case "status":
                statuses = [(column.to_numpy(zero_copy_only=False).astype(np.str_), at) for column, at in found]
                columns.append(pa.array(combine_status(statuses, len(index)), pa.string()))
            case "failures":
                columns.append(pa.array(_together(found, len(index)), schema.field(name).type))
            case _:
                columns.append(_first(found, len(index)))
    wanted = pa.schema([schema.field(name) for name in names])
    return pa.Table.from_arrays(columns, schema=wanted)


def combine_status(
    parts: Sequence[tuple[NDArray[np.str_], NDArray[np.int64]]],  # statuses, and which rows they are of
    count: int,
) -> list[str]:
    """Return the status of rows: the worst of the parts that have them, in the order of `STATUSES`."""
    worst = np.zeros(count, np.int64)
    for statuses, rows in parts:
        codes = _BY_NAME[np.searchsorted(STATUSES, statuses, sorter=_BY_NAME)]
        worst[rows] = np.maximum(worst[rows], codes)
    return [STATUSES[code] for code in worst.tolist()]


def _first(found: Sequence[tuple[pa.ChunkedArray, NDArray[np.int64]]], count: int) -> pa.ChunkedArray:
    """Take for each row the value of the first part that has one, null if none has."""
    chosen, before = np.full(count, -1), 0
    for column, rows in found:
        fresh = column.is_valid().to_numpy() & (chosen[rows] < 0)
        chosen[rows[fresh]] = before + np.flatnonzero(fresh)
        before += len(column)
    kind = found[0][0].type
    chosen[chosen < 0] = before  # the null behind them all
    stacked = pa.chunked_array([*(chunk for column, _ in found for chunk in column.chunks), pa.nulls(1, kind)], kind)
    return take(pa.table({"column": stacked}), chosen)["column"]


def _added(found: Sequence[tuple[pa.ChunkedArray, NDArray[np.int64]]], count: int) -> NDArray[np.float64]:
    total = np.zeros(count)
    for column, rows in found:
        total[rows] += column.to_numpy()
    return total


def _together(found: Sequence[tuple[pa.ChunkedArray, NDArray[np.int64]]], count: int) -> list[list[Mapping[str, str]]]:
    """Put the failures of each row together, equal ones once: what fails a whole network fails it in every part."""
    lists: list[list[Mapping[str, str]]] = [[] for _ in range(count)]
    for column, rows in found:
        for row, failures in zip(rows.tolist(), column.to_pylist(), strict=True):
            lists[row] += [failure for failure in failures if failure not in lists[row]]
    return lists
