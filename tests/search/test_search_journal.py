"""The journal: whole records or none, of one search, by one process."""

import errno
import math
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zcpipe.errors import DataError, IdentityMismatch
from zcpipe.search.journal import NAME, opened

IDENTITY = {"kind": "search", "space": "nasbench201"}


def written(directory, records):
    with opened(directory, IDENTITY) as journal:
        for record in records:
            journal.append(record)


def found(directory):
    with opened(directory, IDENTITY) as journal:
        return list(journal.found)


def test_what_is_recorded_is_found(tmp_path):
    out = tmp_path / "new" / "search"
    records = [{"kind": "a", "values": [0.1, 1 / 3]}, {"kind": "b", "text": 'ü "\\\n'}]
    written(out, records[:1])
    written(out, records[1:])
    assert found(out) == records


def test_floats_that_are_no_numbers_come_back(tmp_path):
    written(tmp_path, [{"values": [math.inf, -math.inf, math.nan]}])
    values = found(tmp_path)[0]["values"]
    assert values[:2] == [math.inf, -math.inf]
    assert math.isnan(values[2])


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    place = tmp_path_factory.mktemp("journal")
    written(place, [{"number": number, "text": "x" * number} for number in range(5)])
    return (place / NAME).read_bytes()


@given(st.data())
@settings(max_examples=60)
def test_wherever_a_process_dies_the_whole_records_are_kept_and_the_piece_is_cut_off(tmp_path_factory, content, data):
    out = tmp_path_factory.mktemp("cut")
    end = data.draw(st.integers(0, len(content)))
    (out / NAME).write_bytes(content[:end])
    whole = content[:end].count(b"\n")
    assert [record["number"] for record in found(out)] == list(range(max(whole - 1, 0)))
    written(out, [{"number": "next"}])
    assert [record["number"] for record in found(out)] == [*range(max(whole - 1, 0)), "next"]


@given(st.data())
@settings(max_examples=60)
def test_a_byte_that_changed_is_never_read_as_a_record(tmp_path_factory, content, data):
    out = tmp_path_factory.mktemp("flipped")
    place = data.draw(st.integers(0, len(content) - 1))
    changed = bytes([content[place] ^ data.draw(st.integers(1, 255))])
    (out / NAME).write_bytes(content[:place] + changed + content[place + 1 :])
    last = content[:-1].rindex(b"\n") + 1  # where the last record begins
    if place >= last:  # a record that was perhaps never finished
        assert [record["number"] for record in found(out)] == [0, 1, 2, 3]
    elif place == last - 1:  # without the line break before it both records are one piece that was never finished
        assert [record["number"] for record in found(out)] == [0, 1, 2]
    else:
        with pytest.raises(DataError, match="is damaged in line"):
            found(out)


def test_another_search_is_refused_with_what_differs(tmp_path):
    written(tmp_path, [{"kind": "a"}])
    with (
        pytest.raises(IdentityMismatch, match="space is 'nasbench201' there and 'nds' here; choose another --out"),
        opened(tmp_path, {**IDENTITY, "space": "nds"}),
    ):
        pass


def test_where_nothing_was_written_another_search_may_begin(tmp_path):
    written(tmp_path, [])
    other = {**IDENTITY, "space": "nds"}
    with opened(tmp_path, other) as journal:
        assert journal.found == []
    with opened(tmp_path, other) as journal:
        journal.append({"kind": "a"})
    with pytest.raises(IdentityMismatch):
        found(tmp_path)
    (tmp_path / "found").mkdir()
    written(tmp_path / "found", [])
    (tmp_path / "found" / "picks.parquet").touch()
    with pytest.raises(IdentityMismatch), opened(tmp_path / "found", other):
        pass


def test_a_directory_of_something_else_is_refused(tmp_path):
    (tmp_path / "_zcpipe.parquet").write_text("a table")
    with pytest.raises(DataError, match="is not empty and holds no search; give another --out"):
        found(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["_zcpipe.parquet"]


def test_one_process_writes_at_a_time(tmp_path):
    with opened(tmp_path, IDENTITY), pytest.raises(DataError, match="is being written by another zcpipe search"):
        found(tmp_path)


def test_what_fails_before_anything_is_recorded_leaves_nothing(tmp_path):
    (tmp_path / "there").mkdir()
    for place in (tmp_path / "there", tmp_path / "made"):
        with pytest.raises(KeyError), opened(place, IDENTITY):
            raise KeyError
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


def test_a_full_disk_at_the_start_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(DataError, match="no space left on device; free some space and relaunch the same command"):
            found(tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_fails_while_results_are_written_goes_on(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyError), opened(tmp_path / "out", IDENTITY):
            (tmp_path / "out" / "picks.parquet").touch()
            raise KeyError
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [NAME, "picks.parquet"]
    assert found(tmp_path / "out") == []


def test_what_was_there_before_an_error_stays(tmp_path):
    written(tmp_path / "out", [{"number": 0}])
    before = (tmp_path / "out" / NAME).read_bytes()
    with pytest.raises(KeyError), opened(tmp_path / "out", IDENTITY):
        raise KeyError
    assert (tmp_path / "out" / NAME).read_bytes() == before
    with pytest.raises(KeyError), opened(tmp_path / "new", IDENTITY) as journal:
        journal.append({"number": 0})
        raise KeyError
    assert found(tmp_path / "new") == [{"number": 0}]


def test_without_a_directory_nothing_is_kept():
    with opened(None, IDENTITY) as journal:
        journal.append({"kind": "a"})
        assert journal.found == ()


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot create .*file/search"):
        found(tmp_path / "file" / "search")
