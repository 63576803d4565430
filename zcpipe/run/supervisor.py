"""The supervisor: plans a run, feeds an executor, puts shards together and alone commits them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from zcpipe.errors import UsageError
from zcpipe.proxies import resolve
from zcpipe.run.executor import Executor, Lease, Outcome
from zcpipe.run.inprocess import InProcessExecutor
from zcpipe.run.job import Job, Plan, prepare
from zcpipe.run.rows import Failed, Row, RowFrame, build
from zcpipe.run.spec import RunSpec
from zcpipe.run.work import Shard, Size, WorkList
from zcpipe.run.workers import WorkersExecutor
from zcpipe.scoring.plan import describe as describe_plan
from zcpipe.table.groups import find_groups, note, writing
from zcpipe.table.join import combine_status, joined_header
from zcpipe.table.place import Place
from zcpipe.table.schema import STATUSES
from zcpipe.table.store import Rows, Store, locked, scan

_LEASE_SECONDS = 2.0
_LEASE_UNITS = 256


@dataclass(frozen=True)
class Planned:
    """A run is about to begin."""

    rows: int
    present: int


@dataclass(frozen=True)
class Scored:
    """A key class is done; ``failed`` of its rows are not ok."""

    rows: int
    failed: int


@dataclass(frozen=True)
class Committed:
    """A shard became visible."""

    path: Place
    rows: int


@dataclass(frozen=True)
class Warned:
    """Something the user should know that does not stop the run."""

    message: str


Event = Planned | Scored | Committed | Warned


@dataclass(frozen=True)
class RunSummary:
    """How a run ended; ``by_status`` counts all rows of its selection, those that were there before included."""

    path: Place
    planned: int
    present: int
    new: int
    by_status: dict[str, int]
    seconds: float

    @property
    def failed(self) -> int:
        """How many rows are not ok."""
        return self.planned - self.by_status.get("ok", 0)


def run(
    spec: RunSpec,
    out: str | Place | None = None,
    workers: int | None = None,
    timeout: float = 600.0,
    on_event: Callable[[Event], None] = lambda event: None,
) -> RunSummary:
    """Compute the rows that a table lacks. Relaunching the same call resumes what was interrupted.

    Proxies that the table does not hold join it as a group of columns (`zcpipe.table.groups`); nothing that is there is
    written again. Groups are computed one after the other, each with the rows that it lacks itself.

    Args:
        spec: what to compute.
        out: the table's directory or URI, by default ``spec.default_out()``.
        workers: number of worker processes; by default everything runs in this process, which then does not survive
            an architecture that crashes and knows no timeout.
        timeout: seconds an architecture may take in a worker process.
        on_event: told of everything that happens.

    Raises:
        UsageError: the spec does not fit the space, or an option is out of range.
        CapabilityError: the device is not there, or workers cannot be started.
        DataError: the table is damaged, foreign, locked or unwritable, or made by proxies that have changed.
        IdentityMismatch: the table has another identity.
        KeyboardInterrupt: finished shards are committed and workers stopped.
    """
    started = time.monotonic()
    _check_options(workers, timeout)
    plan = prepare(spec, out)
    with locked(plan.out, plan.base) as store:
        if find_groups(plan.out) != (plan.found or plan.groups):  # another run was faster, and has ended
            plan = prepare(spec, plan.out)
        rows = [scan(job.group.directory, job.group.header) for job in plan.jobs]
        planned = len(plan.work.indices)
        present = [int(np.isin(plan.work.indices, there.index).sum()) for there in rows]
        done = len(plan.done())
        on_event(Planned(planned * len(plan.jobs), sum(present)))
        if done < planned:
            note(store)  # whose process it is that holds the lock
        for job, there, had in zip(plan.jobs, rows, present, strict=True):
            if had < planned:
                with writing(store, job.group) as own:
                    total = len(there.index) + planned - had
                    note(own, planned=total, selection=job.spec.record()["selection"])
                    _compute(job, plan.work, own, there, workers, timeout, on_event)
        by_status = _count_by_status(plan)
    return RunSummary(plan.out, planned, done, planned - done, by_status, time.monotonic() - started)


def describe(
    spec: RunSpec, out: str | Place | None = None, workers: int | None = None, timeout: float = 600.0
) -> dict[str, Any]:
    """Say what :func:`run` would do with the same arguments, touching nothing.

    Raises what :func:`run` would raise before it computes.
    """
    _check_options(workers, timeout)
    plan = prepare(spec, out)
    done = plan.done()
    proxies = dict.fromkeys(name for job in plan.jobs for name in job.spec.proxies)
    whole, left = plan.work.size(np.empty(0, np.int64)), plan.work.size(done)
    return {
        "spec": {**plan.jobs[0].spec.record(), "proxies": list(proxies)},
        "identity": spec.identity(),
        "out": str(plan.out),
        "exists": bool(plan.found),
        "architectures": whole.rows,
        "classes": whole.classes,
        "shards": whole.shards,
        "done": len(done),
        "todo": _counts(left),
        "groups": [_describe_job(job, plan.work) for job in plan.jobs],
        "schema": {field.name: str(field.type) for field in joined_header([g.header for g in plan.groups]).schema},
    }


def _counts(size: Size) -> dict[str, int | None]:
    return {"architectures": size.rows, "classes": size.classes, "shards": size.shards}


def _describe_job(job: Job, work: WorkList) -> dict[str, Any]:
    present = np.intersect1d(work.indices, job.present())
    left = work.size(present)
    return {
        "directory": str(job.group.directory),
        "exists": job.exists,
        "proxies": list(job.spec.proxies),
        "done": len(present),
        "todo": _counts(left),
        "passes": describe_plan(resolve(job.spec.proxies), job.spec.protocol),
    }


def _check_options(workers: int | None, timeout: float) -> None:
    if workers is not None and workers < 1:
        raise UsageError(f"workers must be at least 1, got {workers}; leave the option out to run in this process")
    if not timeout > 0:
        raise UsageError(f"timeout must be a positive number of seconds, got {timeout:g}")


def _compute(
    job: Job,
    work: WorkList,
    store: Store,
    rows: Rows,
    workers: int | None,
    timeout: float,
    on_event: Callable[[Event], None],
) -> None:
    own_build = build(job.spec.device)
    if any(other != own_build for other in rows.builds):
        on_event(
            Warned(
                f"{store.directory} has rows of another build or instruction set: last digits may differ between them"
            )
        )
    executor: Executor
    executor = InProcessExecutor(job.spec) if workers is None else WorkersExecutor(job.spec, workers, timeout)
    assembly = _Assembly(job.spec, store, own_build, on_event)
    with closing(executor):
        try:
            _drive(executor, _Leases(work.shards(rows.index)), assembly)
        except KeyboardInterrupt:
            assembly.commit_finished()
            raise


def _drive(executor: Executor, leases: _Leases, assembly: _Assembly) -> None:
    while True:
        while executor.wants() and (next_lease := leases.next()):
            shard, lease = next_lease
            assembly.expect(shard)
            executor.submit(lease)
        if not assembly.waiting:
            return
        for outcome in executor.collect():
            leases.learn(outcome.seconds)
            assembly.add(outcome)
        assembly.commit_finished()


class _Leases:
    """Cuts shards into leases of about two seconds, as long as units have lately been taking."""

    def __init__(self, shards: Iterator[Shard]) -> None:
        self._shards = shards
        self._shard: Shard | None = None
        self._begin = 0
        self._pace = _LEASE_SECONDS  # seconds per unit

    def learn(self, seconds: float) -> None:
        self._pace += 0.2 * (seconds - self._pace)

    def next(self) -> tuple[Shard, Lease] | None:
        """Return the next lease and its shard, None when there is no more."""
        if self._shard is None or self._begin == len(self._shard.units):
            self._shard, self._begin = next(self._shards, None), 0
            if self._shard is None:
                return None
        begin = self._begin
        units = int(_LEASE_SECONDS / max(self._pace, 1e-6))
        self._begin = min(begin + max(1, min(units, _LEASE_UNITS)), len(self._shard.units))
        return self._shard, self._shard.units[begin : self._begin]


@dataclass
class _Open:
    missing: int  # rows
    rows: list[Row] = field(default_factory=list)


class _Assembly:
    """Puts the rows of shards together and commits whole shards only."""

    def __init__(
        self, spec: RunSpec, store: Store, own_build: Mapping[str, Any], on_event: Callable[[Event], None]
    ) -> None:
        self._store = store
        self._build = own_build
        self._on_event = on_event
        self._frame = RowFrame(spec)
        self._open: dict[int, _Open] = {}

    @property
    def waiting(self) -> bool:
        """Whether any shard is not committed yet."""
        return bool(self._open)

    def expect(self, shard: Shard) -> None:
        """Await a shard's rows."""
        self._open.setdefault(shard.id, _Open(shard.rows))

    def add(self, outcome: Outcome) -> None:
        """Take in the rows of one unit."""
        failed = isinstance(outcome.result, Failed)
        rows = (
            self._frame.failed(outcome.unit, outcome.result) if isinstance(outcome.result, Failed) else outcome.result
        )
        shard = self._open[outcome.unit.shard]
        shard.rows.extend(rows)
        shard.missing -= len(rows)
        bad = len(rows) if failed else sum(row["status"] != "ok" for row in rows)
        self._on_event(Scored(len(rows), bad))

    def commit_finished(self) -> None:
        """Commit every shard that is complete."""
        for number, shard in list(self._open.items()):
            if not shard.missing:
                path = self._store.commit(number, shard.rows, self._build)
                del self._open[number]
                self._on_event(Committed(path, len(shard.rows)))


def _count_by_status(plan: Plan) -> dict[str, int]:
    """Count the rows of a run's selection by what the groups that it computed say together."""
    indices = plan.work.indices
    parts = []
    for job in plan.jobs:
        rows = scan(job.group.directory, job.group.header)
        asked = np.isin(rows.index, indices)
        parts.append((rows.status[asked], np.searchsorted(indices, rows.index[asked])))
    found = Counter(combine_status(parts, len(indices)))
    return {name: found[name] for name in STATUSES if found[name]}
