"""The executor on this machine's cores: worker processes, supervised so that no architecture can stop a run."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence

from zcpipe.errors import CapabilityError
from zcpipe.run.channel import wait
from zcpipe.run.events import Event, Warned
from zcpipe.run.executor import Died, Done, Lease, Outcome
from zcpipe.run.memory import format_bytes, resident
from zcpipe.run.process import SCORER, WorkerProcess
from zcpipe.run.rows import Failed
from zcpipe.run.running_clock import RunningClock
from zcpipe.run.spec import RunSpec
from zcpipe.run.work import Unit

_START_LIMIT = 600.0  # seconds until a worker must be ready
_SLOW_START = 60.0  # seconds after which what waits for a fresh worker does not count on one that is not ready
_QUIET_LIMIT = 60.0  # seconds until one that has something to do must begin it, or go on sending
_FUTILE_STARTS = 3  # deaths in a row of workers that were never ready, or as many as are alike in their environment
_PAUSE, _LONGEST_PAUSE = 1.0, 60.0  # seconds between two trials to start a worker, twice as long after each
_HELD_LIMIT = 60.0  # seconds without any worker, while processes that were killed do not end, after which a run does
_MEMBERS_PER_TIMEOUT = 64  # a class of more members is given the timeout several times
_GLANCE = 0.25  # seconds between two looks at what no channel tells: memory, deadlines
_SHORT_LIVES, _SHORT_LIFE = 10, 30.0  # workers in a row that are replaced so many seconds after they were started
_LEASES = 2  # that a worker has at one time, so that it never waits for the supervisor


class WorkersExecutor:
    """Computes units in processes of one thread each.

    A unit whose worker dies, exceeds its timeout or its memory is what the outcome tells; everything else that the
    worker was given and had not sent goes back to the queue without blame. No other worker takes the place of one whose
    process does not end when it is killed, until it does, and none is started again in an environment in which workers
    are never ready. A worker has nothing before it is ready, so that nothing waits for one that never is.

    Args:
        spec: of the run.
        environments: what each worker has in its environment beside the common; as many workers as there are of these.
        timeout: seconds that an architecture may take.
        memory: bytes that a worker may hold; one that is seen to hold more than half gets no further lease and is
            replaced when it has done those it has.
        scorer: what scores in the workers, as ``module:class``; benchmarks have one that only pretends.
        on_event: warned of what costs the run a worker.
    """

    def __init__(
        self,
        spec: RunSpec,
        environments: Sequence[Mapping[str, str]],
        timeout: float,
        memory: int | None = None,
        scorer: str = SCORER,
        on_event: Callable[[Event], None] = lambda event: None,
    ) -> None:
        self._spec = spec
        self._scorer = scorer
        self._on_event = on_event
        self._free = deque(environments)
        self._count = len(environments)
        self._alike = Counter(map(_where, environments))
        self._timeout = timeout
        self._memory = memory
        self._workers: dict[WorkerProcess, Mapping[str, str]] = {}
        self._held: dict[WorkerProcess, Mapping[str, str]] = {}  # killed, and still there
        self._queue: deque[Lease] = deque()
        self._alone: deque[Lease] = deque()
        self._tired: set[WorkerProcess] = set()
        self._short_lives = 0  # of those, in a row
        self._futile_starts = Counter[str]()  # by what distinguishes the environment
        self._given_up = set[str]()  # environments that were warned of
        self._start_again = -math.inf
        self._pause = _PAUSE
        self._warned = False  # that a worker cannot be started
        self._glanced = 0.0
        self._clock = RunningClock()

    @property
    def capacity(self) -> int:
        """The number of workers that there are or may be started."""
        return max(1, len(self._workers) + len(self._free))

    def wants(self) -> bool:
        """Whether the next worker to run short of units, or those that are starting, would find none."""
        return len(self._queue) <= _LEASES * self._starting

    def submit(self, lease: Lease) -> None:
        """Queue a lease and hand out what workers can take."""
        (self._alone if lease.alone else self._queue).append(lease)
        self._hand_out()

    def collect(self, patience: float = 1.0) -> list[Outcome]:
        """Wait ``patience`` seconds at most for one or more outcomes.

        Raises:
            CapabilityError: workers cannot be started, or none is left.
            ZcpipeError: a worker refuses the spec.
        """
        outcomes: list[Outcome] = []
        limit = time.monotonic() + patience
        while not outcomes:
            self._hand_out()
            left = min(_GLANCE, limit - time.monotonic())
            wait([interest for worker in self._workers for interest in worker.interests], max(0.0, left))
            self._clock.look()
            for worker in list(self._workers):
                outcomes += self._read(worker)
            if time.monotonic() > self._glanced + _GLANCE:
                self._glanced = time.monotonic()
                self._reap()
                for worker in list(self._workers):
                    outcomes += self._check(worker)
            if time.monotonic() > limit:
                break
        return outcomes

    def close(self) -> None:
        """Stop all workers."""
        for worker in self._workers:
            worker.kill()  # all at one time, should they take long to end
        for worker in list(self._workers):
            self._end(worker)
        self._queue.clear()
        self._alone.clear()

    def _hand_out(self) -> None:
        if not (self._workers or self._free):
            self._require_end()
        for worker in [worker for worker in self._workers if worker.ready and worker.fresh][: len(self._alone)]:
            worker.give(self._alone.popleft())
        self._give(1)
        while self._free and self._is_short() and self._start():
            pass
        # Where the system does not give what another takes, one makes room only if there is nothing else for it to do.
        while self._lacks_fresh() and not (self._free and self._queue) and self._retire_idle() and self._start():
            pass
        self._give(_LEASES)

    def _give(self, most: int) -> None:
        """Give leases to workers that are ready, so many to each at most."""
        takers = [worker for worker in self._workers.keys() - self._tired if worker.ready and not worker.alone]
        takers.sort(key=lambda worker: worker.leases)
        if not self._free and self._lacks_fresh():
            del takers[:1]  # the first that has nothing to do makes room
        for has in range(most):
            for worker in takers:
                if self._queue and worker.leases == has:
                    worker.give(self._queue.popleft())

    @property
    def _starting(self) -> int:
        """How many workers are not ready yet."""
        return sum(not worker.ready for worker in self._workers)

    def _is_short(self) -> bool:
        """Whether there is work for another worker than those that are starting."""
        return len(self._alone) + len(self._queue) > self._starting or self._lacks_fresh()

    def _lacks_fresh(self) -> bool:
        """Whether a lease has to be alone, and no worker that will soon be ready is for it."""
        starting = [worker for worker in self._workers if not worker.ready] if self._alone else []
        return len(self._alone) > sum(self._clock.since(worker.started) < _SLOW_START for worker in starting)

    def _retire_idle(self) -> bool:
        """End a worker that has nothing to do, to make room for a fresh one, and say whether there is room."""
        for worker in self._workers:
            if worker.ready and not worker.leases:
                self._end(worker)
                self._start_again = -math.inf  # what it had may be what was lacking
                return bool(self._free)
        return False

    def _start(self) -> WorkerProcess | None:
        """Start a worker, unless others live and the system does not give what it takes; that may pass."""
        if self._workers and time.monotonic() < self._start_again:
            return None
        environment = min(self._free, key=lambda free: self._futile_starts[_where(free)])
        self._free.remove(environment)
        try:
            worker = WorkerProcess(self._spec, environment, self._scorer)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            failed = f"cannot start worker {len(self._workers) + 1} of {self._count}: {reason}"
            mend = "use fewer workers or raise the limits on processes, memory and open files (ulimit -a)"
            if not self._workers:
                raise CapabilityError(f"{failed}; {mend}") from error
            self._free.append(environment)
            self._start_again = time.monotonic() + self._pause
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
            if not self._warned:
                self._warned = True
                self._on_event(Warned(f"{failed}; the others go on, and it is tried again; if it stays so, {mend}"))
            return None
        self._pause = _PAUSE
        self._workers[worker] = environment
        return worker

    def _end(self, worker: WorkerProcess, unit: Unit | None = None) -> str:
        """End a worker and say how it did; ``unit`` is what it was computing."""
        self._tired.discard(worker)
        environment = self._workers.pop(worker)
        ended = worker.end()
        if worker.ended:
            self._free.append(environment)
        else:
            self._held[worker] = environment
            doing = f"computed architecture {unit.representative}" if unit else "had nothing to compute"
            self._on_event(
                Warned(
                    f"process {worker.pid}{_where(environment)} {doing if worker.ready else 'was starting'} when it "
                    "was killed and does not end, as where a driver or a file system hangs; no other worker takes its "
                    "place until it does"
                )
            )
        return ended

    def _reap(self) -> None:
        """Use the places of processes that have ended at last."""
        for worker in [worker for worker in self._held if worker.ended]:
            self._free.append(self._held.pop(worker))

    def _require_end(self) -> None:
        """Have patience with processes that were killed, and stand in the way of all others."""
        if self._clock.since(max(worker.killed for worker in self._held)) > _HELD_LIMIT:
            pids = ", ".join(str(worker.pid) for worker in self._held)
            raise CapabilityError(
                f"no worker is left: what was killed does not end (process {pids}), as where a driver or a file system "
                "hangs; mend that, and the same command goes on"
            )

    def _read(self, worker: WorkerProcess) -> list[Outcome]:
        outcomes: list[Outcome] = []
        try:
            for kind, content in worker.messages():
                match kind:
                    case "refused":
                        raise content
                    case "ready":
                        worker.build = content
                        self._futile_starts[_where(self._workers[worker])] = 0
                    case "done":
                        count, rows, seconds = content
                        outcomes.append(Done(worker.receive(count), rows, seconds, worker.build))
                    case "aside":
                        (unit,) = worker.receive(1)
                        outcomes.append(Died(unit, content))
        except EOFError:
            outcomes += self._bury(worker)
        return outcomes

    def _check(self, worker: WorkerProcess) -> list[Outcome]:
        """End a worker that has had its time or its memory."""
        executing = worker.executing
        held = 0 if self._memory is None else resident(worker.pid)
        if self._memory is not None and held > self._memory / 2 and not worker.fresh:
            self._tired.add(worker)
        if executing is None:
            if not worker.ready and self._clock.since(worker.started) > _START_LIMIT:
                worker.kill()
                return self._bury(worker, f"its process was not ready within {_START_LIMIT:g} s")
            if worker.ready and self._is_silent(worker):
                worker.kill()
                return self._bury(worker)
            if worker in self._tired and not worker.leases:
                self._replace(worker)
            return []
        unit, since = executing
        if self._clock.since(since) > self._limit(unit):
            return self._kill(worker, unit, since, "timeout", f"no result within {self._limit(unit):g} s")
        if self._memory is not None and held > self._memory:
            message = f"needed {format_bytes(held)} of memory, more than the {format_bytes(self._memory)} of a worker"
            return self._kill(worker, unit, since, "memory", message)
        return []

    def _replace(self, worker: WorkerProcess) -> None:
        """End a worker that holds much, and say so where that is all that happens: starting another takes seconds."""
        self._short_lives = self._short_lives + 1 if self._clock.since(worker.started) < _SHORT_LIFE else 0
        if self._short_lives == _SHORT_LIVES and self._memory is not None:
            self._on_event(
                Warned(
                    f"{_SHORT_LIVES} workers in a row were replaced within {_SHORT_LIFE:g} s, for each held more than "
                    f"half of the {format_bytes(self._memory)} that it may hold: starting others takes much of the "
                    "time; fewer of them, or a larger --memory, would spare it"
                )
            )
        self._end(worker)

    def _is_silent(self, worker: WorkerProcess) -> bool:
        quiet = worker.quiet_since
        return quiet is not None and self._clock.since(quiet) > _QUIET_LIMIT

    def _kill(self, worker: WorkerProcess, unit: Unit, since: float, kind: str, message: str) -> list[Outcome]:
        worker.kill()
        self._put_back(worker, unit)
        self._end(worker, unit)
        return [Died(unit, Failed(kind, kind, message, self._clock.since(since)))]

    def _bury(self, worker: WorkerProcess, why: str | None = None) -> list[Outcome]:
        """Take back what a dead worker was given and blame the unit that it was executing."""
        executing = worker.executing
        unit, since = executing or (None, 0.0)
        where = _where(self._workers[worker])
        self._put_back(worker, unit)
        ended = self._end(worker, unit)
        if unit is None:
            if not worker.ready:  # one that was is replaced if need be: it was killed from outside
                self._count_futile_start(worker, where, why or ended)
            return []
        return [Died(unit, Failed("error", "died", ended, self._clock.since(since)))]

    def _put_back(self, worker: WorkerProcess, blamed: Unit | None) -> None:
        for lease in reversed(worker.take_back(blamed)):
            (self._alone if lease.alone else self._queue).appendleft(lease)

    def _count_futile_start(self, worker: WorkerProcess, where: str, reason: str) -> None:
        """Start no more workers in an environment in which they are never ready, as with a GPU that is broken."""
        self._futile_starts[where] += 1
        if not self._is_futile(where):
            return
        self._free = deque(free for free in self._free if _where(free) != where)
        said = worker.last_lines().splitlines()
        last = f"; it said: {' | '.join(said[-3:])}" if said else ""
        failed = (
            f"workers{where} do not start: {self._futile_starts[where]} in a row ended before they were ready "
            f"({reason}){last}"
        )
        if not (
            self._free or any(other.ready or not self._is_futile(_where(own)) for other, own in self._workers.items())
        ):
            raise CapabilityError(f"{failed}; run without --workers to see more")
        if where not in self._given_up:
            self._given_up.add(where)
            left = len(self._workers) + len(self._free)
            self._on_event(Warned(f"{failed}; the run goes on with {left} of {self._count} workers"))

    def _is_futile(self, where: str) -> bool:
        return self._futile_starts[where] >= max(_FUTILE_STARTS, self._alike[where])

    def _limit(self, unit: Unit) -> float:
        return self._timeout * math.ceil(len(unit.members) / _MEMBERS_PER_TIMEOUT)


def _where(environment: Mapping[str, str]) -> str:
    """Name what distinguishes an environment, as the GPU that is seen in it."""
    said = " ".join(f"{name}={value}" for name, value in environment.items() if value)
    return f" with {said}" if said else ""
