from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from zcpipe.run import show_progress
from zcpipe.run.events import Committed, Event, Planned, Scored, Warned

EVENTS: list[Event] = [Planned(10, 2), Warned("mixed builds"), Scored(3, 0), Scored(4, 2), Committed(Path("x"), 7)]


def shown(*, terminal: bool, quiet: bool) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=120)
    with show_progress(quiet=quiet, console=console) as on_event:
        for event in EVENTS:
            on_event(event)
    return stream.getvalue()


def test_a_bar_on_a_terminal() -> None:
    text = shown(terminal=True, quiet=False)
    assert "9/10" in text and "2 failed" in text and "mixed builds" in text


def test_lines_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(terminal=False, quiet=False) == "warning: mixed builds\n", "the first line is due after half a minute"
    monkeypatch.setattr("zcpipe.run.progress._LINE_SECONDS", 0.0)
    *_, last = shown(terminal=False, quiet=False).splitlines()
    assert last.startswith("9/10 architectures, ") and last.endswith("2 failed")


def test_quiet_keeps_warnings() -> None:
    assert shown(terminal=False, quiet=True) == "warning: mixed builds\n"
