"""Files that appear whole or not at all, on disks and in object stores, and what a failing one is called.

An object of a store appears when its upload has ended, and not before, so there nothing is written under another name
first.
"""

from __future__ import annotations

import errno
import io
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from zcpipe.errors import DataError
from zcpipe.table.place import Place

if TYPE_CHECKING:
    from upath import UPath

TEMPORARY = ".writing-"  # begins the name of every file that is not finished yet

_MENDS = {
    errno.ENOSPC: "free some space and relaunch the same command: what is finished is kept",
    errno.EDQUOT: "free some of the quota and relaunch the same command: what is finished is kept",
    errno.ENOTDIR: "give --out a directory",
    errno.EEXIST: "give --out a directory",
    errno.ENOLCK: "put --out on a file system that supports locks",
    errno.EOPNOTSUPP: "put --out on a file system that supports locks and hard links",
}
_RELAUNCH = "delete it and relaunch the same command: its rows are computed again"
_READINGS = 3  # of an object that is replaced meanwhile
_REQUESTS = 16  # to an object store at a time

T = TypeVar("T")


@contextmanager
def disk_errors(doing: str, path: Place, mend: str | None = None) -> Iterator[None]:
    """Turn an ``OSError`` of the block, or what a store's client raises, into a ``DataError`` with path and mend.

    Args:
        doing: what was tried, in the infinitive ("write").
        path: the file or directory it was tried on.
        mend: what to do about it, by default what a run that writes can do.
    """
    if not isinstance(path, Path):
        with _store_errors(doing, path):
            yield
        return
    try:
        yield
    except OSError as error:
        mend = mend or _MENDS.get(error.errno or 0, "make it accessible or choose another directory with --out")
        reason = (error.strerror or str(error)).lower()
        raise DataError(f"cannot {doing} {path}: {reason}; {mend}") from error


@contextmanager
def _store_errors(doing: str, path: UPath) -> Iterator[None]:
    try:
        yield
    except _client_errors(path.protocol) as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise DataError(f"cannot {doing} {path}: {reason[:1].lower()}{reason[1:]}; {_store_mend(error)}") from error


def _client_errors(protocol: str) -> tuple[type[Exception], ...]:
    """Return what the client of a store raises; a ``ValueError`` says that an endpoint is no URL."""
    if protocol == "s3":
        from botocore.exceptions import BotoCoreError

        return (OSError, ValueError, BotoCoreError)
    from aiohttp import ClientError
    from gcsfs.retry import HttpError
    from google.auth.exceptions import GoogleAuthError

    return (OSError, ValueError, ClientError, HttpError, GoogleAuthError)


def _store_mend(error: Exception) -> str:
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, FileNotFoundError):
        return "create it, or correct its name or the endpoint"
    if isinstance(error, PermissionError) or kinds & {"NoCredentialsError", "GoogleAuthError"}:
        return "set credentials that may list, read, write and delete there"
    if kinds & {"ValueError", "BotoCoreError"} and not kinds & {"ConnectionError", "HTTPClientError"}:
        return "correct the name of the bucket or the settings of the client"
    return "check the network, the endpoint and the region and relaunch the same command: what is there is kept"


@contextmanager
def damage(path: Place, mend: str = _RELAUNCH) -> Iterator[None]:
    """Turn whatever Parquet says about an unreadable file into a ``DataError`` that names it and the mend."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{path} has disappeared; open the table again") from error
    except PermissionError as error:
        raise DataError(f"cannot read {path}: permission denied; make it readable") from error
    except (OSError, pa.ArrowException) as error:
        reason = (str(error).splitlines() or ["unreadable"])[0].rstrip(".")
        raise DataError(f"{path} is truncated or damaged ({reason}); {mend}") from error


def names(directory: Place, mend: str | None = None) -> set[str]:
    """Return the names of what lies in a directory, nothing where there is none.

    Raises:
        DataError: it is no directory or cannot be read, or its bucket does not exist.
    """
    with disk_errors("use", directory, mend):
        if isinstance(directory, Path):
            try:
                return {entry.name for entry in directory.iterdir()}
            except FileNotFoundError:
                return set()
        return {path.rstrip("/").rpartition("/")[2] for path in listing(directory)}


def listing(directory: UPath) -> dict[str, dict[str, object]]:
    """Return what a store knows about each object and prefix below a prefix, by full path."""
    try:
        found = directory.fs.ls(directory.path, detail=True, refresh=True)
    except FileNotFoundError:
        _require_bucket(directory)
        return {}
    return {entry["name"]: entry for entry in found if entry["name"].rstrip("/") != directory.path}


def _require_bucket(directory: UPath) -> None:
    bucket = directory.parts[0].rstrip("/")
    try:
        directory.fs.info(bucket)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no bucket {bucket}") from error


def read_parquet(path: Place, use: Callable[[pq.ParquetFile], T], mend: str = _RELAUNCH) -> T:
    """Read a Parquet file such that every page is checked; what is read of an object is fetched in few requests.

    An object that is replaced while it is read, as by ``--retry-errors``, seems damaged: what is fetched first and last
    is of two objects. It is read again.

    Args:
        path: the file.
        use: returns what is read of it; may be called again.
        mend: what to do about damage.

    Raises:
        DataError: it is damaged or gone, cannot be read, or is replaced each time.
    """
    if isinstance(path, Path):
        with damage(path, mend):
            if path.exists() and not path.is_file():
                raise OSError("it is a directory, pipe or device")  # whose end may never come
        with damage(path, mend), pq.ParquetFile(path, page_checksum_verification=True) as file:
            return use(file)
    for _ in range(_READINGS):
        with damage(path, mend):
            source = _Object(path)
        try:
            with damage(path, mend), pq.ParquetFile(source, pre_buffer=True, page_checksum_verification=True) as file:
                return use(file)
        except DataError:
            with damage(path, mend):
                if not source.is_replaced():
                    raise
    raise DataError(f"{path} was replaced while it was read, {_READINGS} times; try again")


class _Object(io.RawIOBase):
    """An object of a store as a file. What the store says ends as our error: pyarrow's are about the content."""

    def __init__(self, path: UPath) -> None:
        self._path = path
        self._at = 0
        self._state = self._look()
        self._size = int(self._state[0])

    def is_replaced(self) -> bool:
        """Whether another object has the name by now."""
        return self._look() != self._state

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        stop = self._size if size < 0 else min(self._at + size, self._size)
        if stop <= self._at:
            return b""
        content: bytes = self._ask(lambda: self._path.fs.cat_file(self._path.path, start=self._at, end=stop))
        self._at += len(content)
        return content

    def _look(self) -> tuple[Any, ...]:
        """Return the size and what a store has to tell contents apart, which each client gives another name."""
        found = self._ask(lambda: self._path.fs.info(self._path.path))
        return tuple(found.get(name) for name in ("size", "ETag", "etag", "generation"))

    def _ask(self, request: Callable[[], T]) -> T:
        with disk_errors("read", self._path):
            try:
                return request()
            except FileNotFoundError as error:
                missing = error
        raise missing


def each(function: Callable[[Place], T], paths: Sequence[Place]) -> list[T]:
    """Call a function with each path, in order; many at a time where that waits for a store."""
    if not paths or isinstance(paths[0], Path):
        return [function(path) for path in paths]
    with ThreadPoolExecutor(_REQUESTS) as pool:
        return list(pool.map(function, paths))


class ExistsError(DataError):
    """A file that was to be made anew is there already, whole, and stays as it is."""


def publish(path: Place, content: bytes | memoryview, *, exclusive: bool = False) -> None:
    """Write a file so that other processes, and this one after a crash, see it whole or not at all.

    Args:
        path: the file; other processes may publish it at the same time.
        content: all of it.
        exclusive: make the file and never replace one: of several processes exactly one succeeds.

    Raises:
        ExistsError: the file must be new, and another is there.
        DataError: the disk is full, read-only or gone, or the store refuses; no half-written file is left.
    """
    if not isinstance(path, Path):
        _put(path, bytes(content), exclusive)
        return
    temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(8)}.part")
    with disk_errors("write", path):
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            _link(temporary, path) if exclusive else temporary.replace(path)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        sync_directory(path.parent)


def _put(path: UPath, content: bytes, exclusive: bool) -> None:
    with disk_errors("write", path):
        try:
            path.fs.pipe_file(path.path, content, mode="create" if exclusive else "overwrite")
        except OSError as error:
            if exclusive and exists(path):  # stores differ in how they say so
                raise _taken(path) from error
            raise


def _link(temporary: Path, path: Path) -> None:
    """Give a finished file its name, unless the name is taken: a rename would replace what has it."""
    try:
        path.hardlink_to(temporary)
    except (FileExistsError, FileNotFoundError) as error:
        # Not found: whoever made the file first has it locked and removed our leftover (`remove_unfinished`).
        if not os.path.lexists(path):
            raise
        raise _taken(path) from error


def _taken(path: Place) -> ExistsError:
    return ExistsError(f"{path} exists already and is not overwritten; give another name or remove it")


def exists(path: Place) -> bool:
    """Whether there is a file.

    Raises:
        DataError: it cannot be known.
    """
    with disk_errors("use", path):
        if isinstance(path, Path):
            return path.exists()
        try:
            return bool(path.fs.info(path.path)["type"] == "file")
        except FileNotFoundError:
            return False


def make_directory(directory: Place) -> None:
    """Make a directory unless it is there; stores have none to be made."""
    if isinstance(directory, Path):
        with disk_errors("create", directory):
            directory.mkdir(parents=True, exist_ok=True)


def remove(path: Place) -> None:
    """Remove a file; it may be gone already."""
    with disk_errors("remove", path):
        if isinstance(path, Path):
            path.unlink(missing_ok=True)
        else:
            with suppress(FileNotFoundError):
                path.fs.rm_file(path.path)


def remove_unfinished(directory: Place) -> None:
    """Remove what dead runs left half-written; only the holder of the table's lock may call this.

    Nobody else writes shards and notes, so those are leftovers. A header that another process is writing belongs to
    one that has lost: the holder's is there already, which is what `publish` then tells it.
    """
    if isinstance(directory, Path):
        with disk_errors("clean", directory):
            for leftover in directory.glob(f"{TEMPORARY}*"):
                leftover.unlink(missing_ok=True)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable, which syncing a file alone does not."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
