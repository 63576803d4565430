from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zcpipe.errors import DataError, UsageError
from zcpipe.search.pareto import front

VALUES = st.sampled_from([-np.inf, -1.0, -0.0, 0.0, 1.0, 2.0, np.inf, np.nan])


@st.composite
def populations(draw):
    n = draw(st.integers(0, 14))
    names = [f"o{i}" for i in range(draw(st.integers(1, 4)))]
    ways = {name: draw(st.sampled_from(["higher", "lower"])) for name in names}
    columns = {name: np.array(draw(st.lists(VALUES, min_size=n, max_size=n)), np.float64) for name in names}
    return columns, ways


@given(populations())
def test_is_what_nobody_dominates(population):
    columns, ways = population
    goodness = np.array([columns[name] if ways[name] == "higher" else -columns[name] for name in columns]).T
    expected = {
        i
        for i, own in enumerate(goodness)
        if not np.isnan(own).any()
        and not any((other >= own).all() and (other > own).any() for other in goodness)  # NaN is neither
    }
    found = front(columns, ways).tolist()
    assert len(found) == len(set(found)) and set(found) == expected
    assert found == sorted(found, key=lambda i: (*(-goodness[i] + 0.0), i))


def test_of_score_and_cost():
    score = np.array([1.0, 3.0, 2.0, 3.0, np.nan, -np.inf])
    macs = np.array([10.0, 30.0, 40.0, 30.0, 1.0, 5.0])
    assert front({"score": score, "macs": macs}, {"score": "higher", "macs": "lower"}).tolist() == [1, 3, 0, 5]


def test_refuses_what_means_nothing():
    with pytest.raises(UsageError, match="at least one objective"):
        front({}, {})
    with pytest.raises(UsageError, match="no direction is known for b"):
        front({"a": np.zeros(1), "b": np.zeros(1)}, {"a": "higher"})
    with pytest.raises(DataError, match="equally long"):
        front({"a": np.zeros(1), "b": np.zeros(2)}, {"a": "higher", "b": "lower"})
