import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from zcpipe.errors import DataError, UsageError
from zcpipe.proxies import groups
from zcpipe.rank import METHODS, NAMED, aggregate, linear_rank, log_rank, ranks, size_regularised, vote

# Few distinct values, so that ties are common; infinities are data, NaN is a failure.
VALUES = st.sampled_from([-np.inf, -2.0, -0.0, 0.0, 0.5, 1.0, 1e300, np.inf, np.nan])
COLUMN = hnp.arrays(np.float64, st.integers(0, 12), elements=VALUES)
COLUMNS = st.tuples(st.integers(1, 4), st.integers(0, 10)).flatmap(
    lambda shape: hnp.arrays(np.float64, shape, elements=VALUES)
)
OF_RANKS = (log_rank, linear_rank, vote)  # the methods that see nothing but ranks
DIRECTIONS = st.lists(st.sampled_from(["higher", "lower"]), min_size=4, max_size=4)


def naive_rank(value, population, direction):
    """How many are worse, and half of the others that are the same."""
    if direction == "lower":
        value, population = -value, [-other for other in population]
    worse = sum(other < value for other in population)
    same = sum(other == value for other in population)
    return worse + (same + 1) / 2


@given(COLUMN, st.sampled_from(["higher", "lower"]))
def test_ranks(values, direction):
    valid = [value for value in values if not math.isnan(value)]
    given_ranks = ranks(values, direction)
    for value, rank in zip(values, given_ranks, strict=True):
        assert math.isnan(rank) if math.isnan(value) else rank == naive_rank(value, valid, direction)
    assert np.nansum(given_ranks) == len(valid) * (len(valid) + 1) / 2


@given(COLUMNS, DIRECTIONS)
def test_aggregates(table, directions):
    columns = {f"p{i}": column for i, column in enumerate(table)}
    ways = {f"p{i}": directions[i] for i in range(len(table))}
    valid = [j for j in range(table.shape[1]) if not np.isnan(table[:, j]).any()]
    log, linear = log_rank(columns, ways), linear_rank(columns, ways)
    assert log.shape == linear.shape == (table.shape[1],)
    for j in range(table.shape[1]):
        if j not in valid:
            assert math.isnan(log[j]) and math.isnan(linear[j])
            continue
        placed = [naive_rank(column[j], column[valid], ways[name]) for name, column in columns.items()]
        assert linear[j] == sum(placed)
        assert log[j] == pytest.approx(sum(math.log(rank / len(valid)) for rank in placed), abs=1e-12)


@given(COLUMNS, st.permutations(range(4)))
def test_the_order_of_the_proxies_does_not_matter(table, order):
    """Bit for bit, so that ties stay ties."""
    columns = {f"p{i}": column for i, column in enumerate(table)}
    directions = dict.fromkeys(columns, "higher")
    shuffled = {f"p{i}": columns[f"p{i}"] for i in order if f"p{i}" in columns}
    for method in OF_RANKS:
        np.testing.assert_array_equal(method(columns, directions), method(shuffled, directions))


@given(COLUMNS, DIRECTIONS)
def test_only_the_order_of_the_values_matters(table, directions):
    columns = {f"p{i}": column for i, column in enumerate(table)}
    squeezed = {name: np.arctan(np.log1p(np.abs(column)) * np.sign(column)) for name, column in columns.items()}
    ways = {f"p{i}": way for i, way in enumerate(directions)}
    for method in OF_RANKS:
        np.testing.assert_array_equal(method(columns, ways), method(squeezed, ways))


@given(COLUMNS, DIRECTIONS, st.randoms())
def test_the_order_of_the_architectures_does_not_matter(table, directions, random):
    columns = {f"p{i}": column for i, column in enumerate(table)}
    ways = {f"p{i}": way for i, way in enumerate(directions)}
    order = random.sample(range(table.shape[1]), table.shape[1])
    shuffled = {name: column[order] for name, column in columns.items()}
    for method in OF_RANKS:
        np.testing.assert_array_equal(method(shuffled, ways), method(columns, ways)[order])


@given(COLUMNS, DIRECTIONS)
def test_architectures_outside_the_population_have_no_influence(table, directions):
    """A row that lacks one proxy might as well not be there."""
    columns = {f"p{i}": column for i, column in enumerate(table)}
    ways = {f"p{i}": way for i, way in enumerate(directions)}
    inside = ~np.isnan(table).any(axis=0)
    cut = {name: column[inside] for name, column in columns.items()}
    for method in OF_RANKS:
        whole = method(columns, ways)
        assert np.isnan(whole[~inside]).all()
        np.testing.assert_array_equal(whole[inside], method(cut, ways))


def test_published_definition():
    """Sum of ln(rank / m); the worst in everything is -inf nowhere, the best in everything is 0."""
    columns = {"a": np.array([1.0, 2.0, 3.0, 4.0]), "b": np.array([-np.inf, -np.inf, 5.0, 7.0])}
    directions = {"a": "higher", "b": "higher"}
    expected = [math.log(1 / 4 * 1.5 / 4), math.log(2 / 4 * 1.5 / 4), math.log(3 / 4 * 3 / 4), 0.0]
    np.testing.assert_allclose(log_rank(columns, directions), expected, rtol=1e-15)
    np.testing.assert_array_equal(linear_rank(columns, directions), [2.5, 3.5, 6.0, 8.0])
    columns["b"][1] = np.nan  # outside: m is 3 and the ranks close up, in the other column too
    np.testing.assert_allclose(
        log_rank(columns, directions), [math.log(1 / 9), np.nan, math.log(4 / 9), 0.0], rtol=1e-15
    )


def test_size_regularised():
    """The proxy times exp(-((P - mu)^2 / mu^2)), mu the largest size of the architectures that have both."""
    columns = {"swap": np.array([10.0, 20.0, 30.0, np.nan, 50.0]), "params": np.array([4.0, 2.0, 1.0, 9.0, np.nan])}
    directions = dict.fromkeys(columns, "higher")
    expected = [10, 20 * math.exp(-0.25), 30 * math.exp(-0.5625), np.nan, np.nan]
    np.testing.assert_allclose(size_regularised(columns, directions), expected, rtol=1e-15)
    thousands = {**columns, "params": columns["params"] / 1000}  # as the published code counts
    np.testing.assert_allclose(size_regularised(thousands, directions), expected, rtol=1e-15)
    nothing = {**columns, "swap": np.full(5, np.nan)}
    assert np.isnan(size_regularised(nothing, directions)).all()


def test_size_regularised_refuses_what_it_cannot_multiply():
    two = {"swap": np.array([1.0, 2.0]), "params": np.array([3.0, 4.0])}
    ways = {"swap": "higher", "params": "higher", "b": "higher"}
    for columns in ({}, {"swap": two["swap"]}, {"params": two["params"]}, {**two, "b": two["swap"]}):
        with pytest.raises(UsageError, match="params and one proxy"):
            size_regularised(columns, ways)
    with pytest.raises(UsageError, match="higher, which swap is not"):
        size_regularised(two, {**ways, "swap": "lower"})
    with pytest.raises(DataError, match="any parameters"):
        size_regularised({**two, "params": np.zeros(2)}, ways)


def test_named_aggregates():
    """Every entry is found by its name, combines by a known method, and the AZ-NAS four are the group's."""
    assert all(entry.name == name and entry.method in METHODS and entry.paper for name, entry in NAMED.items())
    assert NAMED["aznas"].proxies == NAMED["aznas_linear"].proxies == groups()["aznas"]
    assert (NAMED["vote"].method, set(NAMED["vote"].proxies)) == ("vote", {"synflow", "jacob_cov", "snip"})


def test_te_nas_sums_the_ranks_of_a_small_condition_number_and_many_regions():
    columns = {"ntk_condition": np.array([1e9, 40.0, 40.0]), "linear_regions": np.array([9.0, 8.0, 7.0])}
    directions = {"ntk_condition": "lower", "linear_regions": "higher"}
    assert aggregate(NAMED["tenas"].method, columns, directions).tolist() == [1 + 3, 2.5 + 2, 2.5 + 1]


def test_inputs_are_left_alone():
    columns = {"a": np.array([1.0, np.nan]), "b": np.array([1.0, 2.0])}
    log_rank(columns, {"a": "higher", "b": "lower"})
    np.testing.assert_array_equal(columns["b"], [1.0, 2.0])
    np.testing.assert_array_equal(ranks(np.array([3, 1, 2])), [3.0, 1.0, 2.0])


def test_bad_input():
    one = {"a": np.array([1.0])}
    with pytest.raises(UsageError, match="at least one proxy"):
        log_rank({}, {})
    with pytest.raises(UsageError, match="no direction is known for a"):
        linear_rank(one, {})
    with pytest.raises(UsageError, match="unknown direction 'up'"):
        log_rank(one, {"a": "up"})
    with pytest.raises(DataError, match="equally long"):
        log_rank({**one, "b": np.array([1.0, 2.0])}, {"a": "higher", "b": "higher"})
    with pytest.raises(UsageError, match="did you mean logrank"):
        aggregate("lograk", one, {"a": "higher"})
    assert aggregate("linear", one, {"a": "higher"}).tolist() == [1.0]


def test_size_regularised_refuses_negative_scores_which_a_factor_below_one_would_raise():
    columns = {"progressivity": np.array([-0.9, -1.0]), "params": np.array([1e6, 1e5])}
    with pytest.raises(UsageError, match="progressivity has negative scores"):
        size_regularised(columns, dict.fromkeys(columns, "higher"))
    columns["progressivity"][:] = [-np.inf, 0.0]
    assert size_regularised(columns, dict.fromkeys(columns, "higher")).tolist() == [-np.inf, 0.0]
