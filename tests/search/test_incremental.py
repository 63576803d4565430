"""A growing history gives what aggregating all of it anew gives, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zcpipe.errors import DataError, UsageError
from zcpipe.rank import aggregate, top
from zcpipe.search import incremental
from zcpipe.search.incremental import History

# Few distinct values, so that ties are common; infinities are data, NaN is a failure.
VALUES = st.sampled_from([-np.inf, -2.0, -0.0, 0.0, 0.5, 1.0, 1e300, np.inf, np.nan])
METHODS = st.sampled_from(["logrank", "linear"])


@pytest.fixture(autouse=True)
def small_shares(monkeypatch):
    """Go through everything seldom enough for the shortcuts to be taken in histories of tests' sizes."""
    monkeypatch.setattr(incremental, "_LEAST", 6)


@st.composite
def growing(draw):
    """Directions, and the batches of a history: [proxies, n] each. Sums of eight and more have orders of their own."""
    proxies = draw(st.integers(1, 9))
    ways = {f"p{i}": draw(st.sampled_from(["higher", "lower"])) for i in range(proxies)}
    member = st.lists(VALUES, min_size=proxies, max_size=proxies)
    batches = draw(st.lists(st.lists(member, max_size=7), min_size=1, max_size=9))
    return ways, [np.array(batch).reshape(-1, proxies).T for batch in batches]


def columns_of(ways, values):
    return dict(zip(ways, values, strict=True))


def same_bits(one, other):
    one, other = (np.where(np.isnan(values), np.nan, values) for values in (one, other))
    np.testing.assert_array_equal(one.view(np.int64), other.view(np.int64))


@settings(max_examples=60)
@given(growing(), METHODS, st.integers(0, 12), st.randoms(use_true_random=False))
def test_equals_recomputation(history, method, k, random):
    ways, batches = history
    grown = History(ways, method)
    whole = np.empty((len(ways), 0))
    for batch in batches:
        grown.append(columns_of(ways, batch))
        whole = np.concatenate([whole, batch], axis=1)
        expected = aggregate(method, columns_of(ways, whole), ways)
        assert len(grown) == whole.shape[1] and grown.population == np.count_nonzero(~np.isnan(expected))
        same_bits(grown.aggregate(), expected)
        members = np.array([random.randrange(len(grown)) for _ in range(min(len(grown), 3))], np.int64)
        same_bits(grown.aggregate(members), expected[members])
        for asked in (k, random.randrange(13)):
            np.testing.assert_array_equal(grown.best(asked), top(expected, asked))


@pytest.mark.parametrize("method", ["logrank", "linear"])
@pytest.mark.parametrize("sign", [1, -1], ids=["agreeing proxies", "opposed proxies"])
def test_the_best_of_a_long_history_come_from_few(method, sign, monkeypatch):
    monkeypatch.setattr(incremental, "_SHARE", 1 / 16)
    rng = np.random.default_rng(0)
    base = rng.normal(size=4000)
    values = np.stack([base + 0.5 * rng.normal(size=4000), sign * base + 0.5 * rng.normal(size=4000)])
    values = np.round(values, 1 if sign > 0 else 6)  # the former with ties
    values[0, ::50], values[1, ::77] = -np.inf, np.nan
    ways = {"a": "higher", "b": "higher"}
    grown, at, fewest = History(ways, method), 0, len(base)
    for size in [1000, *rng.integers(1, 40, 100)]:
        grown.append(columns_of(ways, values[:, at : at + size]))
        at = min(at + size, len(base))
        expected = aggregate(method, columns_of(ways, values[:, :at]), ways)
        np.testing.assert_array_equal(grown.best(63), top(expected, 63))
        fewest = min(fewest, len(grown._contenders))
    assert fewest < 500, "nearly everybody is ranked each time"


def test_a_history_of_nobody_has_no_best():
    grown = History({"a": "lower"})
    assert len(grown.best(5)) == len(grown.aggregate()) == len(grown) == 0
    grown.append({"a": np.array([np.nan, np.nan])})
    assert len(grown.best(5)) == 0 and np.isnan(grown.aggregate()).all()
    grown.append({"a": np.array([1.0])})
    assert grown.best(5).tolist() == [2] and grown.aggregate()[2] == 0


def test_fewer_than_none_are_refused_whatever_was_asked_before():
    history = History({"a": "higher"})
    history.append({"a": np.arange(9.0)})
    for _ in range(2):
        with pytest.raises(UsageError, match="the -1 best were asked for"):
            history.best(-1)
        assert history.best(3).tolist() == [8, 7, 6]


def test_further_columns_are_ignored():
    grown = History({"a": "lower"})
    grown.append({"a": np.array([2.0, 1.0]), "seconds": np.array([np.nan])})
    assert grown.best(1).tolist() == [1]


@pytest.mark.parametrize(
    ("directions", "method", "message"),
    [
        ({}, "logrank", "nothing to aggregate"),
        ({"a": "up"}, "logrank", "unknown direction 'up' of a"),
        ({"a": "higher"}, "vote", "unknown aggregation method of a growing history 'vote'"),
    ],
)
def test_refuses_what_means_nothing(directions, method, message):
    with pytest.raises(UsageError, match=message):
        History(directions, method)


def test_refuses_scores_that_do_not_fit_and_stays_as_it_was():
    grown = History({"a": "higher", "b": "higher"})
    with pytest.raises(DataError, match="scores lack b"):
        grown.append({"a": np.zeros(2)})
    with pytest.raises(DataError, match="equally long"):
        grown.append({"a": np.zeros(2), "b": np.zeros(3)})
    with pytest.raises(UsageError, match="-1 best"):
        grown.best(-1)
    assert len(grown) == 0
