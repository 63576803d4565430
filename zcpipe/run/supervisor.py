"""The supervisor: plans a run, feeds an executor, puts shards together and alone commits them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from zcpipe.errors import DataError, UsageError
from zcpipe.proxies import resolve
from zcpipe.run.executor import Executor, Lease, Outcome
from zcpipe.run.inprocess import InProcessExecutor
from zcpipe.run.rows import Failed, Row, RowFrame, build, check_device
from zcpipe.run.spec import RunSpec
from zcpipe.run.work import Shard, WorkList, plan
from zcpipe.run.workers import WorkersExecutor
from zcpipe.scoring.columns import Column
from zcpipe.scoring.plan import describe as describe_plan
from zcpipe.scoring.rows import ClassScorer
from zcpipe.table.schema import STATUSES, Header
from zcpipe.table.store import Rows, Store, check_identity, find_header, locked, scan

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

    path: Path
    rows: int


@dataclass(frozen=True)
class Warned:
    """Something the user should know that does not stop the run."""

    message: str


Event = Planned | Scored | Committed | Warned


@dataclass(frozen=True)
class RunSummary:
    """How a run ended; ``by_status`` counts all rows of its selection, those that were there before included."""

    path: Path
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
    out: Path | None = None,
    workers: int | None = None,
    timeout: float = 600.0,
    on_event: Callable[[Event], None] = lambda event: None,
) -> RunSummary:
    """Compute the rows that a table lacks. Relaunching the same call resumes what was interrupted.

    Args:
        spec: what to compute.
        out: the table's directory, by default ``spec.default_out()``.
        workers: number of worker processes; by default everything runs in this process, which then does not survive
            an architecture that crashes and knows no timeout.
        timeout: seconds an architecture may take in a worker process.
        on_event: told of everything that happens.

    Raises:
        UsageError: the spec does not fit the space, or an option is out of range.
        CapabilityError: the device is not there, or workers cannot be started.
        DataError: the table is damaged, foreign, locked or unwritable, or lacks columns of these proxies.
        IdentityMismatch: the table has another identity.
        KeyboardInterrupt: finished shards are committed and workers stopped.
    """
    started = time.monotonic()
    _check_options(workers, timeout)
    job = _prepare(spec, out)
    with locked(job.out, job.header) as store:
        rows = scan(job.out, job.header)
        present = np.intersect1d(job.work.indices, rows.index)
        planned = len(job.work.indices)
        todo = planned - len(present)
        on_event(Planned(planned, len(present)))
        if todo:
            store.note_run(planned=len(rows.index) + todo, selection=job.spec.record()["selection"])
            _compute(job, store, rows, workers, timeout, on_event)
        by_status = _count_by_status(job)
    return RunSummary(job.out, planned, len(present), todo, by_status, time.monotonic() - started)


def describe(
    spec: RunSpec, out: Path | None = None, workers: int | None = None, timeout: float = 600.0
) -> dict[str, Any]:
    """Say what :func:`run` would do with the same arguments, touching nothing.

    Raises what :func:`run` would raise before it computes.
    """
    _check_options(workers, timeout)
    job = _prepare(spec, out)
    exists = find_header(job.out) is not None
    present = np.intersect1d(job.work.indices, scan(job.out, job.header).index if exists else np.empty(0, np.int64))
    whole, left = job.work.size(np.empty(0, np.int64)), job.work.size(present)
    return {
        "spec": job.spec.record(),
        "identity": job.spec.identity(),
        "out": str(job.out),
        "exists": exists,
        "architectures": whole.rows,
        "classes": whole.classes,
        "shards": whole.shards,
        "done": len(present),
        "todo": {"architectures": left.rows, "classes": left.classes, "shards": left.shards},
        "passes": describe_plan(resolve(job.spec.proxies), job.spec.protocol),
        "schema": {field.name: str(field.type) for field in job.header.schema},
    }


@dataclass(frozen=True)
class _Job:
    spec: RunSpec
    out: Path
    header: Header
    work: WorkList


def _check_options(workers: int | None, timeout: float) -> None:
    if workers is not None and workers < 1:
        raise UsageError(f"workers must be at least 1, got {workers}; leave the option out to run in this process")
    if not timeout > 0:
        raise UsageError(f"timeout must be a positive number of seconds, got {timeout:g}")


def _prepare(spec: RunSpec, out: Path | None) -> _Job:
    """Fit a spec to the table that is already there, if any, and plan its rows."""
    out = spec.default_out() if out is None else out
    check_device(spec.device)
    present = find_header(out)
    columns = ClassScorer(spec).columns
    if present is None:
        header = Header(columns, spec.record(), spec.identity())
        return _Job(spec, out, header, plan(spec))
    check_identity(out, present.identity, spec.identity())
    _check_columns(out, present, [column.name for column in columns])
    own = {name: present.spec[name] for name in ("proxies", "classes_per_shard")}
    adopted = RunSpec.model_validate({**spec.model_dump(), **own})
    _check_same_columns(out, present, ClassScorer(adopted).columns)
    return _Job(adopted, out, present, plan(adopted))


def _check_columns(out: Path, present: Header, asked: list[str]) -> None:
    has = {column.name for column in present.columns}
    lacking = [name for name in asked if name not in has]
    if lacking:
        raise DataError(f"the table {out} has no columns {', '.join(lacking)}; score these proxies into another --out")


def _check_same_columns(out: Path, present: Header, computed: Sequence[Column]) -> None:
    """A table cannot grow by rows of other columns, as a later version of a proxy might make them."""
    there, here = ({column.name: asdict(column) for column in columns} for columns in (present.columns, computed))
    changed = [f"{name} is there only in one" for name in there.keys() ^ here.keys()]
    for name in there.keys() & here.keys():
        differing = [key for key, value in there[name].items() if here[name][key] != value]
        changed += [f"{key} of {name} is {there[name][key]!r} there and {here[name][key]!r} here" for key in differing]
    if changed:
        raise DataError(
            f"the table {out} was made by proxies that have changed since ({min(changed)}); score into another --out"
        )


def _compute(
    job: _Job, store: Store, rows: Rows, workers: int | None, timeout: float, on_event: Callable[[Event], None]
) -> None:
    own_build = build(job.spec.device)
    if any(other != own_build for other in rows.builds):
        on_event(Warned(f"{job.out} has rows of another build or instruction set: last digits may differ between them"))
    executor: Executor
    executor = InProcessExecutor(job.spec) if workers is None else WorkersExecutor(job.spec, workers, timeout)
    assembly = _Assembly(job, store, own_build, on_event)
    with closing(executor):
        try:
            _drive(executor, _Leases(job.work.shards(rows.index)), assembly)
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
        self, job: _Job, store: Store, own_build: Mapping[str, Any], on_event: Callable[[Event], None]
    ) -> None:
        self._store = store
        self._build = own_build
        self._on_event = on_event
        self._frame = RowFrame(job.spec)
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


def _count_by_status(job: _Job) -> dict[str, int]:
    rows = scan(job.out, job.header)
    found = Counter(rows.status[np.isin(rows.index, job.work.indices)].tolist())
    return {name: found[name] for name in STATUSES if found[name]}
