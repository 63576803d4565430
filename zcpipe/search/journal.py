"""What a search has measured, as it came: the only state that a search has.

A record is one line: a checksum, a space and JSON. It is written at once and is durable when `Journal.append` returns;
of a process that dies in between, the piece that it left at the end is cut off when the journal is opened again. The
first line is the search's identity. Where nothing else was written, as by a search that was killed when it began, the
place is free for another one.
"""

from __future__ import annotations

import fcntl
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zcpipe.errors import DataError, IdentityMismatch
from zcpipe.table.files import disk_errors, make_directory, sync_directory
from zcpipe.table.new import require_outside
from zcpipe.table.schema import canonical

NAME = "journal"

Record = Mapping[str, Any]


class Journal:
    """The records of one search, those of earlier processes and those of this one.

    Attributes:
        found: what earlier processes recorded, in the order in which they did.
        appended: how many records this process added, the search's identity among them.
    """

    def __init__(self, descriptor: int | None = None, path: Path | None = None, found: Sequence[Record] = ()) -> None:
        self.found = found
        self.appended = 0
        self._descriptor = descriptor
        self._path = path

    def append(self, record: Record) -> None:
        """Record something, whole or not at all; without a directory nothing is kept.

        Args:
            record: what JSON can hold, and floats that are none: NaN and infinities come back as they were.

        Raises:
            DataError: the disk is full or gone.
        """
        if self._descriptor is None or self._path is None:
            return
        self.appended += 1
        line = memoryview(_line(record))
        with disk_errors("write", self._path):
            while line:
                line = line[os.write(self._descriptor, line) :]
            os.fsync(self._descriptor)


@contextmanager
def opened(directory: Path | None, identity: Record) -> Iterator[Journal]:
    """Open the journal of a search, which nobody else writes meanwhile; begin one where there is none.

    One that was begun here and ends in an error before anything is recorded leaves nothing, unless results were written
    by then: with its journal the same search may write them again.

    Args:
        directory: of the search, None to keep nothing.
        identity: what decides all that is recorded; what JSON can hold.

    Raises:
        IdentityMismatch: the directory holds another search; every field that differs is named.
        DataError: it holds something else or lies in a table, another process writes it, or the journal is damaged.
    """
    if directory is None:
        yield Journal()
        return
    made, path = not directory.exists(), directory / NAME
    if not path.exists():
        require_outside(directory)
    make_directory(directory)
    with disk_errors("use", directory):
        if not path.exists() and any(directory.iterdir()):
            raise DataError(f"{directory} is not empty and holds no search; give another --out")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    try:
        _lock(descriptor, directory)
        with disk_errors("read", path):
            records = _read(descriptor, path)
        if len(records) == 1 and _is_alone(path):
            with disk_errors("write", path):
                os.ftruncate(descriptor, 0)
            records = []
        journal = Journal(descriptor, path, records[1:])
        if records:
            _check(directory, records[0], json.loads(canonical(identity)))
        try:
            if not records:
                journal.append(identity)
                with disk_errors("write", directory):
                    sync_directory(directory)
            yield journal
        except BaseException:
            if not records and journal.appended < 2 and _is_alone(path):
                _withdraw(path, made)
            raise
    finally:
        os.close(descriptor)


def _withdraw(path: Path, made: bool) -> None:
    """Remove a journal that says nothing, and its directory if that was made for it."""
    with disk_errors("remove", path):
        path.unlink()
        if made:
            path.parent.rmdir()


def _is_alone(path: Path) -> bool:
    with disk_errors("use", path.parent):
        return all(entry.name == path.name for entry in path.parent.iterdir())


def _line(record: Record) -> bytes:
    text = canonical(record).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _lock(descriptor: int, directory: Path) -> None:
    with disk_errors("lock", directory):
        busy = f"{directory} is being written by another zcpipe search; wait for it or end it"
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(busy) from error
        if not os.fstat(descriptor).st_nlink:  # the other has withdrawn it since it was opened here
            raise DataError(busy)


def read(directory: Path) -> Sequence[Record]:
    """Return what the journal of a search holds by now, its identity first, also while another process writes it.

    Raises:
        DataError: there is none, or it is damaged.
    """
    path = directory / NAME
    with disk_errors("read", path, "name the directory of a search that you may read"):
        records, _ = _whole(path)
    if not records:
        raise DataError(f"{directory} holds no search that has begun")
    return records


def _read(descriptor: int, path: Path) -> list[Record]:
    """Read all records, and cut off what a process left unfinished at the end."""
    records, size = _whole(path)
    if size < path.stat().st_size:
        os.ftruncate(descriptor, size)
        os.fsync(descriptor)
    return records


def _whole(path: Path) -> tuple[list[Record], int]:
    """Return the records that are whole, and how many bytes they take: a process may leave a piece behind them."""
    *lines, unfinished = path.read_bytes().split(b"\n")
    records: list[Record] = []
    size = 0
    for number, line in enumerate(lines):
        record = _parse(line)
        if record is None:
            if number == len(lines) - 1 and not unfinished:
                break
            raise DataError(f"{path} is damaged in line {number + 1}; move it away and begin the search anew")
        records.append(record)
        size += len(line) + 1
    return records, size


def _parse(line: bytes) -> Record | None:
    checksum, _, text = line.partition(b" ")
    if checksum != b"%08x" % zlib.crc32(text):
        return None
    try:
        record = json.loads(text)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _check(directory: Path, there: Record, here: Record) -> None:
    names = [name for name in dict.fromkeys([*there, *here]) if there.get(name) != here.get(name)]
    if names:
        differing = [f"{name} is {there.get(name)!r} there and {here.get(name)!r} here" for name in names]
        if {"truth", "scores"} & set(names):
            differing.append("truth and scores name the rows and columns that are read of the files")
        raise IdentityMismatch(f"{directory} holds another search: {'; '.join(differing)}; choose another --out")
