"""Schemas, headers and rows go through Parquet unchanged."""

from __future__ import annotations

import io
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zcpipe.errors import DataError
from zcpipe.scoring.columns import Column
from zcpipe.table.schema import (
    STATUSES,
    Header,
    encode,
    encode_empty,
    in_order,
    read_header,
    read_metadata,
    to_arrow,
)

texts = st.text(max_size=8)
names = st.text("abcdefgh_@0123", min_size=3, max_size=8)


def column(name: str, kind: str, text: str, slots: list[str]) -> Column:
    listed = tuple(slots) if kind == "statistic" else ()
    return Column(name, kind, text, "higher" if kind == "proxy" else "none", "function", text, listed)


columns = st.builds(column, names, st.sampled_from(["proxy", "count", "statistic"]), texts, st.lists(texts))


def header(columns: list[Column], repeats: int = 1) -> Header:
    identity = {"space": "s", "dataset": "d", "recipe": {"repeats": repeats}, "seed": 2**63}
    return Header(tuple(columns), {"selection": {"kind": "all"}, "proxies": ["x"]}, identity)


def values(column: Column) -> st.SearchStrategy[object]:
    present = {
        "proxy": st.floats(allow_nan=False),
        "count": st.integers(0, 2**63 - 1),
        "statistic": st.lists(st.floats(width=32, allow_nan=False)).map(lambda v: np.array(v, np.float32)),
    }
    return st.none() | present[column.kind]


@st.composite
def tables(draw: st.DrawFn) -> tuple[Header, list[dict[str, object]]]:
    head = header(draw(st.lists(columns, max_size=4, unique_by=lambda c: c.name)))
    indices = draw(st.lists(st.integers(0, 2**62), max_size=5, unique=True))
    rows = []
    for index in indices:
        failures = draw(st.lists(st.fixed_dictionaries({"proxy": texts, "kind": texts, "message": texts}), max_size=2))
        row = {"index": index, "arch": draw(texts), "key": draw(texts), "space": "s", "seconds": 0.5}
        row |= {"status": draw(st.sampled_from(STATUSES)), "failures": failures}
        rows.append(row | {column.name: draw(values(column)) for column in head.columns})
    return head, rows


@settings(deadline=None)
@given(tables())
def test_rows_and_header_survive_a_file(case: tuple[Header, list[dict[str, object]]]) -> None:
    head, rows = case
    schema = head.file_schema(shard=7, builds=[{"native": True}])
    back = pq.read_table(io.BytesIO(encode(to_arrow(rows, schema))))
    for got, row in zip(back.to_pylist(), rows, strict=True):
        assert got == {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in row.items()}
    for file_schema in (back.schema, pq.read_schema(io.BytesIO(encode_empty(schema)))):
        assert read_header(file_schema, "file") == head
        assert read_header(file_schema, "file").schema.equals(head.schema, check_metadata=True)
    assert read_metadata(back.schema, "file")["shard"] == 7


@settings(deadline=None)
@given(tables(), st.randoms())
def test_the_file_does_not_depend_on_the_order_of_its_rows(
    case: tuple[Header, list[dict[str, object]]], chance
) -> None:
    head, rows = case
    shuffled = chance.sample(rows, len(rows))
    empty = head.schema.empty_table()
    one, other = (
        pa.concat_tables([empty, *(to_arrow([row], head.schema) for row in order)]) for order in (rows, shuffled)
    )
    assert bytes(encode(in_order(one))) == bytes(encode(in_order(other)))


def test_repeats_add_a_deviation_after_each_proxy() -> None:
    given = [column("a", "proxy", "nat", []), column("n", "count", "", [])]
    assert header(given, repeats=3).schema.names[4:7] == ["a", "a_sd", "n"]
    assert read_header(header(given, repeats=3).file_schema(), "file").columns == tuple(given)


def test_minus_infinity_nan_and_absence_are_three_things() -> None:
    head = header([column("a", "proxy", "", [])])
    row = {"arch": "x", "key": "x", "space": "s", "seconds": 0.0, "status": "ok", "failures": []}
    scores = [{"a": -math.inf}, {"a": math.nan}, {}]
    rows = [{**row, **score, "index": i} for i, score in enumerate(scores)]
    back = pq.read_table(io.BytesIO(encode(to_arrow(rows, head.schema))))["a"]
    assert back[0].as_py() == -math.inf and math.isnan(back[1].as_py()) and back[2].as_py() is None


def test_encodings_are_those_that_were_measured() -> None:
    head = header([column("a", "proxy", "", []), column("l@block", "statistic", "", ["x"])])
    row = {"index": 0, "arch": "x", "key": "x", "space": "s", "seconds": 0.0, "status": "ok", "failures": []}
    rows = [{**row, "index": i, "a": i / 3, "l@block": [i / 7] * 9} for i in range(50)]
    group = pq.ParquetFile(io.BytesIO(encode(to_arrow(rows, head.schema)))).metadata.row_group(0)
    found = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    assert {found[path].compression for path in found} == {"ZSTD"}
    for path in ("a", "seconds", "l@block.list.element"):
        assert "BYTE_STREAM_SPLIT" in found[path].encodings and not found[path].has_dictionary_page
    assert found["arch"].has_dictionary_page and not found["index"].has_dictionary_page


def test_foreign_and_future_files_are_told_apart() -> None:
    with pytest.raises(DataError, match=r"elsewhere.parquet was not written by zcpipe"):
        read_metadata(pa.schema([("a", pa.int64())]), "elsewhere.parquet")
    schema = header([]).file_schema(schema_version=99)
    with pytest.raises(DataError, match=r"table format 99.*upgrade"):
        read_metadata(schema, "later.parquet")
