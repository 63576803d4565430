"""Runs: from a spec to a table, in this process or in worker processes, with the same rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zcpipe.run.drive import TIMEOUT
from zcpipe.run.events import Event
from zcpipe.run.log import log_events
from zcpipe.run.spec import All, Archs, Range, RunSpec, Sample
from zcpipe.run.supervisor import RunSummary, describe, run

if TYPE_CHECKING:
    from zcpipe.run.progress import show_progress

__all__ = [
    "TIMEOUT",
    "All",
    "Archs",
    "Event",
    "Range",
    "RunSpec",
    "RunSummary",
    "Sample",
    "describe",
    "log_events",
    "run",
    "show_progress",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a module's attribute
    """Import what shows progress where it is asked for: every worker imports this package and shows nothing."""
    if name == "show_progress":
        from zcpipe.run.progress import show_progress

        return show_progress
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
