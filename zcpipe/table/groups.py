"""Column groups: proxies that joined a table after it was made, each group a complete table of its own beside it.

The groups of a table T are in the directory ``T.columns``, numbered in the order in which they joined, with the files,
shards and identity that T has. They are beside T and not in it, because polars, DuckDB and Hugging Face's datasets take
a directory with all that is below: T itself stays what they read, unchanged. Only who holds the lock of T adds or
writes groups.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from zcpipe.errors import DataError
from zcpipe.table.files import disk_errors
from zcpipe.table.schema import Header
from zcpipe.table.store import Store, find_header, latest_run, locked, require_header


@dataclass(frozen=True)
class Group:
    """The table itself, or a group of columns that joined it."""

    directory: Path
    header: Header

    @property
    def proxies(self) -> tuple[str, ...]:
        """Names of the proxies and counts that it holds."""
        return tuple(column.name for column in self.header.columns if column.kind != "statistic")


def companion(directory: Path) -> Path:
    """Return the directory of a table's groups, wherever a link to the table lies."""
    return Path(f"{directory.resolve()}.columns")


def find_groups(directory: Path) -> list[Group]:
    """Return the table in a directory and then the groups that joined it, in order; nothing where there is no table.

    Raises:
        UsageError: the path cannot be written as text.
        DataError: the path holds other things than a table, or groups are missing or of another table.
    """
    base = find_header(directory)
    beside = companion(directory)
    joined = [Group(path, header) for path in _numbered(beside) if (header := find_header(path)) is not None]
    if base is None:
        if joined:
            raise DataError(
                f"{beside} holds columns of a table that is not at {directory}; bring it back or remove them"
            )
        return []
    for group in joined:
        if group.header.identity != base.identity:
            raise DataError(f"{group.directory} holds columns of a table of another identity; move {beside} away")
    noted = latest_run(directory).get("groups", 0)
    if len(joined) < noted:
        raise DataError(
            f"{directory} has {noted} column groups, but {beside} holds {len(joined)}; move that directory along with "
            "the table (to do without them, delete _run.parquet in the table)"
        )
    return [Group(directory, base), *joined]


def require_groups(directory: Path) -> list[Group]:
    """Return a table that is to be read, and its groups.

    Raises what `find_groups` does, and ``DataError`` where there is no table.
    """
    require_header(directory)
    return find_groups(directory)


def next_group(directory: Path) -> Path:
    """Return where a further group of a table goes; a dead run may have left an unfinished one there."""
    made = [int(path.name) for path in _numbered(companion(directory)) if find_header(path) is not None]
    return companion(directory) / f"{max(made, default=0) + 1:04d}"


@contextmanager
def writing(store: Store, group: Group) -> Iterator[Store]:
    """Open a group for writing while the lock of its table is held; it is made if there is none.

    Args:
        store: the table, as `zcpipe.table.store.locked` opened it.
        group: the table itself or one of its groups.
    """
    if group.directory == store.directory:
        yield store
        return
    with locked(group.directory, group.header) as own:
        joined = len(find_groups(store.directory)) - 1
        if joined != latest_run(store.directory).get("groups", 0):
            note(store, groups=joined)
        yield own


def note(store: Store, **changed: object) -> None:
    """Note something about the latest run on a table, and keep what else was noted."""
    store.note_run(**{**latest_run(store.directory), "pid": os.getpid(), **changed})


def _numbered(beside: Path) -> list[Path]:
    with disk_errors("read", beside):
        if not beside.is_dir():
            return []
        return sorted(path for path in beside.iterdir() if path.name.isdecimal())
