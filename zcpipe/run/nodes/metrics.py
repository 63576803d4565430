"""Counts of a run for the cluster's own monitoring (Prometheus, the Ray dashboard)."""

from __future__ import annotations

from zcpipe.run.executor import Died, Outcome
from zcpipe.table.schema import count_retried

_SECONDS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


class Metrics:
    """``zcpipe_rows``, ``zcpipe_failures``, ``zcpipe_deaths`` and ``zcpipe_architecture_seconds``, each by node."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter, Histogram

        def counter(name: str, description: str) -> Counter:
            return Counter(f"zcpipe_{name}", description=description, tag_keys=("node",))

        self._rows = counter("rows", "Rows that came in.")
        self._failures = counter("failures", "Rows that came in without scores.")
        self._deaths = counter("deaths", "Units that ended their worker, or were ended.")
        self._seconds = Histogram(
            "zcpipe_architecture_seconds",
            description="Seconds that an architecture took, the mean of those that came in together.",
            boundaries=list(_SECONDS),
            tag_keys=("node",),
        )

    def count(self, outcome: Outcome, node: str) -> None:
        """Take note of an outcome."""
        tags = {"node": node}
        if isinstance(outcome, Died):
            self._deaths.inc(tags=tags)
            return
        self._rows.inc(len(outcome.rows), tags=tags)
        if failed := count_retried(outcome.rows):
            self._failures.inc(failed, tags=tags)
        self._seconds.observe(outcome.seconds / len(outcome.rows), tags=tags)
