"""What a table holds and how far its latest run is, without reading its scores."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zcpipe.table.schema import STATUSES
from zcpipe.table.store import latest_run, read_columns, require_header, scan, shard_paths


@dataclass(frozen=True)
class Status:
    """Counts of a table; ``planned`` is what was there when the latest run began plus what it was asked to add."""

    path: str
    identity: dict[str, Any]
    columns: tuple[str, ...]
    rows: int
    planned: int
    shards: int
    by_status: dict[str, int]
    reasons: dict[str, int]  # "proxy: what went wrong" -> rows, the most frequent first; ``*`` is every proxy of a pass

    @property
    def complete(self) -> bool:
        """Whether the latest run has nothing left to do."""
        return self.rows >= self.planned


def status(path: str | Path) -> Status:
    """Count a table's rows from the footers and the status column of its files.

    Raises:
        DataError: there is no table at ``path``, or one of its files is damaged.
    """
    directory = Path(path)
    header = require_header(directory)
    rows = scan(directory, header)
    found = Counter(rows.status.tolist())
    return Status(
        path=str(directory),
        identity=dict(header.identity),
        columns=tuple(header.schema.names),
        rows=len(rows.index),
        planned=int(latest_run(directory).get("planned", len(rows.index))),
        shards=len(shard_paths(directory)),
        by_status={name: found[name] for name in STATUSES if found[name]},
        reasons={} if set(found) <= {"ok"} else _reasons(directory),
    )


def _reasons(directory: Path) -> dict[str, int]:
    counted: Counter[str] = Counter()
    for path in shard_paths(directory):
        for failures in read_columns(path, ["failures"])["failures"].to_pylist():
            counted.update(f"{failure['proxy']}: {failure['message']}" for failure in failures)
    return dict(counted.most_common())
