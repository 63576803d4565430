"""Labels and splits: who is learnt from and who is tested."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zcpipe import open_table
from zcpipe.errors import DataError, UsageError
from zcpipe.parzc.labels import Labels, draw, parse_samples, split


@given(st.lists(st.integers(0, 30), min_size=30, max_size=80), st.integers(10, 14), st.integers(0, 99))
def test_no_key_is_on_both_sides(keys, samples, seed):
    keys = np.array(keys)
    try:
        found = split(keys, samples, seed)
    except DataError:
        return
    assert len(found.train) == samples
    assert not set(keys[found.train]) & set(keys[found.test])
    drawn = set(keys[found.train])
    assert [i for i in range(len(keys)) if keys[i] not in drawn] == found.test.tolist()


def test_more_samples_hold_fewer_and_seeds_differ():
    assert set(draw(100, 20, 3)) < set(draw(100, 50, 3))
    assert draw(100, 20, 3).tolist() == draw(100, 20, 3).tolist() != draw(100, 20, 4).tolist()


def test_numbers_of_samples_that_cannot_be():
    with pytest.raises(DataError, match="9 labelled architectures are too few to learn from; give at least 10"):
        draw(100, 9, 0)
    with pytest.raises(DataError, match="101 samples were asked for, but 100 architectures"):
        draw(100, 101, 0)
    with pytest.raises(DataError, match="0 with other keys are left to test on"):
        split(np.zeros(40, np.int64), 20, 0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("78", 78), (" 156 ", 156), ("0.5%", 78), ("1%", 156), ("3%", 469), ("5%", 781), ("10%", 1563)],
)
def test_samples_are_counts_or_shares(text, expected):
    assert parse_samples(text, 15625) == expected


@pytest.mark.parametrize("text", ["", "x", "-3", "1.5", "0%", "101%", "nan%", "%", "1e3"])
def test_samples_that_are_neither(text):
    with pytest.raises(UsageError, match="samples must be counts or shares"):
        parse_samples(text, 100)


def test_labels_come_with_their_direction(directory, truth):
    table = open_table(directory)
    assert Labels.read(table, truth, "test").direction == "higher"
    assert Labels.read(table, truth, "hours").direction == "lower"


@pytest.mark.parametrize("direction", [b"sideways", b"", b"\xff\xfe"])
def test_directions_that_are_none(directory, truth, tmp_path, direction):
    held = pq.read_table(truth, columns=["arch", "test"])
    field = held.schema.field("test").with_metadata({b"direction": direction})
    pq.write_table(held.set_column(1, field, held["test"]), tmp_path / "truth.parquet")
    with pytest.raises(DataError, match=r"the direction of column 'test' is .*, expected higher or lower"):
        Labels.read(open_table(directory), tmp_path / "truth.parquet", "test")


def test_labels_that_nothing_can_be_learnt_from(directory, truth):
    table, usable = open_table(directory), np.ones(48, bool)
    with pytest.raises(DataError, match=r"9 of the table's 48 architectures have a value of 'few' and all features"):
        Labels.read(table, truth, "few").require(usable)
    with pytest.raises(DataError, match=r"target 'constant' is constant \(90\) over all 48"):
        Labels.read(table, truth, "constant").require(usable)
    with pytest.raises(DataError, match=r"0 of the table's 48 .*48 have the value, 0 the features"):
        Labels.read(table, truth, "test").require(~usable)
