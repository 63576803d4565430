from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from zcpipe.run import show_progress
from zcpipe.run.events import Committed, Drawn, Event, Joined, Left, Planned, Scored, Warned

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
    monkeypatch.setattr("zcpipe.run.progress.LINE_SECONDS", 0.0)
    *_, last = shown(terminal=False, quiet=False).splitlines()
    assert last.startswith("9/10 architectures, ") and last.endswith("2 failed")


def test_drawing_is_shown_before_scoring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zcpipe.run.progress.LINE_SECONDS", 0.0)
    monkeypatch.setattr(f"{__name__}.EVENTS", [Drawn(2000, 3000), Planned(3000, 0), Scored(1, 0)])
    drawn, scored = shown(terminal=False, quiet=False).splitlines()
    assert drawn == "2000/3000 architectures drawn" and scored.startswith("1/3000 architectures, ")
    monkeypatch.setattr(f"{__name__}.EVENTS", [Drawn(2000, 3000)])
    assert "drawing" in shown(terminal=True, quiet=False)


def test_quiet_keeps_warnings() -> None:
    assert shown(terminal=False, quiet=True) == "warning: mixed builds\n"


def test_nodes_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zcpipe.run.progress.LINE_SECONDS", 0.0)
    monkeypatch.setattr(
        f"{__name__}.EVENTS",
        [Planned(9, 0), Joined("a", 2), Joined("b", 3), Scored(1, 0), Left("a", "no link"), Scored(1, 0)],
    )
    first, lost, second = shown(terminal=False, quiet=False).splitlines()
    assert first.endswith("5 actors on 2 nodes") and second.endswith("3 actors on 1 nodes")
    assert lost == "node a is gone: no link"
    assert "3 actors on 1 nodes" in shown(terminal=True, quiet=False)
