"""Files that appear whole or not at all, and what a failing disk is called."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa

from zcpipe.errors import DataError

TEMPORARY = ".writing-"  # begins the name of every file that is not finished yet

_MENDS = {
    errno.ENOSPC: "free some space and relaunch the same command: finished shards are kept",
    errno.EDQUOT: "free some of the quota and relaunch the same command: finished shards are kept",
    errno.ENOTDIR: "give --out a directory",
    errno.EEXIST: "give --out a directory",
    errno.ENOLCK: "put --out on a file system that supports locks",
    errno.EOPNOTSUPP: "put --out on a file system that supports locks",
}


@contextmanager
def disk_errors(doing: str, path: Path) -> Iterator[None]:
    """Turn an ``OSError`` of the block into a ``DataError`` that names the path and the mend.

    Args:
        doing: what was tried, in the infinitive ("write").
        path: the file or directory it was tried on.
    """
    try:
        yield
    except OSError as error:
        mend = _MENDS.get(error.errno or 0, "make it accessible or choose another directory with --out")
        reason = (error.strerror or str(error)).lower()
        raise DataError(f"cannot {doing} {path}: {reason}; {mend}") from error


@contextmanager
def damage(
    path: Path, mend: str = "delete it and relaunch the same command: its rows are computed again"
) -> Iterator[None]:
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


def publish(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that other processes, and this one after a crash, see it whole or not at all.

    Raises:
        DataError: the disk is full, read-only or gone; no half-written file is left.
    """
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}.part")
    with disk_errors("write", path):
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        _sync_directory(path.parent)


def remove_unfinished(directory: Path) -> None:
    """Remove what dead runs left half-written; only the holder of the table's lock may call this."""
    with disk_errors("clean", directory):
        for leftover in directory.glob(f"{TEMPORARY}*"):
            leftover.unlink(missing_ok=True)


def _sync_directory(directory: Path) -> None:
    """Make the names in a directory durable, which syncing a file alone does not."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
