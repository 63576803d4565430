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

from zcpipe.errors import DataError
from zcpipe.table.files import each, names
from zcpipe.table.place import Place, beside
from zcpipe.table.schema import Header
from zcpipe.table.store import Store, find_header, latest_run, locked, read_footer, require_header, shard_paths


@dataclass(frozen=True)
class Group:
    """The table itself, or a group of columns that joined it."""

    directory: Place
    header: Header

    @property
    def proxies(self) -> tuple[str, ...]:
        """Names of the proxies and counts that it holds."""
        return tuple(column.name for column in self.header.columns if column.kind != "statistic")


def companion(directory: Place) -> Place:
    """Return the directory of a table's groups, wherever a link to the table lies."""
    return beside(directory, ".columns")


def find_groups(directory: Place) -> list[Group]:
    """Return the table in a directory and then the groups that joined it, in order; nothing where there is no table.

    Raises:
        UsageError: the path cannot be written as text.
        DataError: the path holds other things than a table, or groups are missing or of another table.
    """
    base = find_header(directory)
    where = companion(directory)
    joined = [Group(path, header) for path in _numbered(where) if (header := find_header(path)) is not None]
    if base is None:
        if joined:
            raise DataError(
                f"{where} holds columns of a table that is not at {directory}; bring it back or remove them"
            )
        return []
    for group in joined:
        if group.header.identity != base.identity:
            raise DataError(f"{group.directory} holds columns of a table of another identity; move {where} away")
    noted = latest_run(directory).get("groups", 0)
    if len(joined) < noted:
        raise DataError(
            f"{directory} has {noted} column groups, but {where} holds {len(joined)}; move that directory along with "
            "the table (to do without them, delete _run.parquet in the table)"
        )
    return [Group(directory, base), *joined]


def require_groups(directory: Place) -> list[Group]:
    """Return a table that is to be read, and its groups.

    Raises what `find_groups` does, and ``DataError`` where there is no table.
    """
    require_header(directory)
    return find_groups(directory)


def count_rows(group: Group) -> dict[Place, int]:
    """Return the files of a group with their numbers of rows.

    Raises:
        DataError: one of them is damaged or foreign.
    """
    files = shard_paths(group.directory)
    footers = each(lambda file: read_footer(file, group.header), files)
    return {file: rows for file, (rows, _) in zip(files, footers, strict=True)}


def next_group(directory: Place) -> Place:
    """Return where a further group of a table goes; a dead run may have left an unfinished one there."""
    made = [int(path.name) for path in _numbered(companion(directory)) if find_header(path) is not None]
    return numbered_group(directory, max(made, default=0) + 1)


def numbered_group(directory: Place, number: int) -> Place:
    """Return where a group of a table is, the first that joined being number 1."""
    return companion(directory) / f"{number:04d}"


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


def _numbered(where: Place) -> list[Place]:
    found = names(where, "move it away: columns that join the table go there")
    return [where / name for name in sorted(found) if name.isdecimal()]
