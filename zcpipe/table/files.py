"""Files that appear whole or not at all, and what a failing disk is called."""

from __future__ import annotations

import errno
import os
import secrets
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
    errno.EOPNOTSUPP: "put --out on a file system that supports locks and hard links",
}


@contextmanager
def disk_errors(doing: str, path: Path, mend: str | None = None) -> Iterator[None]:
    """Turn an ``OSError`` of the block into a ``DataError`` that names the path and the mend.

    Args:
        doing: what was tried, in the infinitive ("write").
        path: the file or directory it was tried on.
        mend: what to do about it, by default what a run that writes can do.
    """
    try:
        yield
    except OSError as error:
        mend = mend or _MENDS.get(error.errno or 0, "make it accessible or choose another directory with --out")
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


class ExistsError(DataError):
    """A file that was to be made anew is there already, whole, and stays as it is."""


def publish(path: Path, content: bytes | memoryview, *, exclusive: bool = False) -> None:
    """Write a file so that other processes, and this one after a crash, see it whole or not at all.

    Args:
        path: the file; other processes may publish it at the same time.
        content: all of it.
        exclusive: make the file and never replace one: of several processes exactly one succeeds.

    Raises:
        ExistsError: the file must be new, and another is there.
        DataError: the disk is full, read-only or gone; no half-written file is left.
    """
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
        _sync_directory(path.parent)


def _link(temporary: Path, path: Path) -> None:
    """Give a finished file its name, unless the name is taken: a rename would replace what has it."""
    try:
        path.hardlink_to(temporary)
    except (FileExistsError, FileNotFoundError) as error:
        # Not found: whoever made the file first has it locked and removed our leftover (`remove_unfinished`).
        if not os.path.lexists(path):
            raise
        raise ExistsError(f"{path} exists already and is not overwritten; give another name or remove it") from error


def remove_unfinished(directory: Path) -> None:
    """Remove what dead runs left half-written; only the holder of the table's lock may call this.

    Nobody else writes shards and notes, so those are leftovers. A header that another process is writing belongs to
    one that has lost: the holder's is there already, which is what `publish` then tells it.
    """
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
