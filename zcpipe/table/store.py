"""The directory of a table: its header, its shards, and how they are committed.

Everything in the directory is Parquet, so that any reader opens the directory itself:

- ``_zcpipe.parquet``: no rows; the schema, spec and identity, made once and never replaced, because it is also what
  the supervisor locks.
- ``_run.parquet``: no rows; what the latest run was asked for (process, selection, planned rows) and how many groups of
  columns joined the table, replaced by each run.
- ``shard-<id>-<hash>.parquet``: the rows of a shard, or those that a grown range added to it.
- ``rows-<number>-<hash>.parquet``: rows of many shards that ``zcpipe compact`` or ``zcpipe merge`` put together.

A directory is one of this machine or a prefix in an object store (`zcpipe.table.place`).
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from zcpipe.errors import DataError, IdentityMismatch, UsageError
from zcpipe.table.files import (
    TEMPORARY,
    ExistsError,
    each,
    exists,
    make_directory,
    names,
    publish,
    read_parquet,
    remove_unfinished,
)
from zcpipe.table.lock import hold
from zcpipe.table.place import Place
from zcpipe.table.schema import RETRIED, Header, canonical, encode, encode_empty, in_order, read_header, read_metadata

HEADER = "_zcpipe.parquet"
_RUN = "_run.parquet"
_KEEP_MEND = "restore it from a copy, or choose another directory with --out"


@dataclass(frozen=True)
class Rows:
    """Which rows a table has, in the order of its files, and how they ended."""

    index: NDArray[np.int64]
    status: NDArray[np.str_]
    builds: tuple[Mapping[str, Any], ...]  # the different builds that computed them
    files: tuple[tuple[Place, int], ...]  # with how many rows each has

    def kept(self, retry_errors: bool) -> NDArray[np.int64]:
        """Return the indices of the rows that a run does not compute again."""
        return self.index[~np.isin(self.status, RETRIED)] if retry_errors else self.index

    def holders(self, chosen: NDArray[np.bool_]) -> dict[int, Place]:
        """Return which file holds each of the chosen rows, by index."""
        number = np.repeat(np.arange(len(self.files)), [rows for _, rows in self.files])[chosen]
        return {i: self.files[n][0] for i, n in zip(self.index[chosen].tolist(), number.tolist(), strict=True)}


def find_header(directory: Place) -> Header | None:
    """Return the header of the table in a directory, None where there is no table yet.

    Raises:
        UsageError: the path cannot be written as text, which Parquet readers need.
        DataError: the path is not a directory, or it holds other things.
    """
    present = _names(directory)
    header = _read_header(directory)
    foreign = sorted(name for name in present if not name.startswith(TEMPORARY))
    if header is None and foreign:
        raise DataError(
            f"{directory} is not empty and not a zcpipe table (it holds {foreign[0]}); choose another --out"
        )
    return header


def require_header(directory: Place) -> Header:
    """Return the header of a table that is to be read.

    Raises:
        UsageError: the path cannot be written as text, which Parquet readers need.
        DataError: there is no table at the path, or it cannot be read.
    """
    present = _names(directory, "name the directory of a table, as zcpipe run made it")
    header = _read_header(directory)
    if header is None:
        mend = f"make it with zcpipe run --out {directory}" if not present else "name the directory of a table"
        raise DataError(f"{directory} holds no zcpipe table; {mend}")
    return header


def _names(directory: Place, mend: str | None = None) -> set[str]:
    """Return what lies in a directory, nothing where there is none."""
    try:
        str(directory).encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"the directory {str(directory)!a} is not named in UTF-8; choose another name") from error
    return names(directory, mend)


def _read_header(directory: Place) -> Header | None:
    path = directory / HEADER
    if not exists(path):
        return None
    return read_header(read_parquet(path, lambda file: file.schema_arrow, _KEEP_MEND), path)


def check_identity(directory: Place, present: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Refuse to go on with a table of another identity.

    Raises:
        IdentityMismatch: it names every differing field with both values.
    """
    shown = differences(present, asked)
    if shown:
        raise IdentityMismatch(f"{directory} is a table of another identity: {shown}; choose another --out")


def differences(present: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """Say in which fields, nested ones included, a mapping there differs from one here; nothing if in none."""
    old, new = _flat(present), _flat(asked)
    differing = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    return ", ".join(f"{name} is {old.get(name)!r} there and {new.get(name)!r} here" for name in differing)


def shard_paths(directory: Place) -> list[Place]:
    """Return the table's shard files, sorted by name."""
    found = (name for name in names(directory) if name.endswith(".parquet") and not name.startswith(("_", ".")))
    return [directory / name for name in sorted(found)]


def read_footer(path: Place, header: Header) -> tuple[int, dict[str, Any]]:
    """Return the number of rows and the metadata of a shard file from its footer.

    Raises:
        DataError: the file is damaged or belongs to another table than that of the header.
    """
    return read_parquet(path, lambda file: _own_footer(path, file.metadata, header))


def _own_footer(path: Place, footer: pq.FileMetaData, header: Header) -> tuple[int, dict[str, Any]]:
    schema = footer.schema.to_arrow_schema()
    metadata = read_metadata(schema, path)
    if metadata["identity"] != header.identity:
        raise DataError(f"{path} belongs to a table of another identity; move it out of the directory")
    if lacking := set(header.schema.names).difference(schema.names):
        raise DataError(
            f"{path} belongs to a table of other columns (it has no {min(lacking)}); move it out of the directory, and "
            "put the tables together with zcpipe merge"
        )
    return footer.num_rows, metadata


def read_columns(path: Place, columns: Sequence[str]) -> pa.Table:
    """Read columns of a shard file, checking every page against its checksum."""
    several = len(columns) > 1  # Arrow decodes columns beside one another: threads for one would only cost
    read = read_parquet(path, lambda file: file.read(columns=list(columns), use_threads=several))
    return read.replace_schema_metadata(None)


def scan(directory: Place, header: Header) -> Rows:
    """Find out which rows the table has, reading the index and status columns only.

    Raises:
        DataError: a file is damaged or foreign, or two files have the same row.
    """
    builds: dict[str, Mapping[str, Any]] = {}
    paths = shard_paths(directory)
    index, status = [np.empty(0, np.int64)], [np.empty(0, np.str_)]
    for file_builds, part in each(lambda path: _scan_file(path, header), paths):
        builds |= {canonical(build): build for build in file_builds}
        index.append(part["index"].to_numpy())
        status.append(part["status"].to_numpy().astype(np.str_))
    check_distinct(paths, index[1:])
    files = tuple(zip(paths, map(len, index[1:]), strict=True))
    return Rows(np.concatenate(index), np.concatenate(status), tuple(builds.values()), files)


def _scan_file(path: Place, header: Header) -> tuple[list[Mapping[str, Any]], pa.Table]:
    def read(file: pq.ParquetFile) -> tuple[list[Mapping[str, Any]], pa.Table]:
        _, metadata = _own_footer(path, file.metadata, header)
        return builds_of(metadata), file.read(["index", "status"])

    return read_parquet(path, read)


def outcomes(path: Place, header: Header) -> dict[str, int]:
    """Return how many rows of a file ended how, from its footer; the first files did not say it there.

    Raises:
        DataError: the file is damaged or belongs to another table.
    """

    def read(file: pq.ParquetFile) -> dict[str, int]:
        _, metadata = _own_footer(path, file.metadata, header)
        if "statuses" in metadata:
            counted: dict[str, int] = metadata["statuses"]
            return counted
        return dict(Counter(file.read(["status"])["status"].to_pylist()))

    return read_parquet(path, read)


def builds_of(metadata: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the builds that computed the rows of a file, which are several where files were put together."""
    build: Mapping[str, Any] = metadata["build"]
    return list(build.get("several", [build]))


def _together(builds: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return what a file says of the builds that computed its rows."""
    return builds[0] if len(builds) == 1 else {"several": list(builds)}


def check_distinct(paths: Sequence[Place], indices: Sequence[NDArray[np.int64]]) -> None:
    """Refuse a table that has a row twice, as after copying shards of another run into it.

    Args:
        paths: its shard files.
        indices: the row indices in each.

    Raises:
        DataError: it names two files that share a row.
    """
    whole = np.concatenate([np.empty(0, np.int64), *indices])
    values, counts = np.unique(whole, return_counts=True)
    if len(values) == len(whole):
        return
    twice = int(values[counts > 1][0])
    holders = [path.name for path, rows in zip(paths, indices, strict=True) for _ in range(int((rows == twice).sum()))]
    raise DataError(
        f"row {twice} is in the table {paths[0].parent} twice, in {' and '.join(holders[:2])} "
        f"({len(whole) - len(values)} rows are); move one of the files out of the directory"
    )


def latest_run(directory: Place) -> dict[str, Any]:
    """Return what the latest run noted about itself, nothing if it did not come to that."""
    path = directory / _RUN
    if not exists(path):
        return {}
    mend = "delete it: it only notes what the latest run was asked for"
    schema = read_parquet(path, lambda file: file.schema_arrow, mend)
    noted: dict[str, Any] = read_metadata(schema, path).get("run", {})
    return noted


class Store:
    """A table opened for writing by the one process that holds its lock; see :func:`locked`."""

    def __init__(self, directory: Place, header: Header, check: Callable[[], None] = lambda: None) -> None:
        self.directory = directory
        self.header = header
        self._check = check  # raises where the lock may be another's by now
        self._amending = threading.Lock()  # a file may be amended for several shards

    def note_run(self, **run: object) -> None:
        """Replace the note about the latest run."""
        self._check()
        publish(self.directory / _RUN, encode_empty(self.header.file_schema(run={"pid": os.getpid(), **run})))

    def commit(self, shard: int, rows: pa.Table, builds: Sequence[Mapping[str, Any]]) -> Place:
        """Make rows of a shard visible, all or none; committing them a second time changes nothing.

        A file is named by which rows it holds, not by their values: only `amend` replaces one.

        Args:
            shard: number of the shard.
            rows: in the columns of the table, in any order.
            builds: what computed them.

        Raises:
            DataError: the disk is full or unwritable, or the lock was lost.
        """
        table = in_order(rows)
        name = self.header.content_hash(table["index"].to_numpy())
        path = self.directory / f"shard-{shard:05d}-{name}.parquet"
        if not exists(path):
            content = self._file(table, builds, shard=shard)
            self._check()  # as late as can be: encoding takes a while, and a machine may sleep
            publish(path, content)
        return path

    def amend(self, path: Place, rows: pa.Table, builds: Sequence[Mapping[str, Any]]) -> Place:
        """Put rows in the place of those of the same index in one of the table's files, all at once.

        Args:
            path: the file.
            rows: in the columns of the table, in any order.
            builds: what computed them.

        Raises what `commit` raises.
        """
        with self._amending:
            _, metadata = read_footer(path, self.header)
            there = read_columns(path, self.header.schema.names).cast(self.header.schema)
            kept = there.filter(~np.isin(there["index"].to_numpy(), rows["index"].to_numpy()))
            both = {canonical(build): build for build in [*builds_of(metadata), *builds]}
            own = {"shard": metadata["shard"]} if "shard" in metadata else {}
            table = in_order(pa.concat_tables([kept, rows]))
            content = self._file(table, list(both.values()), **own)
            self._check()
            publish(path, content)
        return path

    def write_rows(self, number: int, rows: pa.Table, builds: Sequence[Mapping[str, Any]]) -> Place:
        """Make rows of many shards visible, all or none, as a file of a table that is made from others.

        Args:
            number: of the file.
            rows: with the columns of the header, sorted by index.
            builds: what computed them.

        Raises what `commit` raises.
        """
        name = self.header.content_hash(rows["index"].to_numpy())
        path = self.directory / f"rows-{number:05d}-{name}.parquet"
        self._check()
        publish(path, self._file(rows, builds))
        return path

    def _file(self, rows: pa.Table, builds: Sequence[Mapping[str, Any]], **own: object) -> memoryview:
        """Return the bytes of a file, which says in its footer what computed its rows and how many ended how."""
        statuses = {pair["values"]: pair["counts"] for pair in pc.value_counts(rows["status"]).to_pylist()}
        return encode(rows.cast(self.header.file_schema(**own, build=_together(builds), statuses=statuses)))

    def write_header(self) -> None:
        """Make the table appear, which must be new.

        Raises:
            ExistsError: another process was faster.
            DataError: the disk is full or unwritable.
        """
        publish(self.directory / HEADER, encode_empty(self.header.file_schema()), exclusive=True)


@contextmanager
def locked(directory: Place, header: Header) -> Iterator[Store]:
    """Hold the lock of a table, which is made if there is none.

    Raises:
        DataError: another supervisor holds it, or the directory cannot be written.
        IdentityMismatch: a table of another identity is there.
    """
    there = find_header(directory) is not None
    make_directory(directory)
    if not there:
        with suppress(ExistsError):  # another process was faster: this goes on with its header, if that fits
            Store(directory, header).write_header()
    with hold(directory, HEADER, lambda: latest_run(directory).get("pid", "unknown")) as check:
        present = require_header(directory)
        check_identity(directory, present.identity, header.identity)
        remove_unfinished(directory)
        yield Store(directory, present, check)


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in mapping.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
