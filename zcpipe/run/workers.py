"""The executor on this machine's cores: worker processes, supervised so that no architecture can stop a run."""

from __future__ import annotations

import math
import time
from collections import deque
from multiprocessing.connection import wait

from zcpipe.errors import CapabilityError
from zcpipe.run.executor import Lease, Outcome
from zcpipe.run.process import WorkerProcess
from zcpipe.run.rows import Failed
from zcpipe.run.spec import RunSpec
from zcpipe.run.work import Unit

_START_LIMIT = 600.0  # seconds until a worker must be ready
_FUTILE_STARTS = 3  # deaths in a row of workers that were never ready
_MEMBERS_PER_TIMEOUT = 64  # a class of more members is given the timeout several times


class WorkersExecutor:
    """Computes units in ``count`` processes of one thread each.

    A unit whose worker dies is run again, alone in a fresh process; a second death makes it a failure. What else the
    dead worker was given goes back to the queue without blame. A unit that exceeds its timeout is killed and failed.
    """

    def __init__(self, spec: RunSpec, count: int, timeout: float) -> None:
        self._spec = spec
        self._count = count
        self._timeout = timeout
        self._workers: list[WorkerProcess] = []
        self._queue: deque[Lease] = deque()
        self._suspects: deque[Unit] = deque()  # each died with its worker once
        self._died_once: set[Unit] = set()
        self._futile_starts = 0

    def wants(self) -> bool:
        """Whether the next worker to run short of units would find none."""
        return not self._queue

    def submit(self, lease: Lease) -> None:
        """Queue a lease and hand out what workers can take."""
        self._queue.append(lease)
        self._hand_out()

    def collect(self) -> list[Outcome]:
        """Wait for one or more outcomes.

        Raises:
            CapabilityError: workers cannot be started.
            ZcpipeError: a worker refuses the spec.
        """
        outcomes: list[Outcome] = []
        while not outcomes:
            self._hand_out()
            wait([channel for worker in self._workers for channel in worker.channels], timeout=self._patience())
            for worker in list(self._workers):
                outcomes += self._read(worker)
                outcomes += self._check_deadline(worker)
        return outcomes

    def close(self) -> None:
        """Stop all workers."""
        for worker in self._workers:
            worker.connection.close()
        for worker in self._workers:
            worker.end()
        self._workers.clear()
        self._queue.clear()
        self._suspects.clear()

    def _hand_out(self) -> None:
        while self._suspects and (len(self._workers) < self._count or self._retire_idle()):
            worker = self._start()
            worker.alone = True
            worker.give([self._suspects.popleft()])
        while self._queue:
            # On its last unit a worker gets the next lease ahead, so that it never waits for the supervisor.
            takers = [worker for worker in self._workers if not worker.alone and not worker.waiting]
            takers.sort(key=lambda worker: not worker.idle)
            if len(self._workers) < self._count and not (takers and takers[0].idle):
                takers.insert(0, self._start())
            if not takers:
                return
            takers[0].give(self._queue.popleft())

    def _retire_idle(self) -> bool:
        """End a worker that has nothing to do, to make room for a fresh one."""
        for worker in self._workers:
            if worker.idle:
                self._workers.remove(worker)
                worker.end()
                return True
        return False

    def _start(self) -> WorkerProcess:
        try:
            worker = WorkerProcess(self._spec)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise CapabilityError(
                f"cannot start worker {len(self._workers) + 1} of {self._count}: {reason}; use fewer --workers or "
                "raise the limits on processes, memory and open files (ulimit -a)"
            ) from error
        self._workers.append(worker)
        return worker

    def _read(self, worker: WorkerProcess) -> list[Outcome]:
        outcomes = []
        try:
            for kind, content in worker.messages():
                if kind == "refused":
                    raise content
                if kind == "counted":
                    worker.counted = content
                    continue
                worker.since = time.monotonic()
                if kind == "ready":
                    worker.ready = True
                    self._futile_starts = 0
                elif kind == "started":
                    worker.executing, worker.counted = worker.waiting.popleft(), []
                elif kind == "finished":
                    unit, rows, seconds = content
                    worker.executing, worker.alone = None, False
                    outcomes.append(Outcome(unit, rows, seconds))
        except EOFError:
            outcomes += self._bury(worker)
        return outcomes

    def _bury(self, worker: WorkerProcess) -> list[Outcome]:
        """Take a dead worker's units back and blame the one it was executing."""
        unit, seconds = worker.executing, time.monotonic() - worker.since
        reason = self._remove(worker)
        if unit is None:  # one that was ready and idle was killed from outside, and is replaced if it is needed
            if not worker.ready:
                self._count_futile_start(worker, reason)
            return []
        if unit not in self._died_once:
            self._died_once.add(unit)
            self._suspects.append(unit)
            return []
        return [Outcome(unit, Failed("error", "died", f"{reason}, twice", seconds, worker.counted), seconds)]

    def _remove(self, worker: WorkerProcess) -> str:
        """End a worker, put back what it had not begun, and return how it ended."""
        self._workers.remove(worker)
        left = list(worker.waiting)
        if worker.alone:
            self._suspects.extendleft(left)
        elif left:
            self._queue.appendleft(left)
        return worker.end()

    def _count_futile_start(self, worker: WorkerProcess, reason: str) -> None:
        self._futile_starts += 1
        if self._futile_starts >= _FUTILE_STARTS:
            said = worker.last_lines().splitlines()
            last = f"; it said: {' | '.join(said[-3:])}" if said else ""
            raise CapabilityError(
                f"workers do not start: {_FUTILE_STARTS} in a row ended before they were ready ({reason}){last}; "
                "run without --workers to see more"
            )

    def _check_deadline(self, worker: WorkerProcess) -> list[Outcome]:
        if worker not in self._workers or time.monotonic() < self._deadline(worker):
            return []
        worker.kill()
        if worker.executing is None:
            return self._bury(worker)
        unit, seconds = worker.executing, time.monotonic() - worker.since
        self._remove(worker)
        failed = Failed("timeout", "timeout", f"no result within {self._limit(unit):g} s", seconds, worker.counted)
        return [Outcome(unit, failed, seconds)]

    def _deadline(self, worker: WorkerProcess) -> float:
        if worker.executing is not None:
            return worker.since + self._limit(worker.executing)
        return math.inf if worker.ready else worker.since + _START_LIMIT

    def _limit(self, unit: Unit) -> float:
        return self._timeout * math.ceil(len(unit.members) / _MEMBERS_PER_TIMEOUT)

    def _patience(self) -> float:
        """Return for how long to wait for news at most; a death that no channel shows is looked for every second."""
        nearest = min((self._deadline(worker) for worker in self._workers), default=0.0)
        return min(1.0, max(0.0, nearest - time.monotonic()))
