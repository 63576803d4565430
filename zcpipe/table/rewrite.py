"""Making one table of the rows of others, in order of index, in few large files and in bounded memory.

What is put together are the groups of columns of all tables. Those of the same columns give one with the rows of all;
a row may come several times if it is the same bit for bit, seconds aside. Those of the same rows give one with the
columns of all. What can be put together neither way stays a group of its own, because which rows lack a column is what
a run goes by.

The rows are dealt to the files that they will be in, through scratch files on a disk, and then put together file by
file: memory holds the rows of one file, and some bytes for each row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, reduce
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from zcpipe.errors import DataError, IdentityMismatch, UsageError
from zcpipe.table.draft import NO_SPACE, draft
from zcpipe.table.files import disk_errors, each, make_directory
from zcpipe.table.groups import numbered_group, require_groups
from zcpipe.table.join import Part, join, joined_header
from zcpipe.table.place import Place
from zcpipe.table.same import differing
from zcpipe.table.schema import Header, canonical
from zcpipe.table.store import Store, builds_of, differences, latest_run, read_columns, read_footer, shard_paths

ROWS_PER_FILE = 250_000  # 130 MB of 30 proxies and 6 statistics
_DEALT = 100_000  # rows that are read at a time
_OWN = ("seconds", "status", "failures")  # columns that each group has of its own

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Rewritten:
    """What was made; ``sources`` is how many files the rows were in."""

    path: Place
    rows: int
    files: int
    groups: int
    sources: int


@dataclass(frozen=True)
class _Held:
    """Those rows of a group that go into one file."""

    header: Header
    rows: pa.Table
    origins: NDArray[np.intp]  # [rows] which source each is from

    @property
    def index(self) -> Indices:
        index: Indices = self.rows["index"].to_numpy()
        return index

    def read(self, names: Sequence[str]) -> pa.Table:
        return self.rows.select(list(names))


@dataclass(frozen=True)
class _Source:
    """A group of columns of one of the tables."""

    number: int
    directory: Place
    header: Header
    files: Mapping[Place, int]
    index: Indices  # [rows], sorted
    builds: Sequence[Mapping[str, Any]]

    @property
    def sources(self) -> list[_Source]:
        return [self]

    def gather(self, spill: _Spill, file: int) -> _Held:
        """Return the rows that go into a file, sorted by index."""
        rows = spill.take(file, self)
        return _Held(self.header, rows.sort_by("index"), np.full(len(rows), self.number))


@dataclass(frozen=True)
class _Stacked:
    """Groups of the same columns, as one with the rows of all."""

    parts: Sequence[_Group]

    @property
    def header(self) -> Header:
        return self.parts[0].header

    @cached_property
    def index(self) -> Indices:
        return _union(self.parts)

    @property
    def sources(self) -> list[_Source]:
        return [source for part in self.parts for source in part.sources]

    def gather(self, spill: _Spill, file: int) -> _Held:
        """Return the rows that go into a file, sorted by index, each once."""
        held = [part.gather(spill, file) for part in self.parts]
        schema = self.header.schema.remove_metadata()
        rows = pa.concat_tables([part.read(schema.names).cast(schema) for part in held])
        origins = np.concatenate([part.origins for part in held])
        order = np.argsort(rows["index"].to_numpy(), kind="stable")
        again = np.flatnonzero(np.diff(rows["index"].to_numpy()[order], prepend=-1) == 0)
        once, twice = (_Held(self.header, rows.take(at), origins[at]) for at in (order[again - 1], order[again]))
        names = [name for name in schema.names if name != "seconds"]
        _check_equal(once, twice, names, self.sources)
        kept = np.delete(order, again)
        return _Held(self.header, rows.take(kept), origins[kept])


@dataclass(frozen=True)
class _Joined:
    """Groups of the same rows, as one with the columns of all."""

    parts: Sequence[_Group]

    @cached_property
    def header(self) -> Header:
        """The header, whose spec is that of the first part but for the proxies."""
        header = joined_header([part.header for part in self.parts])
        proxies = dict.fromkeys(name for part in self.parts for name in part.header.spec.get("proxies", ()))
        return replace(header, spec={**header.spec, "proxies": list(proxies)})

    @property
    def index(self) -> Indices:
        return self.parts[0].index

    @property
    def sources(self) -> list[_Source]:
        return [source for part in self.parts for source in part.sources]

    def gather(self, spill: _Spill, file: int) -> _Held:
        """Return the rows that go into a file, sorted by index."""
        held = [part.gather(spill, file) for part in self.parts]
        _check_shared(held, self.sources)
        rows = join(held, self.header.schema.names, self.header.schema)
        return _Held(self.header, rows, held[0].origins)


_Group: TypeAlias = _Source | _Stacked | _Joined


def rewrite(
    tables: Sequence[Place],
    out: Place,
    rows_per_file: int,
    progress: Callable[[int, int], None],
    *,
    planned: bool = False,
) -> Rewritten:
    """Write a new table with the rows and columns of tables of one identity.

    Args:
        tables: at least one; what they hold is left as it is.
        out: where the new one goes; there must be nothing.
        rows_per_file: how many rows a file has at most.
        progress: told again and again how many rows are done, of how many; each is read and written.
        planned: note in each group of the new table how many rows the latest run was to make of its columns.

    Raises:
        UsageError: ``rows_per_file`` is not positive.
        IdentityMismatch: the tables are of several identities.
        DataError: a table is not there, damaged or made by other versions of proxies; a row has several values;
            ``out`` is not empty or cannot be written. Nothing is left of the new table.
    """
    if rows_per_file < 1:
        raise UsageError(f"rows per file must be at least 1, got {rows_per_file}")
    with draft(out) as new:
        sources = _sources(tables)
        groups = _put_together(sources)
        index = _union(groups)
        starts = index[rows_per_file::rows_per_file]  # of each file but the first
        done, total = 0, sum(len(part.index) for part in (*sources, *groups))
        spill = _Spill(new.scratch)
        for source in sources:
            for rows in _deal(source, starts, spill):
                progress(done := done + rows, total)
        places = [new.table, *(numbered_group(new.table, number) for number in range(1, len(groups)))]
        stores = [Store(place, group.header, new.check) for place, group in zip(places, groups, strict=True)]
        files = 0
        for rows in _write(groups, stores, len(starts) + 1, spill):
            files += 1
            progress(done := done + rows, total)
        noted = [_planned(group) if planned else {} for group in groups]
        if len(groups) > 1:
            noted[0]["groups"] = len(groups) - 1
        # The table itself last: with its header it appears.
        for store, fields in zip(reversed(stores), reversed(noted), strict=True):
            if fields:
                store.note_run(**fields)
            store.write_header()
    return Rewritten(out, len(index), files, len(groups), sum(len(source.files) for source in sources))


def _write(groups: Sequence[_Group], stores: Sequence[Store], count: int, spill: _Spill) -> Iterator[int]:
    """Write the files of the new table, which are ``count`` for each group; yields the rows of each that has some."""
    for store in stores:
        make_directory(store.directory)
    for file in range(count):
        held = [group.gather(spill, file) for group in groups]
        _check_shared(held, [source for group in groups for source in group.sources])
        for store, group, part in zip(stores, groups, held, strict=True):
            if len(part.rows):
                store.write_rows(file, part.rows, _builds(group))
                yield len(part.rows)


def _planned(group: _Group) -> dict[str, int]:
    """Return what the latest runs on what becomes a group were to make of it, if they say so."""
    found = [latest_run(source.directory).get("planned") for source in group.sources]
    known = [planned for planned in found if planned is not None]
    return {"planned": max(known)} if known else {}


# -- what goes with what


def _sources(tables: Sequence[Place]) -> list[_Source]:
    found: list[_Source] = []
    for table in tables:
        for group in require_groups(table):
            first = found[0] if found else None
            if first is not None:
                _check_fits(first, group.directory, group.header)
            files = shard_paths(group.directory)
            footers = each(lambda file, header=group.header: read_footer(file, header), files)  # type: ignore[misc]
            counted = {file: rows for file, (rows, _) in zip(files, footers, strict=True)}
            builds = {canonical(build): build for _, metadata in footers for build in builds_of(metadata)}
            index = Part(group.header, counted).index
            found.append(_Source(len(found), group.directory, group.header, counted, index, list(builds.values())))
    return found


def _check_fits(first: _Source, directory: Place, header: Header) -> None:
    """Refuse tables whose rows are not of one table."""
    shown = differences(header.identity, first.header.identity)
    if shown:
        raise IdentityMismatch(
            f"{directory} is a table of another identity than {first.directory}: {shown}; merge tables of one identity"
        )
    sizes = [which.spec.get("classes_per_shard") for which in (header, first.header)]
    if sizes[0] != sizes[1]:
        raise DataError(
            f"{directory} has shards of {sizes[0]} classes and {first.directory} of {sizes[1]}: in sampled spaces that "
            "decides which rows share a network; score one of them again"
        )


def _put_together(sources: Sequence[_Source]) -> list[_Group]:
    """Return the groups of the new table, that with the columns of the first table first."""
    _check_columns(sources)
    groups: list[_Group] = list(sources)
    while True:
        stacked = [
            parts[0] if len(parts) == 1 else _Stacked(parts)
            for parts in _alike(groups, lambda a, b: set(a.header.schema.names) == set(b.header.schema.names))
        ]
        joined = [
            parts[0] if len(parts) == 1 else _Joined(parts)
            for parts in _alike(stacked, lambda a, b: np.array_equal(a.index, b.index))
        ]
        if len(joined) == len(groups):
            return joined
        groups = joined


def _alike(groups: Sequence[_Group], same: Callable[[_Group, _Group], bool]) -> list[list[_Group]]:
    """Put groups together that are the same in some way, in the order of the first of each."""
    found: list[list[_Group]] = []
    for group in groups:
        known = next((those for those in found if same(those[0], group)), None)
        if known is None:
            found.append([group])
        else:
            known.append(group)
    return found


def _check_columns(sources: Sequence[_Source]) -> None:
    """Refuse columns of one name that mean different things."""
    described: dict[str, tuple[dict[str, Any], Place]] = {}
    for source in sources:
        for column in source.header.columns:
            own = asdict(column)
            if column.kind == "statistic":  # it has its paper from whichever proxy reads it first
                own["paper"] = ""
            known, where = described.setdefault(column.name, (own, source.directory))
            for name in (name for name, value in own.items() if known[name] != value):
                raise DataError(
                    f"{name} of {column.name} is {known[name]!r} in {where} and {own[name]!r} in {source.directory}: "
                    "the proxy has changed between them; score one of them again"
                )


def _builds(group: _Group) -> list[Mapping[str, Any]]:
    builds = (build for source in group.sources for build in source.builds)
    return list({canonical(build): build for build in builds}.values())


def _union(groups: Sequence[_Group]) -> Indices:
    return reduce(np.union1d, (group.index for group in groups), np.empty(0, np.int64))


# -- rows on their way


class _Spill:
    """Scratch files: the rows of each source that go into each file."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def add(self, number: int, source: _Source, rows: pa.Table) -> None:
        path = self._path(number, source)
        with disk_errors("write", path, NO_SPACE), path.open("ab") as file, pa.ipc.new_stream(file, rows.schema) as to:
            to.write_table(rows)

    def take(self, number: int, source: _Source) -> pa.Table:
        path = self._path(number, source)
        parts = [source.header.schema.remove_metadata().empty_table()]
        with disk_errors("read", path):
            if path.exists():
                with pa.OSFile(str(path)) as file:
                    while file.tell() < file.size():
                        parts.append(pa.ipc.open_stream(file).read_all())
                path.unlink()
        return pa.concat_tables(parts)

    def _path(self, number: int, source: _Source) -> Path:
        return self._directory / f"{number}-{source.number}"


def _deal(source: _Source, starts: Indices, spill: _Spill) -> Iterator[int]:
    """Read the rows of a source and deal them to the files that they go into; yields how many, time and again."""
    schema = source.header.schema.remove_metadata()
    for files in _batches(source.files):
        parts = each(lambda file: read_columns(file, schema.names).cast(schema), files)
        rows = pa.concat_tables(parts)
        numbers = np.searchsorted(starts, rows["index"].to_numpy(), side="right")
        order = np.argsort(numbers, kind="stable")
        rows, numbers = rows.take(order), numbers[order]
        begins = np.flatnonzero(np.diff(numbers, prepend=-1))
        for begin, stop in zip(begins, np.append(begins[1:], len(numbers)), strict=True):
            spill.add(int(numbers[begin]), source, rows.slice(begin, stop - begin))
        yield len(rows)


def _batches(files: Mapping[Place, int]) -> Iterator[list[Place]]:
    batch: list[Place] = []
    held = 0
    for file, rows in files.items():
        if batch and held + rows > _DEALT:
            yield batch
            batch, held = [], 0
        batch.append(file)
        held += rows
    if batch:
        yield batch


def _check_shared(held: Sequence[_Held], sources: Sequence[_Source]) -> None:
    """Refuse groups that have different values of the same row and column."""
    for number, one in enumerate(held):
        for other in held[:number]:
            names = [name for name in other.rows.column_names if name in one.rows.column_names and name not in _OWN]
            _, left, right = np.intersect1d(other.index, one.index, assume_unique=True, return_indices=True)
            a, b = (
                _Held(part.header, part.rows.select(names).take(at), part.origins[at])
                for part, at in ((other, left), (one, right))
            )
            _check_equal(a, b, names, sources, or_null=True)


def _check_equal(
    left: _Held, right: _Held, names: Sequence[str], sources: Sequence[_Source], *, or_null: bool = False
) -> None:
    for name in names if len(left.rows) else ():
        a, b = left.rows[name], right.rows[name]
        unequal = differing(a, b)
        if or_null:
            unequal &= a.is_valid().to_numpy() & b.is_valid().to_numpy()
        if unequal.any():
            row = int(np.argmax(unequal))
            where = {source.number: source.directory for source in sources}
            raise DataError(
                f"row {left.index[row]} differs in the column {name}: it is {_shown(a[row])} in "
                f"{where[left.origins[row]]} and {_shown(b[row])} in {where[right.origins[row]]}; "
                "score it again in one of them, or leave one out"
            )


def _shown(value: pa.Scalar) -> str:
    text = repr(value.as_py())
    return text if len(text) <= 60 else f"{text[:60]}..."
