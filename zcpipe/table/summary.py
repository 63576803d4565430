"""What a table holds and how far its latest run is, without reading its scores."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from zcpipe.table.files import each
from zcpipe.table.groups import Group, require_groups
from zcpipe.table.join import joined_header
from zcpipe.table.place import Place, locate
from zcpipe.table.schema import STATUSES
from zcpipe.table.store import latest_run, outcomes, shard_paths
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
    """Count a table's rows, also while a run is going on.

    The footers of its files say how many rows ended how. More is read only of files with rows that are not ok, for the
    reasons, and where columns joined later, to see which rows they are of.

    Raises:
        DataError: there is no table at ``path``, or one of its files is damaged.
    """
    directory = locate(path)
    base, *joined = require_groups(directory)
    counts = [_count(group) for group in (base, *joined)]
    by_status = _joined(directory) if joined else counts[0][1]
    rows = sum(by_status.values())
    groups = tuple(group for group, _ in counts)
    return Status(
        path=str(directory),
        identity=dict(base.header.identity),
        columns=tuple(joined_header([group.header for group in (base, *joined)]).schema.names),
        rows=rows,
        planned=max(rows, *(group.planned for group in groups)),
        shards=sum(group.shards for group in groups),
        by_status={name: by_status[name] for name in STATUSES if by_status[name]},
        reasons=_reasons(open_table(directory)) if by_status.keys() - {"ok"} else {},
        groups=groups,
    )


def _joined(directory: Place) -> Counter[str]:
    return Counter(open_table(directory).to_arrow(["status"])["status"].to_pylist())


def _count(group: Group) -> tuple[GroupStatus, Counter[str]]:
    paths = shard_paths(group.directory)
    by_status: Counter[str] = Counter()
    for found in each(lambda path: outcomes(path, group.header.identity), paths):
        by_status.update(found)
    rows = sum(by_status.values())
    planned = int(latest_run(group.directory).get("planned", rows))
    return GroupStatus(str(group.directory), group.proxies, rows, planned, len(paths)), by_status


def _reasons(table: Table) -> dict[str, int]:
    counted: Counter[str] = Counter()
    for failures in table.to_arrow(["failures"])["failures"].to_pylist():
        counted.update(f"{failure['proxy']}: {failure['message']}" for failure in failures)
    return dict(counted.most_common())
