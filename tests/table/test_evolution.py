"""The rule of docs/table.md on what may change between versions: what old tables, and newer ones, are to this code."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from zcpipe.errors import DataError
from zcpipe.scoring.columns import Column
from zcpipe.table import compact, merge, open_table, status
from zcpipe.table.groups import Group, find_groups, next_group, writing
from zcpipe.table.schema import SCHEMA_VERSION, Header, canonical, to_arrow
from zcpipe.table.store import Store, find_header, locked, scan

GOLDEN = Path(__file__).parent / "golden"  # a table and a group of each version, as `write` below made them then
BUILD = {"zcpipe": "0.1.0", "native": False}


def header(*proxies: str) -> Header:
    columns = [Column(name, "proxy", "nat", "higher", "function", "paper", ()) for name in proxies]
    columns.append(Column("params", "count", "", "none", "full", "", ()))
    columns += [
        Column(f"{name}@block", "statistic", "", "none", "function", "", ("first", "second")) for name in proxies
    ]
    identity = {"space": "s", "dataset": "d", "recipe": {"batch_size": 4, "repeats": 1}, "seed": 2**63}
    return Header(tuple(columns), {"proxies": list(proxies), "classes_per_shard": 64}, identity)


def row(index: int, *proxies: str) -> dict[str, object]:
    plain = {"index": index, "arch": f"arch-{index}", "key": "k", "space": "s", "params": 10 * index, "seconds": 0.5}
    own = {name: None if index == 3 else index / 4 for name in proxies}
    own |= {f"{name}@block": None if index == 3 else [0.5, index] for name in proxies}
    failures = [{"proxy": "*", "kind": "error", "message": "it broke"}] if index == 3 else []
    return {**plain, **own, "status": "error" if failures else "ok", "failures": failures}


def commit(store: Store, shard: int, rows: Sequence[Mapping[str, object]], build: Mapping[str, object]) -> None:
    store.commit(shard, to_arrow(rows, store.header.schema), [build])


def write(directory: Path) -> None:
    """Write the table of this version: rows 0 to 3 of one proxy, and of another one that joined rows 1 to 3."""
    with locked(directory, header("a")) as store:
        commit(store, 0, [row(index, "a") for index in range(2)], BUILD)
        commit(store, 1, [row(index, "a") for index in range(2, 4)], BUILD)
        with writing(store, Group(next_group(directory), header("b"))) as joined:
            commit(joined, 0, [row(index, "b") for index in range(1, 4)], BUILD)


EXPECTED = [{**row(index, "a", "b"), "seconds": 1.0} for index in range(4)]
EXPECTED[0] |= {"b": None, "b@block": None, "seconds": 0.5}


@pytest.fixture(params=[f"v{version}" for version in range(1, SCHEMA_VERSION + 1)])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of the table that another version left."""
    for name in (request.param, f"{request.param}.columns"):
        shutil.copytree(GOLDEN / name, tmp_path / name)
    return tmp_path / request.param


def test_every_version_has_its_table() -> None:
    assert sorted(path.name for path in GOLDEN.glob("v?")) == [f"v{n}" for n in range(1, SCHEMA_VERSION + 1)]


def test_tables_of_earlier_versions_are_read(old: Path) -> None:
    table = open_table(old)
    assert table.to_arrow(list(EXPECTED[0])).to_pylist() == EXPECTED
    assert table.columns[0] == header("a").columns[0] and table.identity == header().identity
    assert (status(old).rows, status(old).by_status) == (4, {"ok": 3, "error": 1})


def test_tables_of_earlier_versions_grow_and_are_rewritten(old: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in old.glob("[s_]*") if path.name != "_run.parquet"}
    with locked(old, header("a")) as store:
        commit(store, 2, [row(4, "a")], BUILD)
    assert all(path.read_bytes() == content for path, content in before.items())
    assert len(open_table(old)) == 5
    compact(old, tmp_path / "new")
    write(tmp_path / "now")
    merge([old, tmp_path / "now"], tmp_path / "both")
    for table in ("new", "both"):
        assert open_table(tmp_path / table).to_arrow(list(EXPECTED[0])).slice(0, 4).to_pylist() == EXPECTED
        assert pq.read_schema(tmp_path / table / "_zcpipe.parquet").metadata[b"zcpipe.schema_version"] == b"%d" % (
            SCHEMA_VERSION
        )


def change(directory: Path, how: Callable[[pa.Table], pa.Table], **options: object) -> None:
    """Write every file of a table as another version might."""
    for path in [*directory.glob("*.parquet"), *Path(f"{directory}.columns").rglob("*.parquet")]:
        pq.write_table(how(pq.read_table(path)), path, **options)


def test_what_versions_may_add_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "t")

    def add(rows: pa.Table) -> pa.Table:
        own = {**rows.schema.metadata, b"zcpipe.weather": b'"fair"', b"other": b"not ours, and no JSON"}
        fields = [field.with_metadata({**(field.metadata or {}), b"colour": b"red"}) for field in rows.schema]
        return rows.cast(pa.schema(fields, own))

    change(tmp_path / "t", add, compression="snappy", row_group_size=1, use_dictionary=True)
    assert open_table(tmp_path / "t").to_arrow(list(EXPECTED[0])).to_pylist() == EXPECTED
    assert find_header(tmp_path / "t") == header("a")
    assert len(scan(tmp_path / "t", header("a")).index) == 4
    with locked(tmp_path / "t", header("a")) as store:
        commit(store, 2, [row(4, "a")], BUILD)
    compact(tmp_path / "t", tmp_path / "new")
    assert len(find_groups(tmp_path / "new")) == 2 and len(open_table(tmp_path / "new")) == 5


def test_tables_of_later_versions_are_refused_and_left_alone(tmp_path: Path) -> None:
    write(tmp_path / "t")
    later = {b"zcpipe.schema_version": canonical(SCHEMA_VERSION + 1).encode()}
    change(tmp_path / "t", lambda rows: rows.replace_schema_metadata({**rows.schema.metadata, **later}))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")}
    for use in (
        open_table,
        status,
        lambda path: compact(path, tmp_path / "new"),
        lambda path: locked(path, header("a")).__enter__(),
    ):
        with pytest.raises(
            DataError, match=rf"has table format {SCHEMA_VERSION + 1}, but this zcpipe reads up to .*upgr"
        ):
            use(tmp_path / "t")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_later_file_in_a_table_of_this_version_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "t")
    shard = sorted((tmp_path / "t").glob("shard-*"))[0]
    rows = pq.read_table(shard)
    pq.write_table(rows.replace_schema_metadata({**rows.schema.metadata, b"zcpipe.schema_version": b"9"}), shard)
    with pytest.raises(DataError, match=rf"{shard.name} has table format 9"):
        open_table(tmp_path / "t")
