"""Proxies that join a table later: the same rows as if they had always been there, and nothing written again."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zcpipe.errors import CapabilityError, DataError, IdentityMismatch
from zcpipe.proxies import list_proxies
from zcpipe.rank.population import correlate_table, rank_table
from zcpipe.run import All, Archs, Range, RunSpec, Sample, describe, run
from zcpipe.run.events import Committed, Event, Planned, Scored
from zcpipe.run.work import Progress
from zcpipe.table import open_table, status
from zcpipe.table.groups import companion, find_groups
from zcpipe.table.store import locked, require_header

FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["zcpipe.run"])
EVERYTHING = ("expressivity", "progressivity", "trainability", "complexity", "params")


def spec(proxies: Sequence[str] = EVERYTHING, **fields: object) -> RunSpec:
    plain = {"space": "hazards", "dataset": "tiny", "batch_size": 4, "classes_per_shard": 4}
    return RunSpec.model_validate({**plain, "proxies": tuple(proxies), **fields})


def content(out: Path) -> list[dict[str, object]]:
    """Rows without what may differ: seconds, and the order of columns and failures."""
    rows = open_table(out).to_arrow().drop_columns(["seconds"]).to_pylist()
    for row in rows:
        row["failures"] = sorted(tuple(failure.values()) for failure in row["failures"])
    return rows


def files(out: Path) -> dict[Path, tuple[int, int]]:
    """What is in a table and its groups, notes about runs aside: identity and time of every file."""
    found = [path for root in (out, companion(out)) for path in root.rglob("*") if path.is_file()]
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in found if path.name != "_run.parquet"}


@contextmanager
def failing() -> Iterator[None]:
    """Some architectures fail inside, and only there: other modules' tests run in this process, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HAZARDS", json.dumps({"14": "raise", "16": "greedy"}))
        yield


@pytest.fixture(scope="module")
def at_once(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    out = tmp_path_factory.mktemp("once") / "table"
    with failing():
        run(spec(), out)
    return content(out)


selections = st.one_of(
    st.builds(Sample, n=st.integers(1, 24)),
    st.integers(0, 23).flatmap(lambda a: st.builds(Range, start=st.just(a), stop=st.integers(a + 1, 24))),
    st.lists(st.integers(0, 23), min_size=1).map(lambda found: Archs(texts=tuple(f"member-{i}" for i in found))),
)
asked = st.lists(st.sampled_from(EVERYTHING), min_size=1, unique=True)


@settings(max_examples=8)
@given(st.lists(st.tuples(asked, selections), min_size=1, max_size=4), st.permutations(EVERYTHING))
def test_any_order_and_partition_gives_the_table_of_one_run(
    tmp_path_factory: pytest.TempPathFactory,
    at_once: list[dict[str, object]],
    runs: list[tuple[list[str], object]],
    last: list[str],
) -> None:
    out = tmp_path_factory.mktemp("grown") / "table"
    before: dict[Path, tuple[int, int]] = {}
    for proxies, selection in [*runs, (last, All())]:
        with failing():
            run(spec(proxies, selection=selection), out)
        now = files(out)
        assert before.items() <= now.items(), "what is there is never written again"
        before = now
        for row in content(out):
            want = at_once[row["index"]]
            for name in row.keys() - {"status", "failures"}:
                assert row[name] in (None, want[name]) or np.array_equal(row[name], want[name])
    assert content(out) == at_once
    assert status(out).complete and status(out).by_status == {"ok": 20, "error": 2, "memory": 2}


def test_proxies_join_for_the_rows_of_the_selection(tmp_path: Path) -> None:
    out, events = tmp_path / "t", list[Event]()
    run(spec(("expressivity",), selection=Range(start=0, stop=6)), out)
    before = files(out)
    summary = run(spec(("expressivity", "trainability"), selection=Range(start=2, stop=8)), out, on_event=events.append)
    assert (summary.planned, summary.present, summary.new, summary.by_status) == (6, 0, 6, {"ok": 6})
    assert events[0] == Planned(12, 4)
    assert sum(event.rows for event in events if isinstance(event, Scored)) == 8
    assert before.items() <= files(out).items()
    table = open_table(out)
    rows = table.to_arrow()
    assert len(table) == 8 and rows["index"].to_pylist() == list(range(8))
    assert [v is None for v in rows["expressivity"].to_pylist()] == [False] * 8
    assert [v is None for v in rows["trainability"].to_pylist()] == [True] * 2 + [False] * 6
    assert rows["trainability@block"].to_pylist()[1] is None and len(rows["trainability@block"].to_pylist()[2]) == 1
    assert rows["params"].null_count == 0 and rows["status"].to_pylist() == ["ok"] * 8
    assert [column.name for column in table.columns][:2] == ["expressivity", "trainability"]
    again = run(spec(("trainability",), selection=Range(start=6, stop=9)), out)
    assert (again.present, again.new) == (2, 1), "only the group that holds the proxy grows"
    assert open_table(out).to_arrow()["expressivity"].to_pylist()[8] is None
    assert run(spec(("trainability",), selection=Range(start=6, stop=9)), out).new == 0


def test_every_command_sees_all_columns(tmp_path: Path) -> None:
    out = tmp_path / "t"
    run(spec(("expressivity", "progressivity"), selection=Range(start=0, stop=8)), out)
    run(spec(("complexity", "trainability"), selection=Range(start=4, stop=10)), out)
    found, table = status(out), open_table(out)
    assert (found.rows, found.planned, found.missing, found.by_status) == (10, 10, 0, {"ok": 10})
    assert [(group.rows, group.planned) for group in found.groups] == [(8, 8), (6, 6)]
    assert {"trainability", "expressivity"} <= set(found.columns)
    assert len(table.lookup(["member-9"], ["expressivity", "trainability"])) == 1
    assert table.top(9)["index"].to_pylist() and set(table.top(9)["index"].to_pylist()) <= set(range(4, 8))
    assert rank_table(table, "logrank", "expressivity,trainability", 3)[0] == 4
    correlated = {row.name: row for row in correlate_table(table, np.arange(10.0), "truth", {})}
    assert (correlated["expressivity"].n, correlated["trainability"].n, correlated["aznas"].n) == (8, 6, 4)
    assert correlated["params"].n == 10
    base, group = (
        pa.dataset.dataset(group.directory).to_table(["index", "seconds"]).to_pylist() for group in find_groups(out)
    )
    seconds = dict.fromkeys(range(10), 0.0)
    for row in [*base, *group]:
        seconds[row["index"]] += row["seconds"]
    assert table.to_arrow(["seconds"])["seconds"].to_pylist() == list(seconds.values())


def test_statuses_and_failures_of_the_groups_are_combined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, some = tmp_path / "t", Range(start=0, stop=6)
    monkeypatch.setenv("HAZARDS", json.dumps({"0": "raise", "2": "raise"}))
    assert run(spec(("expressivity",), selection=some), out).by_status == {"ok": 2, "error": 4}
    monkeypatch.setenv("HAZARDS", json.dumps({"2": "greedy", "4": "raise"}))
    assert run(spec(("trainability",), selection=some), out).by_status == {"ok": 2, "error": 2, "memory": 2}
    rows = open_table(out).to_arrow().to_pylist()
    assert [row["status"] for row in rows] == ["error", "error", "memory", "memory", "error", "error"]
    assert [[failure["kind"] for failure in row["failures"]] for row in rows[::2]] == [
        ["error"], ["error", "memory"], ["error"],
    ]  # fmt: skip
    assert status(out).by_status == {"error": 4, "memory": 2}
    assert status(out).reasons["*: ValueError: told to raise for member-4"] == 2
    summary = run(spec(("expressivity", "trainability"), selection=some), out)
    assert (summary.new, summary.by_status) == (0, {"error": 4, "memory": 2})


def test_what_ended_one_group_costs_no_other_the_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "t"
    monkeypatch.setenv("HAZARDS", json.dumps({"4": "raise"}))  # and 5, of the same key
    run(spec(("expressivity",), selection=Range(start=0, stop=8)), out)
    run(spec(("trainability",), selection=Range(start=0, stop=3)), out)
    correlated = {row.name: row for row in correlate_table(open_table(out), np.arange(8.0), "truth", {})}
    found = {name: (row.n, row.failed, row.missing) for name, row in correlated.items()}
    assert found["expressivity"] == (6, 2, 0)
    assert found["trainability"] == (3, 0, 5)


def test_repeats_and_spaces_without_an_enumeration(tmp_path: Path) -> None:
    fields = {"space": "endless", "repeats": 2}
    run(spec(("expressivity",), selection=Sample(n=5), **fields), tmp_path / "t")
    run(spec(("trainability", "expressivity"), selection=Sample(n=11), classes_per_shard=9, **fields), tmp_path / "t")
    run(spec(("expressivity", "trainability"), selection=Sample(n=11), **fields), tmp_path / "once")
    assert content(tmp_path / "t") == content(tmp_path / "once")
    names = open_table(tmp_path / "t").to_arrow().column_names
    assert names == open_table(tmp_path / "once").to_arrow().column_names
    assert names[4:8] == ["expressivity", "expressivity_sd", "trainability", "trainability_sd"]


def test_dry_run_says_what_would_be_added(tmp_path: Path) -> None:
    out = tmp_path / "t"
    run(spec(("expressivity",), selection=Sample(n=6)), out)
    before = files(out)
    planned = describe(spec(("expressivity", "trainability", "complexity")), out)
    assert planned["spec"]["proxies"] == ["expressivity", "trainability", "complexity"]
    assert (planned["done"], planned["todo"]["architectures"]) == (0, 24)
    assert [(g["exists"], g["proxies"], g["done"], g["todo"]["architectures"]) for g in planned["groups"]] == [
        (True, ["expressivity"], 6, 18),
        (False, ["trainability", "complexity"], 0, 24),
    ]
    assert {"trainability", "expressivity@block", "trainability@block"} <= set(planned["schema"])
    json.dumps(planned)
    assert files(out) == before and not companion(out).exists()


def test_other_readers_see_the_table_itself_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    duckdb, pandas, polars = (pytest.importorskip(name) for name in ("duckdb", "pandas", "polars"))
    out = tmp_path / "t"
    run(spec(("expressivity",), selection=Sample(n=6)), out)
    want = open_table(out).to_arrow()["index"].to_pylist()
    names = open_table(out).to_arrow().column_names
    run(spec(("expressivity", "trainability"), selection=Sample(n=6)), out)
    assert "trainability" in open_table(out).to_arrow().column_names
    for path in (str(out), f"{out}/*.parquet", f"{out}/**/*.parquet"):
        frame = polars.read_parquet(path)
        assert sorted(frame["index"]) == want and frame.columns == names
        assert sorted(duckdb.sql(f"select index from read_parquet('{path}')").fetchall()) == [(i,) for i in want]
    for read in (pandas.read_parquet, lambda path: pa.dataset.dataset(path).to_table().to_pandas()):
        assert sorted(read(out)["index"]) == want and list(read(out)) == names
    assert sorted(polars.scan_parquet(out).collect()["index"]) == want
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    for way in ({"path": str(out)}, {"path": "parquet", "data_dir": str(out)}):
        loaded = datasets.load_dataset(**way, split="train", cache_dir=str(tmp_path / "cache"))
        assert sorted(loaded["index"]) == want and loaded.column_names == names
    group = companion(out) / "0001"
    assert sorted(pandas.read_parquet(group)["index"]) == want, "a group is a table of its own"


def launch(out: Path) -> None:
    """Run until a shard is committed, and die two architectures later: in the middle of the next one."""
    committed, scored = False, 0

    def count(event: Event) -> None:
        nonlocal committed, scored
        committed |= isinstance(event, Committed)
        scored += committed and isinstance(event, Scored)
        if scored == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    os.environ["HAZARD_ELSE"] = "nap"  # a shard is visible before the next is scored
    with failing():
        run(spec(), out, on_event=count)


def test_killed_in_the_middle_of_groups_and_relaunched(tmp_path: Path, at_once: list[dict[str, object]]) -> None:
    out, seen = tmp_path / "t", []
    with failing():
        run(spec(("trainability",), selection=Sample(n=3)), out)
    while True:
        process = FORK.Process(target=launch, args=(out,))
        process.start()
        process.join()
        seen.append([group.rows for group in status(out).groups])
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        assert not status(out).complete
        assert [group.planned for group in status(out).groups] == [24, 24], "also of a group that is not begun"
    # Every launch lived until a shard was visible; rows come into the group when the table is complete.
    counts = [sum(rows) for rows in seen]
    assert counts == sorted(set(counts)) and len(seen) >= 4
    assert all(rows[0] == 24 or rows[1] == 0 for rows in seen) and seen[-1] == [24, 24]
    assert content(out) == at_once
    assert not [path for root in (out, companion(out)) for path in root.rglob(".*")]


def test_what_a_dead_run_left_of_a_group_is_used(tmp_path: Path) -> None:
    out = tmp_path / "t"
    run(spec(("expressivity",), selection=Sample(n=2)), out)
    (companion(out) / "0001").mkdir(parents=True)
    (companion(out) / "0001" / ".writing-12.part").write_bytes(b"half")
    assert "trainability" not in open_table(out).to_arrow().column_names
    run(spec(("trainability",), selection=Sample(n=2)), out)
    assert sorted(path.name for path in companion(out).iterdir()) == ["0001"]
    assert len(find_groups(out)) == 2 and not list(companion(out).rglob(".*"))


def test_a_table_must_come_with_its_groups(tmp_path: Path) -> None:
    out = tmp_path / "t"
    run(spec(("expressivity",), selection=Sample(n=2)), out)
    run(spec(("trainability",), selection=Sample(n=2)), out)
    moved = tmp_path / "moved"
    out.rename(moved)
    for use in (open_table, status, lambda path: run(spec(selection=Sample(n=2)), path)):
        with pytest.raises(DataError, match=r"has 1 column groups, but .*moved.columns holds 0; move that directory"):
            use(moved)
    with pytest.raises(DataError, match=r"t.columns holds columns of a table that is not at .*; bring it back"):
        run(spec(selection=Sample(n=2)), out)
    assert not out.exists()
    companion(out).rename(companion(moved))
    (tmp_path / "link").symlink_to(moved)
    assert "trainability" in open_table(tmp_path / "link").to_arrow().column_names


def test_groups_of_another_identity_are_refused(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        for proxies in (("expressivity",), ("trainability",)):
            run(spec(proxies, selection=Sample(n=2), seed=seed), tmp_path / name)
    with pytest.raises(IdentityMismatch, match="seed is 0 there and 1 here"):
        run(spec(("complexity",), seed=1), tmp_path / "a")
    shutil.rmtree(companion(tmp_path / "a"))
    companion(tmp_path / "b").rename(companion(tmp_path / "a"))
    with pytest.raises(DataError, match=r"a.columns/0001 holds columns of a table of another identity"):
        open_table(tmp_path / "a")


def test_a_table_with_a_proxy_that_is_not_installed_does_not_grow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "table"
    run(spec(("params", "progressivity"), selection=Range(start=0, stop=4)), out)
    before = files(out)
    left = [name for name in list_proxies() if name != "progressivity"]
    monkeypatch.setattr("zcpipe.run.job.list_proxies", lambda: left)
    with pytest.raises(CapabilityError, match=r"proxies that are not installed here \(progressivity\); install"):
        run(spec(("params",)), out)
    assert files(out) == before


def test_one_supervisor_writes_a_table_and_its_groups(tmp_path: Path) -> None:
    out = tmp_path / "t"
    run(spec(("expressivity",), selection=Sample(n=2)), out)
    with (
        locked(out, require_header(out)),
        pytest.raises(DataError, match="being written by another zcpipe run"),
    ):
        run(spec(("trainability",), selection=Sample(n=2)), out)
    assert not companion(out).exists()


def test_another_run_that_was_faster_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between planning and locking another run may have made the table, or added the group."""
    from zcpipe.run import supervisor

    out, plan_of = tmp_path / "t", supervisor.prepare
    for first, second in ((("expressivity",), ("trainability",)), (("complexity",), ("progressivity",))):

        def slow(asked: RunSpec, where: Path, progress: Progress, others: tuple[str, ...] = second) -> object:
            planned = plan_of(asked, where, progress)
            monkeypatch.setattr(supervisor, "prepare", plan_of)
            run(spec(others, selection=Sample(n=2)), out)
            return planned

        monkeypatch.setattr(supervisor, "prepare", slow)
        run(spec(first, selection=Sample(n=2)), out)
    rows = open_table(out).to_arrow()
    assert [len(group.proxies) for group in find_groups(out)] == [3, 3, 3, 3]
    assert all(rows[name].null_count == 0 for name in EVERYTHING)
