"""Compacting and merging: whatever a table was cut into comes back bit for bit, and what does not fit is refused."""

from __future__ import annotations

import itertools
import math
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zcpipe.errors import DataError, IdentityMismatch, UsageError
from zcpipe.scoring.columns import Column
from zcpipe.table import compact, merge, open_table, status
from zcpipe.table.groups import Group, companion, find_groups, next_group, note, writing
from zcpipe.table.place import locate
from zcpipe.table.schema import Header, to_arrow
from zcpipe.table.store import Store, locked, scan, shard_paths

BUILD = {"native": True, "cpu": "AVX2"}
NAN = struct.unpack("<d", struct.pack("<Q", 0x7FF8_0000_0000_0123))[0]  # not the one that Python makes
PROXIES = ("a", "b", "c")


def header(proxies: Sequence[str] = PROXIES, seed: int = 0, unit: str = "", classes: int = 64) -> Header:
    columns = [Column(name, "proxy", unit, "higher", "function", "", ()) for name in proxies]
    columns.append(Column("n", "count", "", "none", "full", "", ()))
    columns += [Column(f"{name}@block", "statistic", "", "none", "function", "", ("x", "y")) for name in proxies]
    identity = {"space": "s", "recipe": {"repeats": 1}, "seed": seed}
    return Header(tuple(columns), {"proxies": list(proxies), "classes_per_shard": classes}, identity)


def row(index: int, proxies: Sequence[str] = PROXIES, **changed: object) -> dict[str, object]:
    """A row as any run computes it: some values are awkward, and some fail."""
    values = {
        "a": index / 7,
        "b": [-0.0, NAN, -math.inf, 1.0][index % 4],
        "c": None if index % 5 == 0 else 2.0 ** (index % 50),
    }
    statistics = {
        f"{name}@block": [index / 3, NAN][: index % 3] if values[name] is not None else None for name in "abc"
    }
    failed = [{"proxy": "c", "kind": "k", "message": f"m{index}"}] if "c" in proxies and values["c"] is None else []
    plain = {
        "index": index,
        "arch": f"arch-{index}",
        "key": f"k{index // 2}",
        "space": "s",
        "n": index,
        "seconds": 0.25,
    }
    own = {name: value for name, value in {**values, **statistics}.items() if name.split("@")[0] in proxies}
    return {**plain, **own, "status": "partial" if failed else "ok", "failures": failed, **changed}


def commit(store: Store, shard: int, rows: Sequence[Mapping[str, object]], build: Mapping[str, object]) -> None:
    store.commit(shard, to_arrow(rows, store.header.schema), [build])


def make(directory: Path, rows: Sequence[int], *groups: tuple[Sequence[str], Sequence[int]], shard: int = 3) -> Path:
    """Make a table with columns of all proxies, or of the groups that are given, each with rows of its own."""
    parts = groups or ((PROXIES, rows),)
    with locked(directory, header(parts[0][0])) as store:
        for number, (proxies, indices) in enumerate(parts):
            own = header(proxies)
            group = Group(next_group(directory) if number else directory, own)
            with writing(store, group) as into:
                for begin in range(0, len(indices), shard):
                    commit(into, begin, [row(index, proxies) for index in indices[begin : begin + shard]], BUILD)
    return directory


def bits(table: pa.Table) -> list[dict[str, object]]:
    """Rows such that equal means equal bit for bit; failures of one row have no order, and seconds are not compared."""

    def plain(value: object) -> object:
        if isinstance(value, float):
            return struct.pack("<d", value)
        if isinstance(value, list):
            return sorted(map(str, value)) if value and isinstance(value[0], dict) else [plain(v) for v in value]
        return value

    return [{name: plain(v) for name, v in found.items() if name != "seconds"} for found in table.to_pylist()]


def content(directory: Path, columns: Sequence[str] | None = None) -> list[dict[str, object]]:
    return bits(open_table(directory).to_arrow(columns or header().schema.names))


def files(*directories: Path) -> dict[Path, bytes]:
    roots = [root for directory in directories for root in (directory, companion(directory))]
    return {path: path.read_bytes() for root in roots for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    return content(make(tmp_path_factory.mktemp("whole") / "t", range(24)))


# -- whatever a table was cut into

orders = st.permutations(range(24))
columns = st.sampled_from([(PROXIES,), (("a", "b"), ("c",)), (("a",), ("b", "c")), (("b",), ("a",), ("c",))])


@settings(max_examples=20)
@given(orders, columns, st.integers(1, 9), st.integers(1, 30))
def test_a_compacted_table_has_the_same_rows(
    tmp_path_factory: pytest.TempPathFactory,
    whole: list[dict[str, object]],
    order: list[int],
    split: tuple[tuple[str, ...], ...],
    shard: int,
    rows_per_file: int,
) -> None:
    home = tmp_path_factory.mktemp("t")
    make(home / "old", [], *((proxies, order) for proxies in split), shard=shard)
    before = files(home / "old")
    done = compact(home / "old", home / "new", rows_per_file)
    assert content(home / "new") == whole and files(home / "old") == before
    assert (done.rows, done.groups, done.files) == (24, 1, math.ceil(24 / rows_per_file))
    stored = [pq.read_table(path)["index"].to_pylist() for path in shard_paths(home / "new")]
    assert list(itertools.chain(*stored)) == list(range(24)) and max(map(len, stored)) == min(rows_per_file, 24)
    assert sorted(path.name for path in home.iterdir() if path.name != "old.columns") == ["new", "old"]
    assert open_table(home / "new").to_arrow(["seconds"]).equals(open_table(home / "old").to_arrow(["seconds"]))


@st.composite
def pieces(draw: st.DrawFn) -> list[list[tuple[tuple[str, ...], list[int]]]]:
    """Tables of some groups each, whose rows overlap as they like, and which together have everything."""
    found = []
    for _ in range(draw(st.integers(1, 4))):
        split = draw(columns)
        found.append([(proxies, draw(st.lists(st.integers(0, 23), min_size=1, unique=True))) for proxies in split])
    cut = draw(st.integers(0, 24))
    for part in (range(cut), range(cut, 24)):
        found += [[(proxies, list(part))] for proxies in draw(columns) if part]
    return draw(st.permutations(found))


@settings(max_examples=25)
@given(pieces(), st.integers(3, 30))
def test_pieces_merge_to_the_table_that_they_are_of(
    tmp_path_factory: pytest.TempPathFactory,
    whole: list[dict[str, object]],
    tables: list[list[tuple[tuple[str, ...], list[int]]]],
    rows_per_file: int,
) -> None:
    home = tmp_path_factory.mktemp("t")
    sources = [make(home / f"{number}", [], *groups) for number, groups in enumerate(tables)]
    before = files(*sources)
    if len(sources) > 1:
        done = merge(sources, home / "new", rows_per_file)
    else:
        done = compact(sources[0], home / "new", rows_per_file)
    assert content(home / "new") == whole
    assert files(*sources) == before
    found = find_groups(home / "new")
    assert done.groups == len(found) == status(home / "new").groups.__len__()
    assert len({tuple(scan(group.directory, group.header).index) for group in found}) == len(found), "same rows: joined"
    assert not list(home.glob(".*"))


def test_ranges_of_two_clusters_become_one_table(tmp_path: Path) -> None:
    parts, told = [make(tmp_path / "one", range(0, 10)), make(tmp_path / "two", range(10, 24))], []
    done = merge(parts, tmp_path / "new", progress=lambda *rows: told.append(rows))
    assert told == sorted(told) and told[-1] == (48, 48), "each row is read and written"
    assert (done.rows, done.files, done.groups, done.sources, done.path) == (24, 1, 1, 9, tmp_path / "new")
    assert status(tmp_path / "new").complete and not companion(tmp_path / "new").exists()


def test_columns_of_the_same_rows_become_columns_of_one_table(tmp_path: Path, whole: list[dict[str, object]]) -> None:
    parts = [make(tmp_path / name, [], ((name,), range(24))) for name in ("b", "c", "a")]
    assert merge(parts, tmp_path / "new").groups == 1
    table = open_table(tmp_path / "new")
    assert table.spec["proxies"] == ["b", "c", "a"] and table.schema.names[4:8] == ["b", "c", "a", "n"]
    assert content(tmp_path / "new") == whole


def test_columns_of_other_rows_stay_a_group_so_that_a_run_knows_what_is_missing(tmp_path: Path) -> None:
    old = make(tmp_path / "old", [], (("a",), range(24)), (("b",), range(4)), (("c",), range(4)))
    assert compact(old, tmp_path / "new").groups == 2
    base, joined = find_groups(tmp_path / "new")
    assert (base.proxies, joined.proxies) == (("a", "n"), ("b", "c", "n"))
    assert [len(scan(group.directory, group.header).index) for group in (base, joined)] == [24, 4]
    assert content(tmp_path / "new") == content(old)
    assert compact(tmp_path / "new", tmp_path / "again").groups == 2 and content(tmp_path / "again") == content(old)


def test_an_empty_table_stays_one(tmp_path: Path) -> None:
    assert compact(make(tmp_path / "old", []), tmp_path / "new").files == 0
    assert len(open_table(tmp_path / "new")) == 0
    assert merge([tmp_path / "old", make(tmp_path / "some", range(3))], tmp_path / "both").rows == 3


def test_what_is_still_to_do_is_known(tmp_path: Path) -> None:
    with locked(make(tmp_path / "old", range(5)), header()) as store:
        note(store, planned=9)
    compact(tmp_path / "old", tmp_path / "new")
    assert (status(tmp_path / "new").rows, status(tmp_path / "new").missing) == (5, 4)


def test_a_new_table_grows_and_takes_the_same_shards_once_more(tmp_path: Path, whole: list[dict[str, object]]) -> None:
    make(tmp_path / "old", range(12))
    compact(tmp_path / "old", tmp_path / "new")
    make(tmp_path / "new", range(12, 24))
    assert content(tmp_path / "new") == whole
    compact(tmp_path / "new", tmp_path / "again", 5)
    assert content(tmp_path / "again") == whole


def test_builds_are_kept(tmp_path: Path) -> None:
    other = {"native": False}
    for name, build, begin in (("one", BUILD, 0), ("two", other, 2), ("three", BUILD, 4)):
        with locked(tmp_path / name, header()) as store:
            commit(store, 0, [row(begin), row(begin + 1)], build)
    merge([tmp_path / "one", tmp_path / "three"], tmp_path / "same")
    assert scan(tmp_path / "same", header()).builds == (BUILD,)
    merge([tmp_path / "same", tmp_path / "two"], tmp_path / "mixed", rows_per_file=3)
    assert scan(tmp_path / "mixed", header()).builds == (BUILD, other)
    compact(tmp_path / "mixed", tmp_path / "again")
    assert scan(tmp_path / "again", header()).builds == (BUILD, other)


# -- what does not fit


def test_rows_that_differ_are_refused_by_row_and_column(tmp_path: Path) -> None:
    one = make(tmp_path / "one", range(6))
    for name, value, shown in (
        ("a", 0.5, r"0\.285.* in .*one and 0\.5 in .*two"),
        ("b", -0.0, "-inf in .*one and -0.0 in .*two"),
        ("b", math.nan, "-inf in .*one and nan in .*two"),
        ("c", None, r"4\.0 in .*one and None"),
        ("a@block", [2 / 3, -math.nan], r"it is \[0\.66.*, nan\] in .* and \[0\.66.*, nan\]"),
        ("a@block", [2 / 3], r"and \[0\.66\d*\] in"),
        ("a@block", None, "and None in"),
        ("n", 9, "it is 2 in .*one and 9 in"),
        ("arch", "x", "'arch-2' in .*one and 'x'"),
        ("status", "error", "'ok' in .*one and 'error'"),
        ("failures", [{"proxy": "a", "kind": "k", "message": "m"}], r"\[\] in .*one and \[\{"),
    ):
        two = tmp_path / "two"
        with locked(two, header()) as store:
            commit(store, 0, [row(1, seconds=99.0), row(2, **{name: value}), row(9)], BUILD)
        with pytest.raises(DataError, match=rf"row 2 differs in the column {name}: .*{shown}"):
            merge([one, two], tmp_path / "new")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
        for path in two.iterdir():
            path.unlink()
        two.rmdir()


def test_columns_that_several_groups_have_must_agree(tmp_path: Path) -> None:
    make(tmp_path / "one", [], (("a",), range(6)))
    with locked(tmp_path / "two", header(("b",))) as store:
        commit(store, 0, [row(index, ("b",), n=index + (index == 4)) for index in range(2, 9)], BUILD)
    with pytest.raises(DataError, match=r"row 4 differs in the column n: it is 4 in .*one and 5 in .*two"):
        merge([tmp_path / "one", tmp_path / "two"], tmp_path / "new")


def test_other_identities_are_refused_with_the_difference(tmp_path: Path) -> None:
    make(tmp_path / "one", range(3))
    with locked(tmp_path / "two", header(seed=5)) as store:
        commit(store, 0, [row(8)], BUILD)
    with pytest.raises(IdentityMismatch, match=r"two is a table of another identity than .*one: seed is 5 there and 0"):
        merge([tmp_path / "one", tmp_path / "two"], tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_proxies_that_have_changed_are_refused(tmp_path: Path) -> None:
    make(tmp_path / "one", range(3))
    with locked(tmp_path / "two", header(("a",), unit="bit")):
        pass
    with pytest.raises(DataError, match=r"unit of a is '' in .*one and 'bit' in .*two: the proxy has changed"):
        merge([tmp_path / "one", tmp_path / "two"], tmp_path / "new")
    with locked(tmp_path / "three", header(classes=8)):
        pass
    with pytest.raises(DataError, match=r"three has shards of 8 classes and .*one of 64"):
        merge([tmp_path / "one", tmp_path / "three"], tmp_path / "new")


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    old = make(tmp_path / "old", range(3))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    (tmp_path / "beside.columns").mkdir()
    (tmp_path / "beside.columns" / "mine").touch()
    (tmp_path / "file").touch()
    before = files(tmp_path)
    for out, message in (
        (old, r"old is not empty \(it holds _zcpipe.parquet\) and nothing is overwritten; choose another --out"),
        (tmp_path / "taken", r"taken is not empty \(it holds notes.txt\)"),
        (tmp_path / "beside", r"beside.columns is not empty \(it holds mine\)"),
        (tmp_path / "file", "give --out a directory"),
        (tmp_path / "file" / "below", "not a directory"),
    ):
        with pytest.raises(DataError, match=message):
            compact(old, out)
    assert files(tmp_path) == before
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    assert compact(old, tmp_path / "link").rows == 3 and (tmp_path / "empty" / "_zcpipe.parquet").exists()


def test_arguments_that_mean_nothing(tmp_path: Path) -> None:
    old = make(tmp_path / "old", range(3))
    with pytest.raises(UsageError, match="rows per file must be at least 1, got 0"):
        compact(old, tmp_path / "new", 0)
    with pytest.raises(UsageError, match="merge needs at least two tables, got 1"):
        merge([old], tmp_path / "new")
    with pytest.raises(DataError, match="absent holds no zcpipe table"):
        merge([old, tmp_path / "absent"], tmp_path / "new")


# -- failures leave no trace


def test_a_damaged_source_leaves_no_trace(tmp_path: Path) -> None:
    old = make(tmp_path / "old", range(9))
    shard = shard_paths(old)[1]
    content = bytearray(shard.read_bytes())
    chunk = pq.read_metadata(shard).row_group(0).column(1)
    content[chunk.data_page_offset + chunk.total_compressed_size - 3] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=rf"{shard.name} is truncated or damaged"):
        compact(old, tmp_path / "deep" / "down" / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize("small_disk", ["192k"], indirect=True)
def test_a_full_disk_leaves_no_trace(small_disk: Path, tmp_path: Path) -> None:
    with locked(tmp_path / "old", header()) as store:
        commit(store, 0, [row(index, arch=os.urandom(150).hex(), c=None) for index in range(900)], BUILD)
    with pytest.raises(DataError, match="no space left on device; free some space"):
        compact(tmp_path / "old", small_disk / "new")
    assert not list(small_disk.iterdir())


# -- in a store


def test_tables_of_a_store_are_compacted_and_merged(
    bucket: str, tmp_path: Path, whole: list[dict[str, object]]
) -> None:
    make(tmp_path / "one", [], (("a", "b"), range(10)), (("c",), range(7)))
    make(tmp_path / "two", range(10, 24))
    for number in ("one", "two"):
        compact(tmp_path / number, f"{bucket}/{number}", 4)
        assert content(f"{bucket}/{number}") == content(tmp_path / number)
    make(tmp_path / "rest", [], (("c",), range(24)))
    merge([f"{bucket}/one", tmp_path / "rest", f"{bucket}/two"], f"{bucket}/new")
    assert content(f"{bucket}/new") == whole
    merge([f"{bucket}/one", tmp_path / "rest", f"{bucket}/two"], tmp_path / "new")
    local = {path.relative_to(tmp_path): stored for path, stored in files(tmp_path / "new").items()}
    store = locate(f"{bucket}/new").fs
    found = {Path(path).relative_to(bucket[5:]): store.cat_file(path) for path in store.find(f"{bucket}/")}
    assert {path: stored for path, stored in found.items() if path.parts[0].startswith("new")} == local
    with pytest.raises(DataError, match=r"is not empty .* and nothing is overwritten"):
        compact(tmp_path / "one", f"{bucket}/new")


@pytest.mark.parametrize("remote", [False, True])
def test_a_failure_at_the_very_end_leaves_nothing(
    remote: bool, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "one", [], (("a", "b"), range(10)), (("c",), range(7)))
    headers = []

    def failing(store: Store) -> None:
        headers.append(store.directory)
        if len(headers) == 2:
            raise DataError("the wire is cut")
        write_header(store)

    write_header = Store.write_header
    monkeypatch.setattr(Store, "write_header", failing)
    with pytest.raises(DataError, match="the wire is cut"):
        compact(tmp_path / "one", f"{bucket}/new" if remote else tmp_path / "new", 3)
    assert len(headers) == 2
    assert not locate(f"{bucket}/new").fs.find(f"{bucket}/")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "one.columns"]
