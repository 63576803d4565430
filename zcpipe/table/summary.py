"""What a table holds and how far its latest run is, without reading its scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from zcpipe.table.files import each
from zcpipe.table.groups import Group, require_groups
from zcpipe.table.join import Part, combine_status, joined_header, union
from zcpipe.table.place import Place, locate
from zcpipe.table.schema import STATUSES
from zcpipe.table.store import latest_run, outcomes, read_columns, shard_paths

_Outcomes = Mapping[Place, Mapping[str, int]]  # how many rows of each file ended how


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

    The footers of its files say how many rows ended how. Where rows are not ok, the reasons are read of the files that
    have them, and the index of all files; the index also where columns joined later, to see which rows they are of.

    Raises:
        DataError: there is no table at ``path``, one of its files is damaged, or, where the index is read, two of them
            have the same row.
    """
    directory = locate(path)
    found = require_groups(directory)
    files = [_outcomes(group) for group in found]
    failing = [{path: counted for path, counted in one.items() if counted.keys() - {"ok"}} for one in files]
    by_status = _total(files[0]) if len(found) == 1 else _joined(found, files, failing)
    if len(found) == 1 and failing[0]:
        _ = _part(found[0], files[0]).index  # refuses a row that two files have
    rows = by_status.total()
    groups = tuple(_count(group, one) for group, one in zip(found, files, strict=True))
    return Status(
        path=str(directory),
        identity=dict(found[0].header.identity),
        columns=tuple(joined_header([group.header for group in found]).schema.names),
        rows=rows,
        planned=max(rows, *(group.planned for group in groups)),
        shards=sum(group.shards for group in groups),
        by_status={name: by_status[name] for name in STATUSES if by_status[name]},
        reasons=count_reasons([path for one in failing for path in one]),
        groups=groups,
    )


def count_reasons(files: Sequence[Place], among: NDArray[np.int64] | None = None) -> dict[str, int]:
    """Count how many rows have which failure, as "proxy: what went wrong", the most frequent first.

    Args:
        files: of a table and its groups, those with rows that are not ok; a row that several have is counted once.
        among: indices of the rows to count, by default all.

    Raises:
        DataError: one of the files is damaged.
    """
    if not files:
        return {}
    parts = each(lambda path: _failures(path, among), files)
    failures = pa.concat_tables(parts).unify_dictionaries().sort_by("index")
    distinct = failures.group_by(["index", "reason"], use_threads=False).aggregate([])  # in order, as the next one
    counts = distinct.group_by("reason", use_threads=False).aggregate([([], "count_all")])
    counted = zip(counts["reason"].to_pylist(), counts["count_all"].to_pylist(), strict=True)
    return dict(Counter(dict(counted)).most_common())


def _failures(path: Place, among: NDArray[np.int64] | None) -> pa.Table:
    """Read the failures of a file, each with its row; a text that many share is kept once."""
    rows = read_columns(path, ["index", "failures"])
    rows = rows.filter(pc.greater(pc.list_value_length(rows["failures"]), 0))
    if among is not None:
        rows = rows.filter(np.isin(rows["index"].to_numpy(), among))
    held = rows["failures"].combine_chunks()
    proxies, _, messages = held.flatten().flatten()
    reason = pc.binary_join_element_wise(proxies, messages, ": ").dictionary_encode()
    return pa.table({"index": rows["index"].take(pc.list_parent_indices(held)), "reason": reason})


def _outcomes(group: Group) -> _Outcomes:
    paths = shard_paths(group.directory)
    found = each(lambda path: outcomes(path, group.header), paths)
    return dict(zip(paths, found, strict=True))


def _total(files: _Outcomes) -> Counter[str]:
    return sum(map(Counter, files.values()), Counter[str]())


def _count(group: Group, files: _Outcomes) -> GroupStatus:
    rows = _total(files).total()
    planned = int(latest_run(group.directory).get("planned", rows))
    return GroupStatus(str(group.directory), group.proxies, rows, planned, len(files))


def _joined(groups: Sequence[Group], files: Sequence[_Outcomes], failing: Sequence[_Outcomes]) -> Counter[str]:
    """Count the rows that any group has: what became of those that are not ok in one of them, and the others."""
    whole = union([_part(group, one) for group, one in zip(groups, files, strict=True)])
    parts = []
    for group, one in zip(groups, failing, strict=True):
        rows = _part(group, one).read(["index", "status"])
        rows = rows.filter(pc.not_equal(rows["status"], "ok"))
        parts.append((rows["status"].to_numpy().astype(np.str_), rows["index"].to_numpy()))
    failed = np.unique(np.concatenate([index for _, index in parts]))
    statuses = combine_status([(status, np.searchsorted(failed, index)) for status, index in parts], len(failed))
    return Counter(statuses) + Counter(ok=len(whole) - len(failed))


def _part(group: Group, files: _Outcomes) -> Part:
    return Part(group.header, {path: sum(counted.values()) for path, counted in files.items()})
