"""A clock that stands still while the process does."""

from __future__ import annotations

import time
from collections import deque

_STRIDE = 4.0  # seconds that may count between two looks
_GAPS = 1000  # that are remembered


class RunningClock:
    """Takes times for one who looks often, without what passed while it did not look.

    A process may be stopped with its container, and a whole machine may be paused or put to sleep: what its clock says
    afterwards is nothing that a worker has used. Where the supervisor alone stood still, as by Ctrl-Z or in a long
    commit, workers get more time than they should.
    """

    def __init__(self) -> None:
        self._looked = time.monotonic()
        self._gaps: deque[tuple[float, float]] = deque(maxlen=_GAPS)  # when each ended, and its seconds

    def look(self) -> None:
        """Take note that this process runs."""
        now = time.monotonic()
        if now - self._looked > _STRIDE:
            self._gaps.append((now, now - self._looked - _STRIDE))
        self._looked = now

    def since(self, start: float) -> float:
        """Return the seconds since a time of the monotonic clock that count."""
        self.look()
        passed = self._looked - start
        return passed - sum(min(seconds, end - start) for end, seconds in self._gaps if end > start)
