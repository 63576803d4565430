"""One worker process as its supervisor sees it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from zcpipe.run.executor import Lease
from zcpipe.run.rows import Row
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
_START = "import gc, sys; gc.disable(); from zcpipe.run.worker import main; main(int(sys.argv[1]))"
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class WorkerProcess:
    """A child process with its socket, what it was given, and the unit it announced.

    It is killed when the thread ends that made it (see `zcpipe.run.worker`).

    Raises:
        OSError: the system gives no further process or file.
    """

    def __init__(self, spec: RunSpec) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own module in our own interpreter
                [sys.executable, "-P", "-c", _START, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=worker_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                process_group=0,  # a terminal's Ctrl-C reaches the supervisor alone
            )
            self.connection = Connection(ours.detach())
        assert self._process.stdout is not None  # noqa: S101 - states a type
        self._output = self._process.stdout
        os.set_blocking(self._output.fileno(), False)
        self._tail: deque[bytes] = deque([b""], maxlen=_LINES)
        self.waiting: deque[Unit] = deque()  # given, not yet started
        self.executing: Unit | None = None
        self.counted: list[Row] = []  # what it said of the members of that
        self.alone = False  # it was given one suspect unit and gets nothing else meanwhile
        self.ready = False
        self.since = time.monotonic()  # when it was started or began what it is executing
        self._send(spec.model_dump_json())

    @property
    def channels(self) -> list[Any]:
        """What becomes readable when there is news."""
        return [self.connection] if self._output.closed else [self.connection, self._output]

    @property
    def idle(self) -> bool:
        """Whether it has nothing to do."""
        return self.executing is None and not self.waiting

    def give(self, lease: Lease) -> None:
        """Send it a lease."""
        self.waiting.extend(lease)
        self._send(list(lease))

    def messages(self) -> list[tuple[str, Any]]:
        """Return what it has sent so far.

        Raises:
            EOFError: it is dead and everything it sent was returned before.
        """
        self._read_output()
        received: list[tuple[str, Any]] = []
        try:
            while self.connection.poll():
                received.append(self.connection.recv())
        except (EOFError, OSError):
            if not received:
                raise EOFError from None
        if not received and self._process.poll() is not None and not self.connection.poll():
            raise EOFError
        return received

    def end(self) -> str:
        """Kill it if it is still alive, and say how it ended."""
        self.connection.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=1.0)  # closing the socket ends it
        self._process.kill()
        code = self._process.wait()
        self._read_output()
        self._output.close()
        if code >= 0:
            return f"its process exited with code {code}"
        if -code == signal.SIGKILL:
            return "its process was killed by SIGKILL, as the system does when memory runs out"
        try:
            return f"its process was killed by {signal.Signals(-code).name}"
        except ValueError:  # a real-time signal has no name
            return f"its process was killed by signal {-code}"

    def kill(self) -> None:
        """Kill it now: it does not answer."""
        self._process.kill()

    def last_lines(self) -> str:
        """Return the end of what it wrote to its standard output and error."""
        return "\n".join(line.decode(errors="replace") for line in self._tail).strip()

    def _send(self, message: object) -> None:
        with suppress(OSError):  # it is dead: reading will say so
            self.connection.send(message)

    def _read_output(self) -> None:
        while not self._output.closed:
            chunk = self._output.read(65536)
            if chunk is None:
                return
            if not chunk:
                self._output.close()
                return
            first, *rest = chunk.split(b"\n")
            self._tail[-1] = (self._tail[-1] + first)[-_LENGTH:]
            self._tail.extend(line[-_LENGTH:] for line in rest)


def worker_environment() -> dict[str, str]:
    """Return an environment in which the child imports what this process does, with one thread each."""
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)  # noqa: PTH109 - a text is wanted
    return {**_ALLOCATOR, **os.environ, **_ONE_THREAD, "PYTHONPATH": path}
