"""Whole runs over a real, tiny space: the same rows whatever the executor, the growth and the interruptions."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from small_runs import assert_like, content, outcomes, spec

from zcpipe.errors import CapabilityError, DataError, IdentityMismatch, UsageError
from zcpipe.ops import available
from zcpipe.run import All, Archs, Range, Sample, describe, run
from zcpipe.run.code import code_digest
from zcpipe.run.events import Committed, Event, Planned, Scored, Warned
from zcpipe.run.rows import build
from zcpipe.spaces import get_space
from zcpipe.table import compact, open_table, status
from zcpipe.table.groups import find_groups, note
from zcpipe.table.schema import package_version
from zcpipe.table.store import locked

FORK = multiprocessing.get_context("forkserver")  # a launch costs a fork of a process that has imported torch
NAPS = {"HAZARD_ELSE": "nap"}
FORK.set_forkserver_preload(["zcpipe.run"])


def test_a_run_in_this_process(tmp_path: Path) -> None:
    out, events = tmp_path / "deep" / "table", list[Event]()
    summary = run(spec(), out, on_event=events.append)

    assert (summary.planned, summary.present, summary.new, summary.failed) == (24, 0, 24, 0)
    assert summary.by_status == {"ok": 24} and summary.path == out
    assert events[0] == Planned(24, 0)
    assert sum(event.rows for event in events if isinstance(event, Scored)) == 24
    assert [event.rows for event in events if isinstance(event, Committed)] == [8, 8, 8]
    rows = open_table(out).to_arrow()
    assert rows["index"].to_pylist() == list(range(24))
    assert rows["key"].to_pylist()[2:4] == ["width-3", "width-3"]
    assert rows["expressivity"][4] == rows["expressivity"][5] != rows["expressivity"][6]
    assert rows["macs"].to_pylist() == list(range(24))
    assert all(len(blocks) == 2 for blocks in rows["expressivity@block"].to_pylist())
    assert rows["failures"].to_pylist() == [[]] * 24


def test_relaunching_a_finished_run_touches_nothing(tmp_path: Path) -> None:
    run(spec(), tmp_path)
    before = {path.name: path.stat() for path in tmp_path.iterdir()}
    again = run(spec(), tmp_path)
    assert (again.present, again.new, again.by_status) == (24, 0, {"ok": 24})
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == {
        name: stat.st_mtime_ns for name, stat in before.items()
    }


def test_workers_compute_the_same_rows(tmp_path: Path, undisturbed: pa.Table) -> None:
    for workers in (1, 2):
        out = tmp_path / str(workers)
        assert run(spec(), out, workers=workers).by_status == {"ok": 24}
        assert content(out).equals(undisturbed)


def test_networks_of_a_benchmark_score_the_same_bits_in_a_worker(tmp_path: Path) -> None:
    cells = spec(
        space="nasbench201", dataset="cifar10", selection=Sample(n=3), proxies=("expressivity", "trainability")
    )
    torch.set_num_threads(2)
    run(cells, tmp_path / "here")
    assert torch.get_num_threads() == 2
    run(cells, tmp_path / "there", workers=1)
    assert content(tmp_path / "here").equals(content(tmp_path / "there"))


def test_rows_of_another_build_are_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not available():
        pytest.skip("the native library is not built")
    events = list[Event]()
    run(spec(selection=Sample(n=2)), tmp_path)
    monkeypatch.setenv("ZCPIPE_NO_NATIVE", "1")
    run(spec(selection=Sample(n=2)), tmp_path, on_event=events.append)
    assert not any(isinstance(event, Warned) for event in events), "nothing is added"
    run(spec(selection=Sample(n=3)), tmp_path, on_event=events.append)
    assert "another build" in next(event.message for event in events if isinstance(event, Warned))


def test_rows_of_other_code_are_warned_of_once_with_the_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(spec(selection=Sample(n=2)), tmp_path)
    events = list[Event]()
    monkeypatch.setattr("zcpipe.run.rows.code_digest", lambda: "other")
    for n in (3, 4):
        run(spec(selection=Sample(n=n)), tmp_path, on_event=events.append)
    (said,) = [event.message for event in events if isinstance(event, Warned)]
    assert said == (
        f"rows of another build join the table (code is {code_digest()!r} there and 'other' here): "
        "their values may differ where the code does, their last digits otherwise"
    )


def test_of_several_builds_the_nearest_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older = {name: value for name, value in build("cpu").items() if name != "code"}  # as before it was noted
    said = list[str]()
    for n, made in enumerate((older, {**older, "torch": "3", "cpu": "Z80"}, {**older, "torch": "3"}, build("cpu")), 1):
        monkeypatch.setattr("zcpipe.run.inprocess.build", lambda device, made=made: made)
        events = list[Event]()
        run(spec(selection=Sample(n=n)), tmp_path, on_event=events.append)
        said += [event.message.split("(")[1].split(")")[0] for event in events if isinstance(event, Warned)]
    assert said[1:] == [
        f"cpu is 'Z80' there and {older['cpu']!r} here",
        f"code is None there and {code_digest()!r} here",
    ]


def test_the_build_names_the_code_that_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "_C.so"
    found = []
    for code in (b"one", b"other"):
        library.write_bytes(code)
        monkeypatch.setattr(
            "zcpipe.run.rows.build_info", lambda: {"native": True, "path": str(library), "instruction_set": "x"}
        )
        found.append(build("cpu"))
    assert found[0]["zcpipe"] == package_version()
    assert found[0]["library"] != found[1]["library"] and found[0] == {**found[1], "library": found[0]["library"]}
    monkeypatch.setattr("zcpipe.run.rows.build_info", lambda: {"native": False, "path": None, "instruction_set": None})
    assert build("cpu")["library"] is None


def test_a_grown_table_equals_one_run(tmp_path: Path, undisturbed: pa.Table) -> None:
    for selection in (Sample(n=5), Range(start=3, stop=9), Archs(texts=("member-23", "member-4")), Sample(n=9), All()):
        summary = run(spec(selection=selection), tmp_path)
        assert summary.present + summary.new == summary.planned
    assert content(tmp_path).equals(undisturbed)


def test_spaces_without_an_enumeration_grow_too(tmp_path: Path) -> None:
    for n in (3, 6, 11):
        run(spec(space="endless", selection=Sample(n=n)), tmp_path / "grown")
    run(spec(space="endless", selection=Sample(n=11)), tmp_path / "once")
    grown = content(tmp_path / "grown")
    assert grown.equals(content(tmp_path / "once"))
    drawn = {str(get_space("endless").sample(0, i)) for i in range(11)}
    assert len(drawn) < 11 and sorted(grown["arch"].to_pylist()) == sorted(drawn)
    listed = spec(space="endless", selection=Archs(texts=("member-900", *drawn)))
    assert run(listed, tmp_path / "grown").new == 1, "what was drawn has its row"
    assert open_table(tmp_path / "grown").lookup(["member-900"], ["arch"])["arch"].to_pylist() == ["member-900"]


def test_listed_architectures_score_the_same_in_any_order_and_company(tmp_path: Path) -> None:
    texts = ("member-6", "member-7", "member-31", "member-7", "member-30", "member-2")  # keys are of two neighbours
    for name, parts, workers in (("a", (texts,), None), ("b", (texts[::-1],), 1), ("c", (texts[1:2], texts), None)):
        for part in parts:
            run(spec(space="endless", selection=Archs(texts=part)), tmp_path / name, workers=workers)
    rows = content(tmp_path / "a")
    assert len(rows) == 5
    assert content(tmp_path / "b").equals(rows) and content(tmp_path / "c").equals(rows)


def test_repeats_add_deviations(tmp_path: Path) -> None:
    run(spec(repeats=2, selection=Sample(n=2)), tmp_path)
    rows = open_table(tmp_path).to_arrow()
    assert rows.column_names[4:8] == ["expressivity", "expressivity_sd", "trainability", "trainability_sd"]
    assert all(deviation > 0 for deviation in rows["expressivity_sd"].to_pylist())
    assert [column.name for column in open_table(tmp_path).columns][:3] == ["expressivity", "trainability", "params"]


def test_dry_run_touches_nothing(tmp_path: Path) -> None:
    out = tmp_path / "table"
    planned = describe(spec(selection=Sample(n=6)), out)
    assert not out.exists() and not planned["exists"]
    assert (planned["architectures"], planned["classes"], planned["done"]) == (6, 6, 0)
    run(spec(selection=Sample(n=6)), out)
    before = sorted((path.name, path.stat().st_mtime_ns) for path in out.iterdir())
    planned = describe(spec(), out)
    assert (planned["architectures"], planned["classes"], planned["shards"]) == (24, 12, 3)
    assert (planned["done"], planned["todo"]["architectures"]) == (6, 18)
    assert planned["schema"]["macs"] == "int64" and planned["spec"]["proxies"][0] == "expressivity"
    json.dumps(planned)
    assert sorted((path.name, path.stat().st_mtime_ns) for path in out.iterdir()) == before


def test_another_identity_is_refused_with_the_difference(tmp_path: Path) -> None:
    run(spec(selection=Sample(n=2)), tmp_path)
    before = content(tmp_path)
    for action in (run, describe):
        with pytest.raises(
            IdentityMismatch, match=r"recipe.batch_size is 4 there and 8 here, seed is 0 there and 5 here"
        ):
            action(spec(seed=5, batch_size=8), tmp_path)
    assert content(tmp_path).equals(before)


def test_fewer_proxies_grow_the_table_in_its_own_columns(tmp_path: Path) -> None:
    run(spec(proxies=("expressivity",), selection=Sample(n=2)), tmp_path)
    run(spec(proxies=("params",), selection=Sample(n=4), classes_per_shard=9), tmp_path)
    rows = open_table(tmp_path).to_arrow()
    assert len(rows) == 4 and rows["expressivity"].null_count == 0


@pytest.mark.parametrize("fields", [{"workers": 0}, {"timeout": 0.0}, {"timeout": float("nan")}])
def test_options_out_of_range(fields: dict[str, float], tmp_path: Path) -> None:
    for action in (run, describe):
        with pytest.raises(UsageError, match="must be"):
            action(spec(), tmp_path, **fields)


def test_images_of_a_file_are_the_same_table_wherever_it_lies(tmp_path: Path) -> None:
    images, labels = np.random.default_rng(0).integers(0, 256, (9, 6, 6, 3), np.uint8), np.arange(9) % 4
    for name in ("a.npz", "b.npz"):
        np.savez(tmp_path / name, images=images, labels=labels)
    real = [spec(inputs=f"npz:{tmp_path / name}", selection=Sample(n=n)) for name, n in (("a.npz", 2), ("b.npz", 4))]
    assert run(real[0], tmp_path / "t").new == 2
    assert run(real[1], tmp_path / "t", workers=1).new == 2
    assert open_table(tmp_path / "t").identity["recipe"]["inputs"] == f"npz:{real[0].inputs_content}"
    with pytest.raises(IdentityMismatch, match=r"recipe.inputs is 'npz:.*' there and 'noise' here"):
        run(spec(), tmp_path / "t")
    np.savez(tmp_path / "b.npz", images=images ^ 1, labels=labels)
    with pytest.raises(DataError, match="gives another batch than when the run was specified"):
        run(real[1].model_copy(update={"selection": All()}), tmp_path / "t", workers=1)
    assert len(open_table(tmp_path / "t")) == 4


def test_a_missing_device_is_named(tmp_path: Path) -> None:
    with pytest.raises(CapabilityError, match="no device cuda:99"):
        run(spec(device="cuda:99"), tmp_path)


# -- interruptions


def launch(out: Path, workers: int | None, ready: Path, environment: Mapping[str, str] = NAPS) -> None:
    os.environ.update(environment)
    run(spec(), out, workers=workers, on_event=lambda event: ready.touch())


@pytest.mark.parametrize(("workers", "kills"), [(None, 8), (2, 2)])
def test_killed_at_random_moments_and_relaunched(
    workers: int | None, kills: int, tmp_path: Path, undisturbed: pa.Table
) -> None:
    out, moments = tmp_path / "table", random.Random(20)
    for attempt in range(kills):
        ready = tmp_path / f"ready-{attempt}"
        process = FORK.Process(target=launch, args=(out, workers, ready))
        process.start()
        while not ready.exists() and process.is_alive():
            time.sleep(0.005)
        time.sleep(moments.uniform(0.0, 0.4) if workers is None else moments.uniform(2.0, 6.0))
        started = children(process.pid)
        committed = sum(map(len, shard_sizes(out)))
        assert len(started) == (workers or 0) or committed == 24, "workers stay until all is committed"
        process.kill()
        process.join()
        wait_for_end(started)
        assert all(len(shard) in (0, 8) for shard in shard_sizes(out))
    run(spec(), out)
    differing = [(a, b) for a, b in zip(content(out).to_pylist(), undisturbed.to_pylist(), strict=True) if a != b]
    assert differing == []
    assert not list(out.glob(".*"))


def wait_for_end(pids: list[int], seconds: float = 30) -> None:
    """Workers end with their supervisor."""
    deadline = time.monotonic() + seconds
    while any(map(is_running, pids)):
        assert time.monotonic() < deadline, "a worker outlived its supervisor"
        time.sleep(0.05)


def shard_sizes(out: Path) -> list[list[int]]:
    """Indices in each shard file: a killed run leaves whole shards only."""
    return [pa.parquet.read_table(path)["index"].to_pylist() for path in out.glob("shard-*")]


def children(pid: int) -> list[int]:
    """Processes started by ``pid``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            if parent_and_state(path)[0] == str(pid):
                found.append(int(path.parent.name))
    return found


def is_running(pid: int) -> bool:
    try:
        return parent_and_state(Path(f"/proc/{pid}/stat"))[1] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def parent_and_state(path: Path) -> tuple[str, str]:
    state, parent = path.read_text().rsplit(")", 1)[1].split()[:2]
    return parent, state


def test_ctrl_c_commits_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAZARD_ELSE", "nap")
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it for what runs behind them
    rows = 0

    def interrupt(event: Event) -> None:
        nonlocal rows
        rows += event.rows if isinstance(event, Scored) else 0
        if rows == 8:  # the last row of the first shard has come in and is not committed yet
            rows += 1
            signal.raise_signal(signal.SIGINT)

    try:
        with pytest.raises(KeyboardInterrupt):
            run(spec(), tmp_path, on_event=interrupt)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert open_table(tmp_path).to_arrow()["index"].to_pylist() == list(range(8))
    assert status(tmp_path).planned == 24 and not status(tmp_path).complete
    assert run(spec(), tmp_path).present == 8


def test_who_raises_when_told_of_a_shard_costs_no_rows_that_have_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HAZARDS", json.dumps({"2": "raise", "18": "raise"}))
    for part in (Range(start=0, stop=8), Range(start=16, stop=24)):
        run(spec(selection=part), tmp_path / "many")
    compact(tmp_path / "many", tmp_path / "one")
    monkeypatch.delenv("HAZARDS")
    monkeypatch.setattr("zcpipe.run.assembly._IN_FLIGHT", 0)  # it is told of each shard at once
    rows = 0

    def listen(event: Event) -> None:
        nonlocal rows
        rows += event.rows if isinstance(event, Scored) else 0
        if rows == 10:  # those of 2 and 3, which wait for 18 and 19 in one file, and a new shard
            raise RuntimeError("no ear")

    with pytest.raises(RuntimeError, match="no ear"):
        run(spec(), tmp_path / "one", retry_errors=True, on_event=listen)
    found = open_table(tmp_path / "one").to_arrow()
    assert found["index"].to_pylist() == list(range(24))
    assert found.filter(pa.compute.not_equal(found["status"], "ok"))["index"].to_pylist() == [18, 19]


def test_a_smaller_selection_that_is_there_completes_what_a_larger_one_left(tmp_path: Path) -> None:
    run(spec(selection=Range(start=0, stop=8)), tmp_path)
    with locked(tmp_path, find_groups(tmp_path)[0].header) as store:
        note(store, planned=24)  # as a run of all that was interrupted leaves it
    assert not status(tmp_path).complete
    events = list[Event]()
    assert run(spec(selection=Range(start=2, stop=6)), tmp_path, on_event=events.append).new == 0
    assert status(tmp_path).complete and status(tmp_path).planned == 8
    (warned,) = (event.message for event in events if isinstance(event, Warned))
    assert warned.startswith(f"an earlier run left 16 rows of {tmp_path} undone; zcpipe status goes by this run")
    run(spec(selection=Range(start=2, stop=6)), tmp_path, on_event=events.append)
    assert sum(isinstance(event, Warned) for event in events) == 1


def test_a_worker_whose_interpreter_is_held_ends_with_its_supervisor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HAZARDS", json.dumps({"0": "hold"}))
    monkeypatch.setenv("HAZARD_MARKS", str(tmp_path))
    environment = {name: os.environ[name] for name in ("HAZARDS", "HAZARD_MARKS")}
    process = FORK.Process(target=launch, args=(tmp_path / "table", 1, tmp_path / "ready", environment))
    process.start()
    while not (tmp_path / "member-0").exists():
        assert process.is_alive()
        time.sleep(0.05)
    (worker,) = children(process.pid)
    process.kill()
    process.join()
    try:
        wait_for_end([worker], seconds=10)
    finally:
        with suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)


# -- retrying


def test_failed_rows_are_retried_in_their_own_files_and_nothing_else_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: pa.Table
) -> None:
    monkeypatch.setenv("HAZARDS", json.dumps({"2": "raise", "14": "raise", "16": "greedy"}))
    out = tmp_path / "table"
    assert run(spec(selection=Range(start=0, stop=22)), out).by_status == {"ok": 16, "error": 4, "memory": 2}
    before = {path.name: path.read_bytes() for path in out.glob("shard-*")}
    monkeypatch.setenv("HAZARDS", json.dumps({"14": "raise"}))

    summary = run(spec(), out, retry_errors=True)

    assert (summary.present, summary.new, summary.by_status) == (16, 8, {"ok": 22, "error": 2})
    assert_like(content(out), undisturbed, {14, 15})
    after = {path.name: path.read_bytes() for path in out.glob("shard-*")}
    assert before.keys() < after.keys() and len(after) == len(before) + 1, "rows 22 and 23 are new"
    monkeypatch.delenv("HAZARDS")
    assert run(spec(), out, workers=1, retry_errors=True).by_status == {"ok": 24}
    assert content(out).equals(undisturbed)
    assert run(spec(), out, retry_errors=True).new == 0


def test_retrying_touches_only_what_was_selected_and_what_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HAZARDS", json.dumps({"2": "raise", "14": "raise"}))
    run(spec(), tmp_path)
    seconds = dict(zip(range(24), open_table(tmp_path).to_arrow()["seconds"].to_pylist(), strict=True))
    monkeypatch.delenv("HAZARDS")
    assert run(spec(selection=Range(start=0, stop=8)), tmp_path, retry_errors=True).by_status == {"ok": 8}
    assert outcomes(tmp_path).keys() == {14, 15}
    now = dict(zip(range(24), open_table(tmp_path).to_arrow()["seconds"].to_pylist(), strict=True))
    assert {index for index in seconds if now[index] != seconds[index]} <= {2, 3}


def test_dry_run_counts_what_would_be_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAZARDS", json.dumps({"2": "raise", "14": "raise"}))
    run(spec(selection=Range(start=0, stop=20)), tmp_path)
    for fields, retry, done, classes, shards in (
        ({}, False, 20, 2, 1),
        ({}, True, 16, 4, 3),
        ({"selection": Range(start=0, stop=8)}, True, 6, 1, 1),
        ({"selection": Range(start=4, stop=8)}, True, 4, 0, 0),
    ):
        planned = describe(spec(**fields), tmp_path, retry_errors=retry)
        left = planned["architectures"] - done
        assert planned["done"] == planned["groups"][0]["done"] == done
        assert planned["todo"] == {"architectures": left, "classes": classes, "shards": shards}
        assert planned["groups"][0]["todo"] == planned["todo"]
    monkeypatch.delenv("HAZARDS")
    assert run(spec(), tmp_path, retry_errors=True).new == 8


def test_reasons_are_those_of_the_selection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAZARDS", json.dumps({"2": "raise", "14": "raise"}))
    assert run(spec(), tmp_path).reasons == {f"*: ValueError: told to raise for member-{i}": 2 for i in (2, 14)}
    again = run(spec(selection=Range(start=2, stop=9)), tmp_path)
    assert again.reasons == {"*: ValueError: told to raise for member-2": 2}
    assert run(spec(selection=Range(start=4, stop=9)), tmp_path).reasons == {}


def test_a_long_retry_shows_what_it_has_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: pa.Table
) -> None:
    monkeypatch.setenv("HAZARDS", json.dumps({"2": "raise", "14": "raise", "20": "raise"}))
    run(spec(), tmp_path / "many")
    compact(tmp_path / "many", tmp_path / "one")
    monkeypatch.delenv("HAZARDS")
    monkeypatch.setattr("zcpipe.run.assembly._AMENDING", 0.0)
    events = list[Event]()
    run(spec(), tmp_path / "one", retry_errors=True, on_event=events.append)
    assert [event.rows for event in events if isinstance(event, Committed)] == [2, 2, 2]
    assert content(tmp_path / "one").equals(undisturbed)


def test_a_retry_of_which_nothing_succeeds_is_no_sign_of_a_fault_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zcpipe.run.blame._STREAK", 2)
    monkeypatch.setenv("HAZARDS", json.dumps({"2": "hang", "4": "hang"}))
    few = spec(selection=Range(start=0, stop=6))
    for retry, new in ((False, 6), (True, 4)):
        summary = run(few, tmp_path, workers=1, timeout=5.0, retry_errors=retry)
        assert (summary.new, summary.by_status) == (new, {"ok": 2, "timeout": 4})


def test_rows_of_a_compacted_table_are_retried_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: pa.Table
) -> None:
    monkeypatch.setenv("HAZARDS", json.dumps({"2": "raise", "14": "raise", "20": "raise"}))
    run(spec(), tmp_path / "many")
    compact(tmp_path / "many", tmp_path / "one")
    monkeypatch.delenv("HAZARDS")
    events = list[Event]()
    assert run(spec(), tmp_path / "one", retry_errors=True, on_event=events.append).by_status == {"ok": 24}
    assert [event.rows for event in events if isinstance(event, Committed)] == [6], "the one file is written once"
    assert content(tmp_path / "one").equals(undisturbed)
    assert len(list((tmp_path / "one").glob("rows-*"))) == 1 and not list((tmp_path / "one").glob("shard-*"))
