"""Runs: from a spec to a table, in this process or in worker processes, with the same rows."""

from __future__ import annotations

from zcpipe.run.progress import show_progress
from zcpipe.run.spec import All, Archs, Range, RunSpec, Sample
from zcpipe.run.supervisor import Event, RunSummary, describe, run

__all__ = ["All", "Archs", "Event", "Range", "RunSpec", "RunSummary", "Sample", "describe", "run", "show_progress"]
