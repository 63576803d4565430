"""Having executors compute: which there are, and feeding one until everything that was asked for has its rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from zcpipe.errors import UsageError
from zcpipe.run.blame import Blame
from zcpipe.run.events import Event, Warned
from zcpipe.run.executor import Done, Executor, Lease
from zcpipe.run.inprocess import InProcessExecutor
from zcpipe.run.leases import Leases
from zcpipe.run.memory import share
from zcpipe.run.rows import Failed, check_device
from zcpipe.run.spec import RunSpec
from zcpipe.run.work import Shard, Unit
from zcpipe.run.workers import WorkersExecutor
from zcpipe.signals import require_going_on, undisturbed
from zcpipe.table.store import differences

if TYPE_CHECKING:
    from zcpipe.run.nodes.cluster import Cluster

_FIRST = 20  # networks, none of which is ok
TIMEOUT = 600.0  # seconds that an architecture may take in a worker process, unless it is told otherwise


class Sink(Protocol):
    """What takes the rows of shards."""

    @property
    def waiting(self) -> bool:
        """Whether any shard that is expected lacks rows."""
        ...

    def expect(self, shard: Shard) -> None:
        """Await a shard's rows."""
        ...

    def add(self, done: Done) -> None:
        """Take in rows."""
        ...

    def fail(self, unit: Unit, failed: Failed) -> None:
        """Take in a unit of which nothing is known but why it has no scores."""
        ...

    def commit_finished(self) -> None:
        """Pass on what is complete; called after every look at what has come."""
        ...


def check_options(spec: RunSpec, workers: int | None, timeout: float, cluster: Cluster | None) -> None:
    """Refuse options that do not go together, and a device that is not there.

    Raises:
        UsageError: workers beside a cluster, none of them, or a timeout that is not positive.
        CapabilityError: this machine or this torch lacks the device.
    """
    if workers is not None and cluster is not None:
        raise UsageError("a run computes with workers of this machine or on nodes; give one of the two")
    if workers is not None and workers < 1:
        raise UsageError(f"workers must be at least 1, got {workers}; leave the option out to run in this process")
    if not timeout > 0:
        raise UsageError(f"timeout must be a positive number of seconds, got {timeout:g}")
    if cluster is None:
        check_device(spec.device)


@contextmanager
def executors(
    workers: int | None,
    timeout: float,
    cluster: Cluster | None,
    memory: int | None,
    on_event: Callable[[Event], None],
) -> Iterator[Callable[[RunSpec], Executor]]:
    """Make ready what computes, and yield what makes an executor for a spec."""
    if cluster is not None:
        from zcpipe.run.nodes.cluster import connected
        from zcpipe.run.nodes.executor import NodesExecutor

        with connected(cluster):
            yield lambda spec: NodesExecutor(spec, cluster, timeout, on_event)
    elif workers is not None:
        yield lambda spec: WorkersExecutor(spec, [{}] * workers, timeout, memory or share(workers), on_event=on_event)
    else:
        yield InProcessExecutor


def drive(
    executor: Executor,
    leases: Leases,
    sink: Sink,
    blame: Blame,
    builds: set[str],
    on_event: Callable[[Event], None],
) -> None:
    """Have an executor compute leases until the sink has all rows.

    Args:
        executor: computes.
        leases: of the shards to be computed.
        sink: takes their rows.
        blame: decides what becomes of units that ended their workers.
        builds: what computed the rows that are there; those of the new ones are added.
        on_event: warned of rows of another build, and where none of the first architectures is ok.

    Raises:
        UsageError: nothing ends within the timeout.
        CapabilityError: nothing can compute, or every unit ends its worker.
        ZcpipeError: the executor refuses the spec, or the space raises.
        KeyboardInterrupt: a signal has asked for the end, now or before.
    """
    first = _FirstRows(on_event)
    require_going_on()
    while True:
        while executor.wants() and (following := leases.next(executor.capacity)):
            shard, lease = following
            sink.expect(shard)
            executor.submit(lease)
        if not sink.waiting:
            return
        outcomes = executor.collect()
        require_going_on()  # what was scored may have made a failure of the interruption
        with undisturbed():  # what is complete is committed, and said
            for outcome in outcomes:
                if isinstance(outcome, Done):
                    leases.learn(len(outcome.units), outcome.seconds)
                    blame.acquit(outcome.units)
                    _compare(builds, outcome.build, on_event)
                    first.look(outcome)
                    sink.add(outcome)
                elif isinstance(judged := blame.judge(outcome), Lease):
                    executor.submit(judged)
                else:
                    sink.fail(outcome.unit, judged)
            sink.commit_finished()


class _FirstRows:
    """Warns, once, where something must be wrong with all: a run of days goes on, but whoever looks sees it now."""

    def __init__(self, on_event: Callable[[Event], None]) -> None:
        self._on_event = on_event
        self._units = 0

    def look(self, done: Done) -> None:
        """Take note of rows, until one is ok or enough are not."""
        if self._units >= _FIRST:
            return
        statuses, failures = done.rows["status"].to_pylist(), done.rows["failures"].to_pylist()
        if "ok" in statuses:
            self._units = _FIRST
            return
        self._units += len(done.units)
        if self._units >= _FIRST:
            reason, *others = (f"{one['proxy']}: {one['message']}" for one in failures[-1])
            more = f", and {len(others)} more" if others else ""
            self._on_event(Warned(f"none of the first {self._units} networks is ok; the last has {reason}{more}"))


def _compare(builds: set[str], build: str, on_event: Callable[[Event], None]) -> None:
    """Warn, once for each, of rows of another build than the others of the table, and say in what it differs."""
    if build and build not in builds:
        here = json.loads(build)
        said = [differences(json.loads(there), here) for there in sorted(builds)]
        builds.add(build)
        if said:
            nearest = min(said, key=len)
            consequence = "their values may differ where the code does, their last digits otherwise"
            on_event(Warned(f"rows of another build join the table ({nearest}): {consequence}"))
