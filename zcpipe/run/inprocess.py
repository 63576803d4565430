"""The embedded executor: scores in the calling process, which an architecture can therefore kill."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

from zcpipe.run.executor import Done, Lease
from zcpipe.run.rows import UnitScorer, build, one_thread
from zcpipe.run.spec import RunSpec
from zcpipe.run.work import Unit
from zcpipe.table.schema import canonical


class InProcessExecutor:
    """Computes one unit at a time, on one thread; there is no timeout."""

    capacity = 1

    def __init__(self, spec: RunSpec) -> None:
        self._scorer = UnitScorer(spec)
        self._build = canonical(build(spec.device))
        self._waiting: deque[Unit] = deque()

    def wants(self) -> bool:
        """Whether nothing is left to do."""
        return not self._waiting

    def submit(self, lease: Lease) -> None:
        """Queue a lease."""
        self._waiting.extend(lease.units)

    def collect(self) -> Sequence[Done]:
        """Compute the next unit."""
        unit = self._waiting.popleft()
        started = time.perf_counter()
        with one_thread():
            rows = self._scorer.score(unit)
        seconds = time.perf_counter() - started
        return [Done((unit,), self._scorer.tabulate(rows), seconds, self._build)]

    def close(self) -> None:
        """Forget what is queued."""
        self._waiting.clear()
