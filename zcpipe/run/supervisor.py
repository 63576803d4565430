"""The supervisor: plans a run, feeds an executor, puts shards together and alone commits them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zcpipe.errors import UsageError
from zcpipe.proxies import resolve
from zcpipe.run.assembly import Assembly
from zcpipe.run.blame import Blame
from zcpipe.run.events import Event, Planned, Warned
from zcpipe.run.executor import Done, Executor, Lease
from zcpipe.run.inprocess import InProcessExecutor
from zcpipe.run.job import Job, Plan, prepare
from zcpipe.run.leases import Leases
from zcpipe.run.memory import share
from zcpipe.run.spec import RunSpec
from zcpipe.run.work import Size, WorkList
from zcpipe.run.workers import WorkersExecutor
from zcpipe.scoring.plan import describe as describe_plan
from zcpipe.table.groups import find_groups, note, writing
from zcpipe.table.join import combine_status, joined_header
from zcpipe.table.schema import STATUSES, canonical
from zcpipe.table.store import Rows, Store, locked, scan


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

    Proxies that the table does not hold join it as a group of columns (`zcpipe.table.groups`); nothing that is there is
    written again. Groups are computed one after the other, each with the rows that it lacks itself.

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
    spec: RunSpec, out: Path | None = None, workers: int | None = None, timeout: float = 600.0
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
    executor: Executor
    if workers is None:
        executor = InProcessExecutor(job.spec)
    else:
        executor = WorkersExecutor(job.spec, [{}] * workers, timeout, share(workers))
    there = {canonical(build) for build in rows.builds}
    missing = work.size(rows.index).rows
    with closing(executor), Assembly(job.spec, store, on_event) as assembly:
        try:
            _drive(executor, Leases(work.shards(rows.index), missing), assembly, there, on_event)
        finally:  # also what an interruption or an error leaves complete
            assembly.settle()


def _drive(
    executor: Executor, leases: Leases, assembly: Assembly, builds: set[str], on_event: Callable[[Event], None]
) -> None:
    blame = Blame()
    while True:
        while executor.wants() and (following := leases.next(executor.capacity)):
            shard, lease = following
            assembly.expect(shard)
            executor.submit(lease)
        if not assembly.waiting:
            return
        for outcome in executor.collect():
            if isinstance(outcome, Done):
                leases.learn(len(outcome.units), outcome.seconds)
                blame.acquit(outcome.units)
                _compare(builds, outcome.build, on_event)
                assembly.add(outcome)
            elif isinstance(judged := blame.judge(outcome), Lease):
                executor.submit(judged)
            else:
                assembly.fail(outcome.unit, judged)
        assembly.commit_finished()


def _compare(builds: set[str], build: str, on_event: Callable[[Event], None]) -> None:
    """Warn, once for each, of rows of another build than the others of the table."""
    if build and build not in builds:
        builds.add(build)
        if len(builds) > 1:
            on_event(
                Warned("rows of another build or instruction set join the table: last digits may differ between them")
            )


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
