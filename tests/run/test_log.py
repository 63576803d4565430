"""The log of a run, and disks that do not take it."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from small_runs import content, spec

from zcpipe.run import log_events, run
from zcpipe.run.events import Event, Planned, Scored

FULL = Path("/dev/full")


def test_each_event_is_a_line_and_launches_follow_one_another(tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    for event in (Planned(3, 1), Scored(2, 0, 1.5, "a")):
        with log_events(file) as log:
            log(event)
    first, second = map(json.loads, file.read_text().splitlines())
    assert (first["event"], first["rows"], first["present"]) == ("planned", 3, 1)
    assert (second["event"], second["seconds"], second["node"]) == ("scored", 1.5, "a")


def test_half_a_line_that_was_left_costs_no_further_event(tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    file.write_text('{"event": "planned"}\n{"event": "sco')
    with log_events(file) as log:
        log(Planned(3, 1))
        log(Scored(2, 0, 1.5, "a"))
    lines = file.read_text().splitlines()
    assert lines[1] == '{"event": "sco'
    assert [json.loads(line)["event"] for line in (lines[0], *lines[2:])] == ["planned", "planned", "scored"]


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")
def test_a_disk_that_is_full_ends_the_log_and_not_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], undisturbed: pa.Table
) -> None:
    heard = list[Event]()
    with log_events(FULL) as log:
        run(spec(), tmp_path, on_event=lambda event: (heard.append(event), log(event))[0])
    assert len(heard) > 2 and content(tmp_path).equals(undisturbed)
    said = "warning: cannot write /dev/full: no space left on device; the run goes on and logs no more\n"
    assert capsys.readouterr().err == said
