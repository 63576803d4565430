"""Putting the rows of shards together and committing whole shards, beside whatever else the supervisor does."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import pyarrow as pa

from zcpipe.errors import DataError
from zcpipe.run.events import Committed, Event, Scored
from zcpipe.run.executor import Done
from zcpipe.run.rows import Failed, RowFrame
from zcpipe.run.spec import RunSpec
from zcpipe.run.work import Shard, Unit
from zcpipe.table.place import Place
from zcpipe.table.schema import count_retried, to_arrow
from zcpipe.table.store import Store

_COMMITTERS = 2  # encoding and writing do not hold the interpreter
_IN_FLIGHT = 8  # shards that may wait for the disk before the supervisor waits too
_AMENDING = 60.0  # seconds between two times that a file is written again, unless all that it waits for is there


@dataclass
class _Open:
    missing: int  # rows
    rows: list[pa.Table] = field(default_factory=list)
    builds: set[str] = field(default_factory=set)


@dataclass
class _Amendment:
    """Rows that are to take the place of those in a file, which holds rows of many shards once it was compacted."""

    missing: int  # rows
    rows: list[pa.Table] = field(default_factory=list)
    builds: list[Mapping[str, Any]] = field(default_factory=list)
    since: float = field(default_factory=time.monotonic)  # the file was last written, or would have been

    @property
    def due(self) -> bool:
        """Whether it is time to write the file."""
        return bool(self.rows) and (not self.missing or time.monotonic() > self.since + _AMENDING)


class Assembly:
    """The shards of a run that are not visible yet. Leave its context to wait for what is being committed.

    Args:
        spec: of the run.
        store: the table, or the group of columns, opened for writing.
        amended: rows that are there and computed anew, by index, with the files that hold them. A file is written when
            all of them have come, and now and then before.
        on_event: told of rows that come in and of shards that become visible.
    """

    def __init__(
        self, spec: RunSpec, store: Store, amended: Mapping[int, Place], on_event: Callable[[Event], None]
    ) -> None:
        self._store = store
        self._amended = amended
        self._amendments = {path: _Amendment(missing) for path, missing in Counter(amended.values()).items()}
        self._on_event = on_event
        self._frame = RowFrame(spec)
        self._schema = store.header.schema
        self._open: dict[int, _Open] = {}
        self._committing: dict[Future[Place], int] = {}  # -> rows
        self._pool = ThreadPoolExecutor(_COMMITTERS, "commit")
        self._pool.submit(to_arrow, [], self._schema)  # the first table imports pandas: while workers start

    def __enter__(self) -> Assembly:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._pool.shutdown(wait=True)

    @property
    def waiting(self) -> bool:
        """Whether any shard lacks rows."""
        return bool(self._open)

    def expect(self, shard: Shard) -> None:
        """Await a shard's rows."""
        self._open.setdefault(shard.id, _Open(shard.rows))

    def add(self, done: Done) -> None:
        """Take in rows.

        Raises:
            DataError: they are not of this table's columns.
        """
        if not done.rows.schema.equals(self._schema, check_metadata=True):
            origin = f" from node {done.place}" if done.place else ""
            raise DataError(
                f"rows came{origin} in other columns than {self._store.directory} has; the zcpipe that computed them "
                "is another one than this: install the same everywhere"
            )
        shard = self._open[done.units[0].shard]
        shard.rows.append(done.rows)
        shard.builds.add(done.build)
        shard.missing -= len(done.rows)
        self._on_event(Scored(len(done.rows), count_retried(done.rows), done.seconds, done.place))

    def fail(self, unit: Unit, failed: Failed) -> None:
        """Take in a unit of which nothing is known but why it has no scores."""
        rows = to_arrow(self._frame.failed(unit, failed), self._schema)
        self.add(Done((unit,), rows, failed.seconds))

    def commit_finished(self) -> None:
        """Begin to commit every shard that is complete, and tell of those that have become visible.

        Raises:
            DataError: the disk is full or unwritable.
        """
        self._begin_finished()
        self._report(len(self._committing) > _IN_FLIGHT)

    def _begin_finished(self) -> None:
        for number in [number for number, shard in self._open.items() if not shard.missing]:
            shard = self._open.pop(number)
            builds = [json.loads(build) for build in sorted(shard.builds) if build]
            for holder, rows in self._by_holder(pa.concat_tables(shard.rows)).items():
                if holder is None:
                    self._begin(len(rows), self._store.commit, number, rows, builds)
                else:
                    amendment = self._amendments[holder]
                    amendment.missing -= len(rows)
                    amendment.rows.append(rows)
                    amendment.builds += builds
        self._amend([path for path, amendment in self._amendments.items() if amendment.due])

    def _by_holder(self, rows: pa.Table) -> dict[Place | None, pa.Table]:
        """Tell rows that are computed anew, by the file that holds them, from those that no file has."""
        if not self._amended:
            return {None: rows}
        holders = [self._amended.get(index) for index in rows["index"].to_pylist()]
        return {
            holder: rows.filter(pa.array([other == holder for other in holders])) for holder in dict.fromkeys(holders)
        }

    def _amend(self, paths: Sequence[Place]) -> None:
        """Begin to write files again, with the rows that have come for them."""
        for path in paths:
            amendment = self._amendments[path]
            rows = pa.concat_tables(amendment.rows)
            self._begin(len(rows), self._store.amend, path, rows, amendment.builds)
            self._amendments[path] = _Amendment(amendment.missing)

    def _begin(self, rows: int, write: Callable[..., Place], *arguments: Any) -> None:  # noqa: ANN401 - passed on
        self._committing[self._pool.submit(write, *arguments)] = rows

    def settle(self) -> None:
        """Commit every shard that is complete and wait until they are visible.

        Raises:
            DataError: the disk is full or unwritable.
        """
        self._begin_finished()
        self._amend([path for path, amendment in self._amendments.items() if amendment.rows])
        # Everything has begun, and is waited for in any case, before anybody is told of it, who may raise.
        while self._committing:
            self._report(patient=True)

    def _report(self, patient: bool) -> None:
        if patient:
            wait(self._committing, return_when="FIRST_COMPLETED")
        for future in [future for future in self._committing if future.done()]:
            rows = self._committing.pop(future)
            self._on_event(Committed(future.result(), rows))
