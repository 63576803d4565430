"""Tables that were compacted or merged go on as tables of runs: the rows, columns and growth of one run."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from small_runs import content
from typer.testing import CliRunner

from zcpipe.cli import app
from zcpipe.cli_table import compact as compact_command
from zcpipe.run import All, Event, Range, RunSpec, Sample, describe, run
from zcpipe.run.events import Scored
from zcpipe.table import compact, merge, status
from zcpipe.table.groups import find_groups
from zcpipe.table.rewrite import ROWS_PER_FILE
from zcpipe.table.store import shard_paths

EVERYTHING = ("expressivity", "trainability", "complexity", "synflow", "params")


def spec(proxies: Sequence[str] = EVERYTHING, **fields: object) -> RunSpec:
    plain = {"space": "hazards", "dataset": "tiny", "batch_size": 4, "classes_per_shard": 4}
    return RunSpec.model_validate({**plain, "proxies": tuple(proxies), **fields})


@pytest.fixture(scope="module")
def at_once(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    out = tmp_path_factory.mktemp("once") / "table"
    run(spec(), out)
    return content(out)


def test_columns_that_joined_become_those_of_one_run(tmp_path: Path, at_once: pa.Table) -> None:
    for proxies in (EVERYTHING[:2], EVERYTHING[2:4], EVERYTHING[4:]):
        run(spec(proxies), tmp_path / "old")
    compact(tmp_path / "old", tmp_path / "new")
    assert content(tmp_path / "new").equals(at_once)
    assert content(tmp_path / "new").schema.equals(at_once.schema, check_metadata=True)
    assert run(spec(), tmp_path / "new").new == 0


def test_a_compacted_table_resumes_and_grows(tmp_path: Path, at_once: pa.Table) -> None:
    run(spec(EVERYTHING[:2], selection=Range(start=3, stop=9)), tmp_path / "old")
    run(spec(EVERYTHING[2:], selection=Range(start=3, stop=9)), tmp_path / "old")
    compact(tmp_path / "old", tmp_path / "new")
    assert describe(spec(), tmp_path / "new")["done"] == 6
    assert run(spec(), tmp_path / "new").new == 18
    assert [path.name[:6] for path in shard_paths(tmp_path / "new")] == ["rows-0", "shard-", "shard-", "shard-"]
    assert content(tmp_path / "new").equals(at_once) and status(tmp_path / "new").complete
    run(spec(("progressivity",)), tmp_path / "new")
    assert len(find_groups(tmp_path / "new")) == 2
    compact(tmp_path / "new", tmp_path / "again")
    assert content(tmp_path / "again").select(at_once.column_names).equals(at_once)
    assert run(spec((*EVERYTHING, "progressivity")), tmp_path / "again").new == 0


def test_ranges_of_several_clusters_are_the_table_of_one(tmp_path: Path, at_once: pa.Table) -> None:
    for name, begin, stop in (("a", 0, 9), ("b", 7, 17), ("c", 16, 24)):
        run(spec(selection=Range(start=begin, stop=stop)), tmp_path / name)
    merge([tmp_path / "c", tmp_path / "a", tmp_path / "b"], tmp_path / "new")
    assert content(tmp_path / "new").equals(at_once)
    assert run(spec(), tmp_path / "new").new == 0


def test_rows_that_lack_columns_are_still_computed(tmp_path: Path, at_once: pa.Table) -> None:
    run(spec(EVERYTHING[:2], selection=All()), tmp_path / "a")
    run(spec(EVERYTHING[2:], selection=Sample(n=7)), tmp_path / "b")
    merge([tmp_path / "a", tmp_path / "b"], tmp_path / "new")
    summary = run(spec(), tmp_path / "new")
    assert (summary.present, summary.new) == (7, 17)
    assert content(tmp_path / "new").equals(at_once)


def test_what_each_group_still_has_to_do_is_known(tmp_path: Path) -> None:
    def interrupt(event: Event) -> None:
        scored.append(event)
        if sum(isinstance(event, Scored) for event in scored) == 6:  # the first shard is whole, the second is not
            raise KeyboardInterrupt

    scored: list[Event] = []

    base, joining = EVERYTHING[:2], EVERYTHING[2:]
    run(spec(base), tmp_path / "old")
    with pytest.raises(KeyboardInterrupt):
        run(spec(joining), tmp_path / "old", on_event=interrupt)
    left = status(tmp_path / "old").missing
    compact(tmp_path / "old", tmp_path / "new")
    assert left and status(tmp_path / "new").missing == left and not status(tmp_path / "new").complete

    run(spec(base, selection=Range(start=0, stop=8)), tmp_path / "narrow")
    run(spec(joining), tmp_path / "narrow")
    compact(tmp_path / "narrow", tmp_path / "wide")
    assert status(tmp_path / "narrow").complete and status(tmp_path / "wide").complete


def test_a_statistic_is_the_same_whichever_proxy_read_it_first(tmp_path: Path) -> None:
    for name, proxies in (("a", ("expressivity", "stage_expressivity")), ("b", ("stage_expressivity", "expressivity"))):
        run(
            spec(proxies, selection=Range(start=0, stop=12) if name == "a" else Range(start=12, stop=24)),
            tmp_path / name,
        )
    assert merge([tmp_path / "a", tmp_path / "b"], tmp_path / "both").rows == 24
    for proxies in ("expressivity", "stage_expressivity"):
        run(spec((proxies,)), tmp_path / "one")
    compact(tmp_path / "one", tmp_path / "new")
    columns = content(tmp_path / "both").column_names
    assert content(tmp_path / "new").select(columns).to_pylist() == content(tmp_path / "both").to_pylist()


def test_the_commands(tmp_path: Path) -> None:
    def zcpipe(*words: object) -> str:
        return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False).stdout

    for name, selection in (("a", Range(start=0, stop=9)), ("b", Range(start=9, stop=24))):
        run(spec(selection=selection), tmp_path / name)
    text = zcpipe("merge", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "new")
    assert text == f"{tmp_path / 'new'}: 24 rows in 1 file (from 4)\n"
    found = json.loads(zcpipe("compact", tmp_path / "new", "--out", tmp_path / "more", "--rows-per-file", 10, "--json"))
    assert found == {"path": str(tmp_path / "more"), "rows": 24, "files": 3, "groups": 1, "sources": 1}
    assert inspect.signature(compact_command).parameters["rows_per_file"].default == ROWS_PER_FILE
