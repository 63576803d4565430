"""The directory of a table: its header, its lock, its shards, and how they are committed.

Everything in the directory is Parquet, so that any reader opens the directory itself:

- ``_zcpipe.parquet``: no rows; the schema, spec and identity, made once and never replaced, because it is also what
  the supervisor locks.
- ``_run.parquet``: no rows; what the latest run was asked for (process, selection, planned rows) and how many groups of
  columns joined the table, replaced by each run.
- ``shard-<id>-<hash>.parquet``: the rows of a shard, or those that a grown range added to it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from zcpipe.errors import DataError, IdentityMismatch, UsageError
from zcpipe.table.files import TEMPORARY, ExistsError, damage, disk_errors, publish, remove_unfinished
from zcpipe.table.schema import Header, canonical, encode, encode_empty, in_order, read_header, read_metadata

_HEADER = "_zcpipe.parquet"
_RUN = "_run.parquet"
_KEEP_MEND = "restore it from a copy, or choose another directory with --out"


@dataclass(frozen=True)
class Rows:
    """Which rows a table has, in the order of its files, and how they ended."""

    index: NDArray[np.int64]
    status: NDArray[np.str_]
    builds: tuple[Mapping[str, Any], ...]  # the different builds that computed them


def find_header(directory: Path) -> Header | None:
    """Return the header of the table in a directory, None where there is no table yet.

    Raises:
        UsageError: the path cannot be written as text, which Parquet readers need.
        DataError: the path is not a directory, or it holds other things.
    """
    names = _names(directory)
    header = _read_header(directory)
    foreign = sorted(name for name in names if not name.startswith(TEMPORARY))
    if header is None and foreign:
        raise DataError(
            f"{directory} is not empty and not a zcpipe table (it holds {foreign[0]}); choose another --out"
        )
    return header


def require_header(directory: Path) -> Header:
    """Return the header of a table that is to be read.

    Raises:
        UsageError: the path cannot be written as text, which Parquet readers need.
        DataError: there is no table at the path, or it cannot be read.
    """
    names = _names(directory, "name the directory of a table, as zcpipe run made it")
    header = _read_header(directory)
    if header is None:
        mend = f"make it with zcpipe run --out {directory}" if not names else "name the directory of a table"
        raise DataError(f"{directory} holds no zcpipe table; {mend}")
    return header


def _names(directory: Path, mend: str | None = None) -> set[str]:
    """Return what lies in a directory, nothing where there is none."""
    try:
        str(directory).encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"the directory {str(directory)!a} is not named in UTF-8; choose another name") from error
    with disk_errors("use", directory, mend):
        try:
            return {entry.name for entry in directory.iterdir()}
        except FileNotFoundError:
            return set()


def _read_header(directory: Path) -> Header | None:
    path = directory / _HEADER
    with disk_errors("use", path):
        if not path.exists():
            return None
    with damage(path, _KEEP_MEND):
        schema = pq.read_schema(path)
    return read_header(schema, path)


def check_identity(directory: Path, present: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Refuse to go on with a table of another identity.

    Raises:
        IdentityMismatch: it names every differing field with both values.
    """
    old, new = _flat(present), _flat(asked)
    differing = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    if differing:
        shown = ", ".join(f"{name} is {old.get(name)!r} there and {new.get(name)!r} here" for name in differing)
        raise IdentityMismatch(f"{directory} is a table of another identity: {shown}; choose another --out")


def shard_paths(directory: Path) -> list[Path]:
    """Return the table's shard files, sorted by name."""
    with disk_errors("read", directory):
        return sorted(path for path in directory.glob("*.parquet") if not path.name.startswith(("_", ".")))


def read_footer(path: Path, identity: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """Return the number of rows and the metadata of a shard file from its footer.

    Raises:
        DataError: the file is damaged or belongs to another table.
    """
    with damage(path):
        footer = pq.read_metadata(path)
        schema = footer.schema.to_arrow_schema()
    metadata = read_metadata(schema, path)
    if metadata["identity"] != identity:
        raise DataError(f"{path} belongs to a table of another identity; move it out of the directory")
    return footer.num_rows, metadata


def read_columns(path: Path, columns: Sequence[str]) -> pa.Table:
    """Read columns of a shard file, checking every page against its checksum."""
    with damage(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        return file.read(columns=list(columns)).replace_schema_metadata(None)


def scan(directory: Path, header: Header) -> Rows:
    """Find out which rows the table has, reading the index and status columns only.

    Raises:
        DataError: a file is damaged or foreign, or two files have the same row.
    """
    builds: dict[str, Mapping[str, Any]] = {}
    paths = shard_paths(directory)
    index, status = [np.empty(0, np.int64)], [np.empty(0, np.str_)]
    for path in paths:
        _, metadata = read_footer(path, header.identity)
        builds |= {canonical(build): build for build in _builds(metadata)}
        part = read_columns(path, ["index", "status"])
        index.append(part["index"].to_numpy())
        status.append(part["status"].to_numpy().astype(np.str_))
    check_distinct(paths, index[1:])
    return Rows(np.concatenate(index), np.concatenate(status), tuple(builds.values()))


def _builds(metadata: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Return what computed the rows of a file; the first version of the format had one build a file."""
    builds: Sequence[Mapping[str, Any]] = metadata.get("builds") or [metadata["build"]]
    return builds


def check_distinct(paths: Sequence[Path], indices: Sequence[NDArray[np.int64]]) -> None:
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


def latest_run(directory: Path) -> dict[str, Any]:
    """Return what the latest run noted about itself, nothing if it did not come to that."""
    path = directory / _RUN
    if not path.exists():
        return {}
    with damage(path, "delete it: it only notes what the latest run was asked for"):
        schema = pq.read_schema(path)
    noted: dict[str, Any] = read_metadata(schema, path).get("run", {})
    return noted


class Store:
    """A table opened for writing by the one process that holds its lock; see :func:`locked`."""

    def __init__(self, directory: Path, header: Header) -> None:
        self.directory = directory
        self.header = header

    def note_run(self, **run: object) -> None:
        """Replace the note about the latest run."""
        publish(self.directory / _RUN, encode_empty(self.header.file_schema(run={"pid": os.getpid(), **run})))

    def commit(self, shard: int, rows: pa.Table, builds: Sequence[Mapping[str, object]]) -> Path:
        """Make rows of a shard visible, all or none; committing them a second time changes nothing.

        A file is named by which rows it holds, not by their values: only `amend` replaces one.

        Args:
            shard: number of the shard.
            rows: in the columns of the table, in any order.
            builds: what computed them.

        Raises:
            DataError: the disk is full or unwritable.
        """
        table = in_order(rows)
        name = self.header.content_hash(table["index"].to_numpy())
        path = self.directory / f"shard-{shard:05d}-{name}.parquet"
        if not path.exists():
            publish(path, encode(table.cast(self.header.file_schema(shard=shard, builds=builds))))
        return path

    def amend(self, shard: int, rows: pa.Table, builds: Sequence[Mapping[str, object]]) -> Path:
        """Put rows of a shard in the place of those that are there, each file at once; new ones are committed.

        Takes and raises what `commit` does.
        """
        index = rows["index"].to_numpy()
        for path in sorted(self.directory.glob(f"shard-{shard:05d}-*.parquet")):
            _, metadata = read_footer(path, self.header.identity)
            there = read_columns(path, self.header.schema.names)
            again = np.isin(index, there["index"].to_numpy())
            if not again.any():
                continue
            kept = there.filter(~np.isin(there["index"].to_numpy(), index)).cast(self.header.schema)
            both = {canonical(build): build for build in [*_builds(metadata), *builds]}
            schema = self.header.file_schema(shard=shard, builds=list(both.values()))
            publish(path, encode(in_order(pa.concat_tables([kept, rows.filter(again)])).cast(schema)))
            rows, index = rows.filter(~again), index[~again]
        return self.commit(shard, rows, builds) if len(rows) else path


@contextmanager
def locked(directory: Path, header: Header) -> Iterator[Store]:
    """Hold the lock of a table, which is made if there is none.

    Raises:
        DataError: another supervisor holds it, or the directory cannot be written.
        IdentityMismatch: a table of another identity is there.
    """
    there = find_header(directory) is not None
    with disk_errors("create", directory):
        directory.mkdir(parents=True, exist_ok=True)
    if not there:
        with suppress(ExistsError):  # another process was faster: this goes on with its header, if that fits
            publish(directory / _HEADER, encode_empty(header.file_schema()), exclusive=True)
    descriptor = _lock(directory)
    try:
        present = require_header(directory)
        check_identity(directory, present.identity, header.identity)
        remove_unfinished(directory)
        yield Store(directory, present)
    finally:
        os.close(descriptor)


def _lock(directory: Path) -> int:
    """Lock the header file: the one that is there, should a user have removed the table and begun another meanwhile."""
    path = directory / _HEADER
    while True:
        with disk_errors("open", path):
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            with disk_errors("lock", path):
                _claim(descriptor, directory)
                if os.fstat(descriptor).st_ino == path.stat().st_ino:
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _claim(descriptor: int, directory: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        pid = latest_run(directory).get("pid", "unknown")
        raise DataError(
            f"{directory} is being written by another zcpipe run (process {pid}); wait for it or end it"
        ) from error


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in mapping.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
