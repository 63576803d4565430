"""What a table holds and how far its latest run is, without reading its scores."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from zcpipe.table.groups import Group, require_groups
from zcpipe.table.place import Place, locate
from zcpipe.table.schema import STATUSES
from zcpipe.table.store import latest_run, scan, shard_paths
from zcpipe.table.table import Table, open_table


@dataclass(frozen=True)
class GroupStatus:
    """Counts of the table itself or of a group of columns that joined it."""

    path: str
    proxies: tuple[str, ...]
    rows: int
    planned: int
    shards: int


@dataclass(frozen=True)
class Status:
    """Counts of a table; ``planned`` is what was there when the latest run began plus what it was asked to add.

    Where columns joined later ``rows`` is how many any group has, ``planned`` the most that a group was asked for.
    """

    path: str
    identity: dict[str, Any]
    columns: tuple[str, ...]
    rows: int
    planned: int
    shards: int
    by_status: dict[str, int]
    reasons: dict[str, int]  # "proxy: what went wrong" -> rows, the most frequent first; ``*`` is every proxy of a pass
    groups: tuple[GroupStatus, ...]  # the table itself first

    @property
    def missing(self) -> int:
        """How many rows the latest runs have left to do, those of each group counted."""
        return sum(max(0, group.planned - group.rows) for group in self.groups)

    @property
    def complete(self) -> bool:
        """Whether the latest run has nothing left to do."""
        return not self.missing


def status(path: str | Place) -> Status:
    """Count a table's rows from the footers and the status column of its files.

    Raises:
        DataError: there is no table at ``path``, or one of its files is damaged.
    """
    directory = locate(path)
    groups = tuple(_count(group) for group in require_groups(directory))
    table = open_table(directory)
    found = Counter(table.to_arrow(["status"])["status"].to_pylist())
    return Status(
        path=str(directory),
        identity=table.identity,
        columns=tuple(table.schema.names),
        rows=len(table),
        planned=max(len(table), *(group.planned for group in groups)),
        shards=sum(group.shards for group in groups),
        by_status={name: found[name] for name in STATUSES if found[name]},
        reasons={} if set(found) <= {"ok"} else _reasons(table),
        groups=groups,
    )


def _count(group: Group) -> GroupStatus:
    rows = len(scan(group.directory, group.header).index)
    planned = int(latest_run(group.directory).get("planned", rows))
    shards = len(shard_paths(group.directory))
    return GroupStatus(str(group.directory), group.proxies, rows, planned, shards)


def _reasons(table: Table) -> dict[str, int]:
    counted: Counter[str] = Counter()
    for failures in table.to_arrow(["failures"])["failures"].to_pylist():
        counted.update(f"{failure['proxy']}: {failure['message']}" for failure in failures)
    return dict(counted.most_common())
