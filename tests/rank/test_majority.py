import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import zcpipe.rank.majority as module
from zcpipe.errors import DataError, UsageError
from zcpipe.rank import correlate, vote, vote_accuracy

VALUES = st.sampled_from([-np.inf, -2.0, 0.0, 0.5, 1e300, np.inf, np.nan])
TRUTHS = st.sampled_from([10.0, 50.0, 94.37, np.nan])
POPULATIONS = st.tuples(st.integers(1, 5), st.integers(0, 9)).flatmap(
    lambda shape: st.tuples(
        hnp.arrays(np.float64, shape, elements=VALUES),
        st.lists(st.sampled_from(["higher", "lower"]), min_size=shape[0], max_size=shape[0]),
        hnp.arrays(np.float64, shape[1], elements=TRUTHS),
    )
)


def population(table, ways):
    names = [f"p{i}" for i in range(len(table))]
    return dict(zip(names, table, strict=True)), dict(zip(names, ways, strict=True))


def beats(table, ways, i, j):
    """The published rule, pair by pair: at least half of the proxies prefer i, and a tie is no preference."""
    preferring = sum(
        column[i] > column[j] if way == "higher" else column[i] < column[j]
        for column, way in zip(table, ways, strict=True)
    )
    return preferring >= len(table) / 2


def valid_of(table):
    return [i for i in range(table.shape[1]) if not np.isnan(table[:, i]).any()]


@given(POPULATIONS)
def test_votes_against_every_pair(given_population):
    table, ways, _ = given_population
    found = vote(*population(table, ways))
    valid = valid_of(table)
    for i in range(table.shape[1]):
        if i in valid:
            assert found[i] == sum(beats(table, ways, i, j) for j in valid if j != i)
        else:
            assert math.isnan(found[i])


@given(POPULATIONS)
def test_accuracy_against_every_ordered_pair(given_population):
    table, ways, truth = given_population
    both = [i for i in valid_of(table) if not math.isnan(truth[i])]
    pairs = [(i, j) for i, j in permutations(both, 2) if truth[i] != truth[j]]
    right = sum(beats(table, ways, i, j) == (truth[i] > truth[j]) for i, j in pairs)
    found = vote_accuracy(*population(table, ways), truth)
    assert found == right / len(pairs) if pairs else math.isnan(found)


@given(POPULATIONS, st.randoms())
def test_the_order_of_architectures_does_not_matter(given_population, random):
    table, ways, truth = given_population
    order = random.sample(range(table.shape[1]), table.shape[1])
    np.testing.assert_array_equal(vote(*population(table[:, order], ways)), vote(*population(table, ways))[order])
    np.testing.assert_equal(
        vote_accuracy(*population(table[:, order], ways), truth[order]), vote_accuracy(*population(table, ways), truth)
    )


def test_blocks_do_not_show(monkeypatch):
    generator = np.random.default_rng(0)
    columns, directions = population(generator.integers(0, 9, (3, 50)).astype(float), ["higher", "lower", "higher"])
    truth = generator.integers(0, 5, 50).astype(float)
    whole = vote(columns, directions), vote_accuracy(columns, directions, truth)
    monkeypatch.setattr(module, "_PAIRS_AT_ONCE", 150)  # blocks of 3 rows, the last of 2
    np.testing.assert_array_equal(vote(columns, directions), whole[0])
    assert vote_accuracy(columns, directions, truth) == whole[1]


def test_a_vote_of_one_is_that_proxy():
    generator = np.random.default_rng(1)
    scores, truth = generator.normal(size=(2, 300)).round(1)
    accuracy = vote_accuracy({"a": scores}, {"a": "higher"}, truth)
    assert accuracy == pytest.approx(correlate(scores, truth).pair_accuracy, abs=1e-15)


def test_a_majority_need_not_be_transitive():
    """Each of the three beats the next, so all three rank the same, but the truth's pairs are decided two to one."""
    columns, directions = population(np.array([[3.0, 2, 1], [1, 3, 2], [2, 1, 3]]), ["higher"] * 3)
    assert vote(columns, directions).tolist() == [1, 1, 1]
    assert vote_accuracy(columns, directions, np.array([3.0, 2, 1])) == pytest.approx(2 / 3)


def test_proxies_by_the_hundred_do_not_overflow():
    columns, directions = population(np.tile([1.0, 2.0, 3.0], (300, 1)), ["higher"] * 300)
    assert vote(columns, directions).tolist() == [0, 1, 2]


def test_bad_input():
    with pytest.raises(UsageError, match="at least one proxy"):
        vote({}, {})
    with pytest.raises(DataError, match="equally long"):
        vote_accuracy({"a": np.zeros(2)}, {"a": "higher"}, np.zeros(3))
