"""The embedded executor: scores in the calling process, which an architecture can therefore kill."""

from __future__ import annotations

import time
from collections import deque

from zcpipe.run.executor import Lease, Outcome
from zcpipe.run.rows import UnitScorer, one_thread
from zcpipe.run.spec import RunSpec
from zcpipe.run.work import Unit


class InProcessExecutor:
    """Computes one unit at a time, on one thread; there is no timeout."""

    def __init__(self, spec: RunSpec) -> None:
        self._scorer = UnitScorer(spec)
        self._waiting: deque[Unit] = deque()

    def wants(self) -> bool:
        """Whether nothing is left to do."""
        return not self._waiting

    def submit(self, lease: Lease) -> None:
        """Queue a lease."""
        self._waiting.extend(lease)

    def collect(self) -> list[Outcome]:
        """Compute the next unit."""
        unit = self._waiting.popleft()
        started = time.perf_counter()
        with one_thread():
            rows = self._scorer.score(unit)
        return [Outcome(unit, rows, time.perf_counter() - started)]

    def close(self) -> None:
        """Forget what is queued."""
        self._waiting.clear()
