"""Architectures and spaces that do not behave: rows with a reason, or one clear error, and nothing else is lost."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from small_runs import assert_like, content, outcomes, spec

from zcpipe.errors import CapabilityError, ZcpipeError
from zcpipe.run import Archs, Event, Range, RunSummary, Sample, run
from zcpipe.run.events import Scored, Warned
from zcpipe.run.process import WorkerProcess
from zcpipe.spaces.classes import key_classes
from zcpipe.table import open_table


def test_poison_hangs_and_exceptions_end_as_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: pa.Table
) -> None:
    told = {"6": "segv", "10": "hang", "14": "raise", "16": "greedy", "20": "exit once"}
    monkeypatch.setenv("HAZARDS", json.dumps(told))
    monkeypatch.setenv("HAZARD_MARKS", str(tmp_path))
    out = tmp_path / "table"
    summary = run(spec(), out, workers=2, timeout=5.0)

    assert summary.by_status == {"ok": 16, "error": 4, "timeout": 2, "memory": 2}
    assert summary.failed == 8
    found = outcomes(out)
    assert found[6] == found[7] == ("error", "its process was killed by SIGSEGV, twice")
    assert found[10] == ("timeout", "no result within 5 s")
    assert found[14] == ("error", "ValueError: told to raise for member-14")
    assert found[16][0] == "memory"
    assert set(found) == {6, 7, 10, 11, 14, 15, 16, 17}
    assert_like(content(out), undisturbed, set(found))
    for bad in open_table(out).lookup(["member-6", "member-10", "member-14", "member-16"]).to_pylist():
        assert bad["expressivity"] is None and bad["expressivity@block"] is None
        assert bad["macs"] == bad["index"] and bad["params"] == undisturbed["params"][bad["index"]].as_py()
    assert run(spec(), out).new == 0, "failed rows are rows; retrying them is another command"


def test_exceptions_end_as_rows_in_this_process_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: pa.Table
) -> None:
    monkeypatch.setenv("HAZARDS", json.dumps({"14": "raise", "16": "greedy"}))
    assert run(spec(), tmp_path).by_status == {"ok": 20, "error": 2, "memory": 2}
    assert_like(content(tmp_path), undisturbed, {14, 15, 16, 17})


def test_memory_that_others_took_for_a_while_costs_no_architecture_its_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: pa.Table
) -> None:
    monkeypatch.setenv("HAZARDS", json.dumps({"6": "greedy once", "16": "greedy once"}))
    monkeypatch.setenv("HAZARD_MARKS", str(tmp_path))
    assert run(spec(), tmp_path / "table", workers=2).by_status == {"ok": 24}
    assert content(tmp_path / "table").equals(undisturbed)


@pytest.mark.parametrize(
    ("told", "warned"),
    [
        ("{}", "none of the first 20 networks is ok; the last has *: ValueError: told to raise for member-"),
        ('{"0": "nap", "30": "nap"}', None),
    ],
)
@pytest.mark.parametrize("workers", [None, 1])
def test_that_nothing_succeeds_is_said_once_and_early(
    workers: int | None, told: str, warned: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HAZARDS", told)
    monkeypatch.setenv("HAZARD_ELSE", "raise")
    monkeypatch.setenv("CROWD", "90")
    events = list[Event]()
    networks = spec(space="crowd", selection=Range(start=0, stop=90))
    assert run(networks, tmp_path, workers=workers, on_event=events.append).by_status["error"] >= 84
    said = [event.message for event in events if isinstance(event, Warned)]
    assert len(said) == (warned is not None) and all(one.startswith(str(warned)) for one in said)
    scored = [event for event in events if isinstance(event, Scored | Warned)]
    assert warned is None or isinstance(scored[-1], Scored), "before all rows are in"


def test_a_lost_device_costs_the_process_and_only_who_lost_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: pa.Table
) -> None:
    monkeypatch.setenv("HAZARDS", json.dumps({"6": "lose device"}))
    out = tmp_path / "table"
    assert run(spec(), out, workers=1).by_status == {"ok": 22, "error": 2}
    assert outcomes(out)[6] == ("error", "AcceleratorError: CUDA error: device-side assert triggered, twice")
    assert_like(content(out), undisturbed, {6, 7})
    with pytest.raises(CapabilityError, match=r"device-side assert triggered; the GPU is lost .* --workers"):
        run(spec(), tmp_path / "here")
    assert len(open_table(tmp_path / "here")) == 0


def test_counts_that_cannot_be_made_are_null_and_never_asked_of_the_supervisor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"0": "size exit", "1": "size raise", "4": "raise"}
    monkeypatch.setenv("HAZARDS", json.dumps(told))
    assert run(spec(selection=Range(start=0, stop=6), repeats=2), tmp_path, workers=1).by_status == {
        "ok": 2,
        "error": 4,
    }
    rows = open_table(tmp_path).to_arrow(["params", "expressivity_sd"]).to_pylist()
    assert [row["params"] is None for row in rows] == [True, True, False, False, False, False]


@pytest.mark.parametrize("workers", [None, 1])
def test_a_listed_architecture_without_a_key_ends_as_a_row(
    workers: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HAZARD_ASKED", "key 31")
    listed = spec(space="endless", selection=Archs(texts=("member-30", "member-31", "member-2")))
    assert run(listed, tmp_path, workers=workers).by_status == {"ok": 2, "error": 1}
    rows = {row["arch"]: row for row in open_table(tmp_path).to_arrow().to_pylist()}
    bad = rows["member-31"]
    assert bad["failures"] == [{"proxy": "*", "kind": "error", "message": "ValueError: no key for 31"}]
    assert bad["key"] == "member-31" and bad["macs"] == 31 and rows["member-30"]["key"] == "width-17"


@pytest.mark.parametrize(
    ("asked", "fields", "said"),
    [
        ("key 7", {}, "hazards cannot give the key of its architecture 7: ValueError: no key for 7"),
        ("key 31", {"space": "endless", "selection": Sample(n=3)}, "endless cannot give the key of member-31"),
        ("text 31", {"space": "endless", "selection": Sample(n=3)}, "endless cannot give its random architecture 1"),
        ("text 2", {"space": "endless", "selection": Archs(texts=("member-2",))}, "the text of one of its archite"),
        ("text 7", {}, "hazards cannot give the text of one of its architectures: ValueError: no text for 7"),
    ],
)
@pytest.mark.parametrize("workers", [None, 1])
def test_a_space_that_does_not_answer_is_named(
    workers: int | None,
    asked: str,
    fields: dict[str, object],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key_classes.cache_clear()
    monkeypatch.setenv("HAZARD_ASKED", asked)
    with pytest.raises(ZcpipeError, match=said):
        run(spec(**fields), tmp_path, workers=workers)
    monkeypatch.delenv("HAZARD_ASKED")
    assert run(spec(**fields), tmp_path).failed == 0


def test_workers_that_do_not_start_stop_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os; os.write(2, b'no luck today\\n'); os._exit(9)")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(CapabilityError, match=r"do not start: 3 in a row .*code 9.*no luck today"):
        run(spec(), tmp_path / "table", workers=1)


def test_a_summary_counts_failures() -> None:
    assert RunSummary(Path("x"), 5, 0, 5, {"ok": 3, "partial": 2}, 1.0, {}).failed == 2


def test_a_worker_that_was_never_heard_of_says_how_it_ended() -> None:
    worker = WorkerProcess(spec())
    worker.kill()
    with pytest.raises(EOFError):
        while True:
            worker.messages()
    assert worker.end().startswith("its process was killed by SIGKILL")
