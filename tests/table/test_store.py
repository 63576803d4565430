"""The directory: commits whole or not at all, once; what is damaged, foreign, locked or full is named."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
from dataclasses import replace
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zcpipe.errors import DataError, IdentityMismatch, UsageError
from zcpipe.scoring.columns import Column
from zcpipe.table import Table, compact, join, open_table, status, summary
from zcpipe.table.files import TEMPORARY, publish
from zcpipe.table.join import Part
from zcpipe.table.schema import Header, to_arrow
from zcpipe.table.store import Store, find_header, locked, scan

BUILD = {"native": True, "cpu": "AVX2"}
FORK = multiprocessing.get_context("forkserver")


def header(seed: int = 0) -> Header:
    kinds = {"expressivity": "proxy", "progressivity": "proxy", "trainability": "proxy", "complexity": "proxy"}
    kinds |= {"error_rate": "proxy", "params": "count", "e@block": "statistic"}
    directions = {"params": "none", "e@block": "none", "error_rate": "lower"}
    columns = [
        Column(name, kind, "", directions.get(name, "higher"), "function", "", ("a", "b") if "@" in name else ())
        for name, kind in kinds.items()
    ]
    identity = {"space": "s", "dataset": "d", "recipe": {"batch_size": 4, "repeats": 1}, "seed": seed}
    return Header(tuple(columns), {"proxies": ["x"]}, identity)


def row(index: int, **values: object) -> dict[str, object]:
    scores = dict.fromkeys(("expressivity", "progressivity", "trainability", "complexity"), float(index))
    plain = {"index": index, "arch": f"arch-{index}", "key": f"k{index // 2}", "space": "s", **scores}
    rest = {"error_rate": float(index), "params": index, "e@block": [0.5, index], "seconds": 0.1}
    return {**plain, **rest, "status": "ok", "failures": [], **values}


def commit(store: Store, number: int, rows: list[dict[str, object]]) -> Path:
    return store.commit(number, to_arrow(rows, store.header.schema), [BUILD])


def make(directory: Path, *shards: list[dict[str, object]]) -> Table:
    with locked(directory, header()) as store:
        for number, rows in enumerate(shards):
            commit(store, number, rows)
    return open_table(directory)


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return make(tmp_path / "t", [row(i) for i in (4, 1, 7)], [row(2), row(0, status="error", error_rate=None)])


# -- reading


def test_rows_come_sorted_by_index(table: Table) -> None:
    assert len(table) == 5
    assert table.to_arrow()["index"].to_pylist() == [0, 1, 2, 4, 7]
    assert table.to_arrow(["params", "arch"]).column_names == ["params", "arch"]
    assert table.to_pandas(["params"])["params"].tolist() == [0, 1, 2, 4, 7]
    assert table.identity["seed"] == 0 and table.spec == {"proxies": ["x"]}
    assert table.columns == header().columns


def test_columns_that_are_too_large_for_one_piece_come_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond 2 GiB of text Arrow cannot put them together; here beyond 100 bytes."""
    shards = [[row(i, key="k" * (i % 9)) for i in range(k, 60, 7)] for k in range(7)]
    table = make(tmp_path / "t", *shards)
    whole, found = table.to_arrow(), table.lookup(["arch-3", "arch-0", "arch-3"])
    monkeypatch.setattr(join, "_WHOLE", 100)
    assert table.to_arrow().equals(whole) and table.to_arrow().column(1).num_chunks > 5
    assert table.lookup(["arch-3", "arch-0", "arch-3"]).equals(found)
    assert len(table.lookup([])) == 0
    first = (pa.chunked_array([["a", None], ["c"]]), np.array([0, 1, 3]))
    second = (pa.chunked_array([["x" * 150, "y"]]), np.array([1, 3]))
    assert join._first([first, second], 5).to_pylist() == ["a", "x" * 150, None, "c", None]


def test_status_reads_only_files_with_rows_that_are_not_ok(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = ({"proxy": name, "kind": "error", "message": "no"} for name in ("a", "b"))
    rows = [row(8, status="partial", failures=[one]), row(3, status="error", failures=[two, one]), row(5)]
    make(tmp_path / "t", [row(i) for i in (4, 1, 7)], rows)
    read, columns_of = [], summary.read_columns
    monkeypatch.setattr(
        summary, "read_columns", lambda path, names: read.append((path.name[:11], names)) or columns_of(path, names)
    )
    found = status(tmp_path / "t")
    assert list(found.by_status.items()) == [("ok", 4), ("partial", 1), ("error", 1)]
    assert list(found.reasons.items()) == [("a: no", 2), ("b: no", 1)]
    assert read == [("shard-00001", ["index", "failures"])]


def test_lookup_in_the_order_asked(table: Table) -> None:
    found = table.lookup(["arch-7", "arch-0", "arch-7"], ["index", "e@block"])
    assert found.to_pylist()[0] == {"index": 7, "e@block": [0.5, 7.0]}
    assert found["index"].to_pylist() == [7, 0, 7]
    assert len(table.lookup([])) == 0
    with pytest.raises(DataError, match=r"4 architectures are not in the table: x, y, z \.\.\."):
        table.lookup(["x", "arch-1", "y", "z", "w", "x"])
    with pytest.raises(UsageError, match=r"unknown column 'parms'; did you mean params"):
        table.lookup(["arch-1"], ["parms"])


def test_values_and_directions_are_what_rankings_are_made_of(table: Table) -> None:
    assert np.array_equal(table.values(["error_rate"])["error_rate"], [np.nan, 1, 2, 4, 7], equal_nan=True)
    assert table.values(["params"])["params"].dtype == np.float64
    assert table.directions(["error_rate", "expressivity"]) == {"error_rate": "lower", "expressivity": "higher"}
    with pytest.raises(UsageError, match="unknown proxy of the table 'params'"):
        table.directions(["params"])


def test_top_follows_directions_and_leaves_failed_rows_out(table: Table) -> None:
    assert table.top(2, by="expressivity")["index"].to_pylist() == [7, 4]
    assert table.top(9, by="error_rate")["index"].to_pylist() == [1, 2, 4, 7]
    best = table.top(2)
    assert best["index"].to_pylist() == [7, 4] and best["aznas"].to_pylist()[0] == 0.0
    for bad in ("e@block", "params", "status"):
        with pytest.raises(UsageError, match="unknown proxy of the table"):
            table.top(1, by=bad)
    few = Header(header().columns[1:], {}, header().identity)
    with pytest.raises(UsageError, match="needs the column expressivity"):
        Table(Part(few, {})).top(1)
    with pytest.raises(UsageError, match="positive number"):
        table.top(0)


def test_ties_go_to_the_smaller_index_and_minus_infinity_last(tmp_path: Path) -> None:
    table = make(tmp_path, [row(i, expressivity=-float("inf") if i == 3 else 1.0) for i in range(5)])
    assert table.top(5, by="expressivity")["index"].to_pylist() == [0, 1, 2, 4, 3]


def test_an_empty_table_is_a_table(tmp_path: Path) -> None:
    table = make(tmp_path)
    assert len(table) == 0 and table.to_arrow().schema.names == header().schema.names
    assert status(tmp_path).rows == status(tmp_path).planned == 0


def test_status_counts(table: Table, tmp_path: Path) -> None:
    found = status(tmp_path / "t")
    assert (found.rows, found.shards, found.by_status) == (5, 2, {"ok": 4, "error": 1})
    assert found.complete


def test_every_reader_opens_the_directory_unchanged(
    table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    duckdb, pandas, polars = (pytest.importorskip(name) for name in ("duckdb", "pandas", "polars"))
    directory = str(tmp_path / "t")
    want = [0, 1, 2, 4, 7]
    assert sorted(pandas.read_parquet(directory)["index"]) == want
    for path in (directory, f"{directory}/*.parquet"):
        assert sorted(polars.read_parquet(path)["index"]) == want
        assert sorted(polars.scan_parquet(path).collect()["index"]) == want
        assert sorted(duckdb.sql(f"select index from read_parquet('{path}')").fetchall()) == [(i,) for i in want]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    for way in ({"path": directory}, {"path": "parquet", "data_dir": directory}):
        loaded = datasets.load_dataset(**way, split="train", cache_dir=str(tmp_path / "cache"))
        assert sorted(loaded["index"]) == want
    assert loaded.features["e@block"].feature.dtype == "float32"


# -- committing


@settings(deadline=None, max_examples=20)
@given(st.permutations(range(6)), st.integers(0, 2**31))
def test_committing_twice_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], shard: int
) -> None:
    directory = tmp_path_factory.mktemp("t")
    with locked(directory, header()) as store:
        first = commit(store, shard, [row(i) for i in range(6)])
        before = first.stat()
        assert commit(store, shard, [row(i, seconds=9.0) for i in order]) == first
        assert first.stat() == before
        assert commit(store, shard, [row(6)]) != first
    assert len(open_table(directory)) == 7


def test_unfinished_files_of_dead_runs_are_removed(tmp_path: Path) -> None:
    make(tmp_path, [row(1)])
    (tmp_path / f"{TEMPORARY}12-shard-00000-00.parquet.part").write_bytes(b"half")
    assert len(open_table(tmp_path)) == 1
    make(tmp_path)
    assert not list(tmp_path.glob(".*"))


def test_a_run_that_died_before_its_first_file_left_no_table(tmp_path: Path) -> None:
    (tmp_path / f"{TEMPORARY}12-_zcpipe.parquet.part").write_bytes(b"")
    assert find_header(tmp_path) is None
    assert len(make(tmp_path, [row(1)])) == 1


def test_a_second_supervisor_is_refused_by_name(tmp_path: Path) -> None:
    with locked(tmp_path, header()) as store:
        store.note_run(planned=3)
        with (
            pytest.raises(DataError, match=rf"another zcpipe run \(process {os.getpid()}\)"),
            locked(tmp_path, header()),
        ):
            pass
        assert status(tmp_path).planned == 3
    make(tmp_path)


def test_another_identity_is_refused_and_nothing_touched(tmp_path: Path) -> None:
    make(tmp_path, [row(1)])
    before = sorted(path.stat().st_mtime_ns for path in tmp_path.iterdir())
    with pytest.raises(IdentityMismatch, match="seed is 0 there and 3 here"), locked(tmp_path, header(seed=3)):
        pass
    assert sorted(path.stat().st_mtime_ns for path in tmp_path.iterdir()) == before


class Supervisors(NamedTuple):
    """What processes that all want one new table share."""

    out: Path
    start: Barrier
    seen: Queue


def supervise(number: int, shared: Supervisors, rounds: int) -> None:
    """Try to hold one new table after another, at the moment when the others try."""
    for attempt in range(rounds):
        directory, inside = shared.out / f"t{attempt}", shared.out / f"inside-{attempt}"
        shared.start.wait()
        try:
            with locked(directory, header(seed=attempt % 2 * number)) as store:
                inside.touch(exist_ok=False)  # no two are here at once
                commit(store, number, [row(1), row(2)]) if not scan(directory, store.header).index.size else None
                inside.unlink()
            shared.seen.put((attempt, "held"))
        except IdentityMismatch:
            shared.seen.put((attempt, "mismatch"))
        except DataError as error:
            shared.seen.put((attempt, str(error)))
        except BaseException as error:
            shared.seen.put((attempt, repr(error)))


def test_of_several_supervisors_of_a_new_table_one_makes_it(tmp_path: Path) -> None:
    rounds, count = 60, 4
    shared = Supervisors(tmp_path, FORK.Barrier(count), FORK.Queue())
    processes = [FORK.Process(target=supervise, args=(number, shared, rounds)) for number in range(count)]
    for process in processes:
        process.start()
    seen = [shared.seen.get(timeout=120) for _ in range(rounds * count)]
    for process in processes:
        process.join()
    for attempt in range(rounds):
        answers = [answer for number, answer in seen if number == attempt]
        same = attempt % 2 == 0  # otherwise those of another identity hold the lock too, while they find that out
        for answer in answers:
            refused = "is being written by another zcpipe run" in answer or (answer == "mismatch" and not same)
            assert answer == "held" or refused, answer
        assert "held" in answers or not same
        rows = open_table(tmp_path / f"t{attempt}").to_arrow()["index"].to_pylist()
        assert rows == ([1, 2] if "held" in answers else [])
    assert not list(tmp_path.glob(f"*/{TEMPORARY}*"))


def test_a_row_in_two_files_is_refused(table: Table, tmp_path: Path) -> None:
    other = make(tmp_path / "other", [row(0), row(1), row(9)])
    (shard,) = (tmp_path / "other").glob("shard-*")
    shard.rename(tmp_path / "t" / shard.name)
    assert len(other) == 3
    for use in (status, lambda path: scan(path, header()), lambda path: open_table(path).to_arrow()):
        with pytest.raises(DataError, match=rf"row 0 is in the table .* twice, in .*{shard.name}.*2 rows are.*; move"):
            use(tmp_path / "t")


def test_a_directory_must_have_a_name_in_text(tmp_path: Path) -> None:
    named = tmp_path / os.fsdecode(b"a\xffb")
    for use in (find_header, open_table, status):
        with pytest.raises(UsageError, match=r"a\\udcffb' is not named in UTF-8; choose another name"):
            use(named)
    with pytest.raises(UsageError, match="not named in UTF-8"), locked(named, header()):
        pass
    assert not list(tmp_path.iterdir())


# -- damage and disks


def test_what_is_not_a_table(tmp_path: Path) -> None:
    for opening in (open_table, status):
        with pytest.raises(DataError, match=r"holds no zcpipe table; make it with zcpipe run --out .*absent"):
            opening(tmp_path / "absent")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"not empty and not a zcpipe table \(it holds notes.txt\)"):
        find_header(tmp_path)
    for opening in (open_table, status):
        with pytest.raises(DataError, match="holds no zcpipe table; name the directory of a table"):
            opening(tmp_path)
        with pytest.raises(DataError, match=r"notes.txt: not a directory; name the directory of a table"):
            opening(tmp_path / "notes.txt")
    with pytest.raises(DataError, match="give --out a directory"):
        find_header(tmp_path / "notes.txt")
    with pytest.raises(DataError, match="give --out a directory"), locked(tmp_path / "notes.txt" / "t", header()):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt"]


@pytest.mark.parametrize("keep", [0, 10, 0.5, -1])
def test_a_truncated_shard_is_named_with_the_mend(table: Table, tmp_path: Path, keep: float) -> None:
    shard = sorted((tmp_path / "t").glob("shard-*"))[0]
    content = shard.read_bytes()
    shard.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    for use in (open_table, status, lambda path: scan(path, header())):
        with pytest.raises(DataError, match=rf"{shard.name} is truncated or damaged .*delete it and relaunch"):
            use(tmp_path / "t")
    shard.unlink()
    assert len(open_table(tmp_path / "t")) == 2


def test_flipped_bits_are_noticed(table: Table, tmp_path: Path) -> None:
    shard = sorted((tmp_path / "t").glob("shard-*"))[0]
    content = bytearray(shard.read_bytes())
    chunk = pq.read_metadata(shard).row_group(0).column(4)
    content[chunk.data_page_offset + chunk.total_compressed_size - 3] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=rf"{shard.name} is truncated or damaged"):
        open_table(tmp_path / "t").to_arrow()


def test_foreign_parquet_in_the_directory_is_named(table: Table, tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "t" / "mine.parquet")
    with pytest.raises(DataError, match=r"mine.parquet was not written by zcpipe; move it"):
        open_table(tmp_path / "t")
    (tmp_path / "t" / "mine.parquet").unlink()
    with locked(tmp_path / "other", header(seed=1)) as store:
        other = commit(store, 0, [row(1)])
    other.rename(tmp_path / "t" / other.name)
    with pytest.raises(DataError, match="belongs to a table of another identity"):
        open_table(tmp_path / "t")


def test_shards_of_other_columns_are_no_rows_of_the_table(table: Table, tmp_path: Path) -> None:
    """As after copying what scored further proxies of the same architectures into the directory."""
    with locked(tmp_path / "other", replace(header(), columns=header().columns[1:])) as store:
        other = commit(store, 7, [row(700)])
    (tmp_path / "t" / other.name).write_bytes(other.read_bytes())
    missing = header().columns[0].name
    said = rf"{other.name} belongs to a table of other columns \(it has no {missing}\); .*zcpipe merge"
    for read in (
        lambda: open_table(tmp_path / "t"),
        lambda: status(tmp_path / "t"),
        lambda: scan(tmp_path / "t", header()),
        lambda: compact(tmp_path / "t", tmp_path / "new"),
    ):
        with pytest.raises(DataError, match=said):
            read()


def test_a_column_more_than_the_table_has_is_not_read(table: Table, tmp_path: Path) -> None:
    before = table.to_arrow()
    shard = sorted((tmp_path / "t").glob("shard-*"))[0]
    rows = pq.read_table(shard)
    pq.write_table(rows.append_column("mine", pa.array(range(len(rows)))), shard)
    assert open_table(tmp_path / "t").to_arrow().equals(before)


@pytest.mark.parametrize("small_disk", ["128k"], indirect=True)
def test_a_full_disk_loses_nothing(small_disk: Path) -> None:
    directory = small_disk / "t"
    with locked(directory, header()) as store:
        commit(store, 0, [row(1)])
        (small_disk / "ballast").write_bytes(b"x" * 90_000)
        many = [row(i, arch=os.urandom(40).hex()) for i in range(2, 900)]
        with pytest.raises(DataError, match="no space left on device; free some space and relaunch the same command"):
            commit(store, 1, many)
        assert not list(directory.glob(".*"))
        (small_disk / "ballast").unlink()
        commit(store, 1, many)
    assert len(open_table(directory)) == 899


@pytest.mark.parametrize("small_disk", ["128k"], indirect=True)
def test_a_read_only_disk_is_named(small_disk: Path) -> None:
    make(small_disk / "t", [row(1)])
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with (
        pytest.raises(DataError, match=r"read-only file system; .*choose another directory"),
        locked(small_disk / "t", header()),
    ):
        pass
    with pytest.raises(DataError, match=r"cannot write .*read-only"):
        publish(small_disk / "file", b"x")
    with pytest.raises(DataError, match=r"cannot create .*read-only"), locked(small_disk / "new", header()):
        pass
    assert len(open_table(small_disk / "t")) == 1
