"""The supervisor: plans a run, feeds an executor, puts shards together and alone commits them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np

from zcpipe.proxies import resolve
from zcpipe.run.assembly import Assembly
from zcpipe.run.blame import Blame
from zcpipe.run.drive import TIMEOUT, check_options, drive, executors
from zcpipe.run.events import Drawn, Event, Planned, Warned
from zcpipe.run.executor import Executor
from zcpipe.run.job import Job, Plan, prepare
from zcpipe.run.leases import Leases
from zcpipe.run.spec import RunSpec
from zcpipe.run.work import Size, WorkList
from zcpipe.scoring.plan import describe as describe_plan
from zcpipe.signals import heard
from zcpipe.table.groups import find_groups, note, writing
from zcpipe.table.join import combine_status, joined_header
from zcpipe.table.place import Place
from zcpipe.table.schema import RETRIED, STATUSES, canonical
from zcpipe.table.store import latest_run, locked, scan
from zcpipe.table.summary import count_reasons

if TYPE_CHECKING:
    from zcpipe.run.nodes.cluster import Cluster


@dataclass(frozen=True)
class RunSummary:
    """How a run ended; ``by_status`` and ``reasons`` count all rows of its selection, those that were there before too.

    ``reasons`` are as those of `zcpipe.table.Status`.
    """

    path: Place
    planned: int
    present: int
    new: int
    by_status: dict[str, int]
    seconds: float
    reasons: dict[str, int]

    @property
    def failed(self) -> int:
        """How many rows are not ok."""
        return self.planned - self.by_status.get("ok", 0)


def run(
    spec: RunSpec,
    out: str | Place | None = None,
    workers: int | None = None,
    timeout: float = TIMEOUT,
    on_event: Callable[[Event], None] = lambda event: None,
    *,
    cluster: Cluster | None = None,
    memory: int | None = None,
    retry_errors: bool = False,
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
        cluster: compute on the nodes of a Ray cluster instead.
        memory: bytes that a worker process of this machine may hold, by default its share of 90 % of what there is.
        retry_errors: compute rows of the selection anew whose status is error, timeout or memory; nothing else of
            their files changes.

    Raises:
        UsageError: the spec does not fit the space, an option is out of range, or nothing ends within the timeout.
        CapabilityError: the device is not there, workers cannot be started, or the cluster cannot be used.
        DataError: the table is damaged, foreign, locked or unwritable, or made by proxies that have changed.
        IdentityMismatch: the table has another identity.
        KeyboardInterrupt: finished shards are committed and workers stopped.
    """
    started = time.monotonic()
    check_options(spec, workers, timeout, cluster)

    def drawn(done: int, total: int) -> None:
        on_event(Drawn(done, total))

    plan = prepare(spec, out, drawn)
    if cluster is not None and len(plan.done(retry_errors)) == len(plan.work.indices):
        cluster = None  # nothing to connect for
    ready = executors(workers, timeout, cluster, memory, on_event)
    with heard(), ready as executor_for, locked(plan.out, plan.base) as store:
        if find_groups(plan.out) != (plan.found or plan.groups):  # another run was faster, and has ended
            plan = prepare(spec, plan.out, drawn)
        rows = [scan(job.group.directory, job.group.header) for job in plan.jobs]
        kept = [there.kept(retry_errors) for there in rows]
        planned = len(plan.work.indices)
        present = [int(np.isin(plan.work.indices, index).sum()) for index in kept]
        done = len(reduce(np.intersect1d, kept, plan.work.indices))
        on_event(Planned(planned * len(plan.jobs), sum(present)))
        if done < planned:
            note(store)  # whose process it is that holds the lock
        lacking = [entry for entry in zip(plan.jobs, rows, kept, present, strict=True) if entry[3] < planned]
        # All of them ahead, so that a run that dies between two is seen to lack one.
        for job, there, had in zip(plan.jobs, rows, present, strict=True):
            total = len(np.union1d(there.index, plan.work.indices))
            known = latest_run(job.group.directory).get("planned", total)
            if had == planned and known <= total:
                continue
            if had == planned:
                left = f"an earlier run left {known - total} rows of {job.group.directory} undone"
                on_event(Warned(f"{left}; zcpipe status goes by this run from now on, which asks for none of them"))
            with writing(store, job.group) as own:
                note(own, planned=total, selection=job.spec.record()["selection"])
        for job, there, index, had in lacking:
            with writing(store, job.group) as own:
                again = np.isin(there.status, RETRIED) & np.isin(there.index, plan.work.indices)
                amended = there.holders(again) if retry_errors else {}
                assembly = Assembly(job.spec, own, amended, on_event)
                leases = Leases(plan.work.shards(index), planned - had)
                blame = Blame(known=amended.keys())
                _compute(executor_for(job.spec), leases, assembly, blame, there.builds, on_event)
        by_status, reasons = _count(plan)
    return RunSummary(plan.out, planned, done, planned - done, by_status, time.monotonic() - started, reasons)


def describe(
    spec: RunSpec,
    out: str | Place | None = None,
    workers: int | None = None,
    timeout: float = TIMEOUT,
    *,
    cluster: Cluster | None = None,
    retry_errors: bool = False,
) -> dict[str, Any]:
    """Say what :func:`run` would do with the same arguments, touching nothing.

    Raises what :func:`run` would raise before it computes.
    """
    check_options(spec, workers, timeout, cluster)
    plan = prepare(spec, out)
    done = plan.done(retry_errors)
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
        "groups": [_describe_job(job, plan.work, retry_errors) for job in plan.jobs],
        "schema": {field.name: str(field.type) for field in joined_header([g.header for g in plan.groups]).schema},
    }


def _counts(size: Size) -> dict[str, int | None]:
    return {"architectures": size.rows, "classes": size.classes, "shards": size.shards}


def _describe_job(job: Job, work: WorkList, retry_errors: bool) -> dict[str, Any]:
    present = np.intersect1d(work.indices, job.kept(retry_errors))
    left = work.size(present)
    return {
        "directory": str(job.group.directory),
        "exists": job.exists,
        "proxies": list(job.spec.proxies),
        "done": len(present),
        "todo": _counts(left),
        "passes": describe_plan(resolve(job.spec.proxies), job.spec.protocol),
    }


def _compute(
    executor: Executor,
    leases: Leases,
    assembly: Assembly,
    blame: Blame,
    builds: Sequence[Mapping[str, Any]],
    on_event: Callable[[Event], None],
) -> None:
    with closing(executor), assembly:
        try:
            drive(executor, leases, assembly, blame, {canonical(build) for build in builds}, on_event)
        finally:  # also what an interruption or an error leaves complete
            assembly.settle()


def _count(plan: Plan) -> tuple[dict[str, int], dict[str, int]]:
    """Count the rows of a run's selection by what the groups that it computed say together, and why they failed."""
    indices = plan.work.indices
    parts, failing = [], dict[Place, None]()
    for job in plan.jobs:
        rows = scan(job.group.directory, job.group.header)
        asked = np.isin(rows.index, indices)
        parts.append((rows.status[asked], np.searchsorted(indices, rows.index[asked])))
        failing |= dict.fromkeys(rows.holders(asked & (rows.status != "ok")).values())
    found = Counter(combine_status(parts, len(indices)))
    return {name: found[name] for name in STATUSES if found[name]}, count_reasons(list(failing), indices)
