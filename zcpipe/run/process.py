"""One worker process as its supervisor sees it."""

from __future__ import annotations

import math
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import Any

from zcpipe.errors import debugging
from zcpipe.registry import import_path
from zcpipe.run.cell import make_cell
from zcpipe.run.channel import SupervisorEnd
from zcpipe.run.executor import Lease
from zcpipe.run.spec import RunSpec
from zcpipe.run.work import Unit

_LINES, _LENGTH = 20, 1000  # what is kept of a worker's output to explain its death
# With glibc's defaults every feature map is returned to the system and faulted in again, in small pages: about a tenth
# of the CPU time for each of the two (measured by hand, batch 64). What the user has set for these wins.
_ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
# Importing makes many objects and no garbage: looking for some is a good part of a worker's start, which therefore
# turns the collector on again only when everything is imported.
_START = (
    "import gc, sys; gc.disable(); from zcpipe.run.worker import main; "
    "main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])"
)
_KILL_LIMIT = 5.0  # seconds in which a process that was killed must have ended
SCORER = "zcpipe.run.rows:UnitScorer"
# Without it torch warns of each product of matrices where sums are to be taken in one order.
_ONE_ORDER = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class WorkerProcess:
    """A child process with its socket, what it was given, and which of that it is executing.

    What it starts itself ends with it. It is killed when the thread ends that made it (see `zcpipe.run.worker`).

    Raises:
        OSError: the system gives no further process or file.
    """

    def __init__(self, spec: RunSpec, environment: Mapping[str, str] | None = None, scorer: str = SCORER) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            descriptor, self._cell = make_cell()
            try:
                self._process = subprocess.Popen(  # noqa: S603 - our own module in our own interpreter
                    [sys.executable, "-P", "-c", _START, str(theirs.fileno()), str(descriptor), scorer],
                    pass_fds=[theirs.fileno(), descriptor],
                    env={**worker_environment(), **(environment or {})},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    process_group=0,  # a terminal's Ctrl-C reaches the supervisor alone; a kill, what it starts
                )
            finally:
                os.close(descriptor)
            self._end = SupervisorEnd(socket.socket(fileno=ours.detach()))
        assert self._process.stdout is not None  # noqa: S101 - states a type
        self._output = self._process.stdout
        os.set_blocking(self._output.fileno(), False)
        self._tail: deque[bytes] = deque([b""], maxlen=_LINES)
        self._given: deque[Lease] = deque()  # of each the units whose rows have not come
        self._received = 0  # units whose rows have
        self.fresh = True  # it has never been given anything
        self.build = ""  # what computes in it, once it is ready
        self.started = self._asked = time.monotonic()
        self.killed = math.inf  # when it first was
        self._send(spec.for_workers())

    @property
    def pid(self) -> int:
        """The number of its process."""
        return self._process.pid

    @property
    def ready(self) -> bool:
        """Whether it has everything it needs to score."""
        return bool(self.build)

    @property
    def alone(self) -> bool:
        """Whether it has a suspect unit and gets nothing else meanwhile."""
        return any(lease.alone for lease in self._given)

    @property
    def leases(self) -> int:
        """How many leases it has whose rows have not all come."""
        return len(self._given)

    @property
    def executing(self) -> tuple[Unit, float] | None:
        """The unit that it executes and since when; one that sends rows has executed what they are of."""
        if self._end.halfway or (found := self._cell.read()) is None or found[0] < self._received:
            return None
        units = (unit for lease in self._given for unit in lease.units)
        unit = next(islice(units, found[0] - self._received, None), None)
        return None if unit is None else (unit, found[1])

    @property
    def quiet_since(self) -> float | None:
        """Since when it has had something to do and has neither sent anything nor said that it executes."""
        if not self._given or self.executing is not None:
            return None
        return max(self._asked, self._end.heard)

    @property
    def interests(self) -> list[tuple[int, int]]:
        """The file descriptors, with events of `select.poll`, at which there is something to do."""
        output = [] if self._output.closed else [(self._output.fileno(), select.POLLIN)]
        return [self._end.interest, *output]

    def give(self, lease: Lease) -> None:
        """Send it a lease."""
        self.fresh = False
        if not self._given:
            self._asked = time.monotonic()
        self._given.append(lease)
        self._send(lease)

    def receive(self, count: int) -> tuple[Unit, ...]:
        """Take note that the rows of the next ``count`` units have come, and return those units."""
        self._received += count
        lease = self._given.popleft()
        if len(lease.units) > count:
            self._given.appendleft(replace(lease, units=lease.units[count:]))
        return lease.units[:count]

    def take_back(self, blamed: Unit | None) -> list[Lease]:
        """Return what it was given and has not done, without the unit that is blamed for its end."""
        rest = [tuple(unit for unit in lease.units if unit != blamed) for lease in self._given]
        left = [replace(lease, units=units) for lease, units in zip(self._given, rest, strict=True) if units]
        self._given.clear()
        return left

    def messages(self) -> list[tuple[str, Any]]:
        """Return what it has sent so far.

        Raises:
            EOFError: it is dead and everything it sent was returned before.
        """
        self._read_output()
        with suppress(OSError):  # it is dead, as what follows finds
            self._end.flush()
        dead = self._process.poll() is not None  # asked first: what it has sent is then there
        received = self._end.receive()
        if dead and not received:  # a process that it forked keeps the socket open
            raise EOFError
        return received

    def close(self) -> None:
        """Have it end, if it can notice."""
        self._end.close()

    def end(self) -> str:
        """Kill it if it is still alive, with what it started, and say how it ended.

        One that a driver or a file system holds in the kernel is not waited for: `ended` tells when it has ended.
        """
        self.close()
        if self.killed == math.inf:
            self._wait(1.0)  # closing the socket ends it
        self.kill()
        self._wait(self.killed + _KILL_LIMIT - time.monotonic())
        self._read_output()
        self._output.close()
        code = self._process.returncode
        if code is None:
            return "its process was killed and does not end"
        if code >= 0:
            return f"its process exited with code {code}"
        if -code == signal.SIGKILL:
            return "its process was killed by SIGKILL, as the system does when memory runs out"
        try:
            return f"its process was killed by {signal.Signals(-code).name}"
        except ValueError:  # a real-time signal has no name
            return f"its process was killed by signal {-code}"

    @property
    def ended(self) -> bool:
        """Whether its process is no more."""
        return self._process.poll() is not None

    def kill(self) -> None:
        """Kill it and all that it started: it does not answer."""
        self.killed = min(self.killed, time.monotonic())
        with suppress(ProcessLookupError, PermissionError):  # nothing is left; macOS forbids it where one is not reaped
            os.killpg(self.pid, signal.SIGKILL)  # also where it is dead: what it started outlives it

    def last_lines(self) -> str:
        """Return the end of what it wrote to its standard output and error."""
        return "\n".join(line.decode(errors="replace") for line in self._tail).strip()

    def _wait(self, seconds: float) -> None:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=seconds)

    def _send(self, message: object) -> None:
        with suppress(OSError):  # it is dead: reading will say so
            self._end.send(message)

    def _read_output(self) -> None:
        while not self._output.closed:
            chunk = self._output.read(65536)
            if chunk is None:
                return
            if not chunk:
                self._output.close()
                return
            if debugging():
                print(chunk.decode(errors="replace"), end="", file=sys.stderr, flush=True)
            first, *rest = chunk.split(b"\n")
            self._tail[-1] = (self._tail[-1] + first)[-_LENGTH:]
            self._tail.extend(line[-_LENGTH:] for line in rest)


def worker_environment() -> dict[str, str]:
    """Return an environment in which the child imports what this process does, with one thread each."""
    return {**_ALLOCATOR, **_ONE_ORDER, **os.environ, **_ONE_THREAD, "PYTHONPATH": import_path()}
