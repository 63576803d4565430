import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import norm, rankdata

from zcpipe.parzc.encodings import GRID, fit_coding, restore_coding, scale_within

# Few distinct values, so that ties are common; infinities are data.
VALUES = st.sampled_from([-np.inf, -1e38, -3.0, -1.0, -1e-30, 0.0, 1e-45, 0.1, 0.5, 2.0, 1e38, np.inf])
POPULATIONS = hnp.arrays(np.float32, st.tuples(st.integers(1, 12), st.integers(1, 4)), elements=VALUES)
DOUBLES = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 12), st.integers(1, 4)),
    elements=st.floats(-1e150, 1e150, allow_subnormal=False) | st.sampled_from([-np.inf, np.inf]),
)
OVER_POPULATION = ("log", "rank", "live-rank", "zscore", "minmax")
ENCODINGS = st.sampled_from(OVER_POPULATION)


def fitted(encoding, values, take_log=True):
    return fit_coding(encoding, values, np.full(values.shape[1], take_log))


def encoded(coding, values):
    out = np.empty(values.shape, np.float32)
    coding.encode(values, out)
    return out


def scaled(values, live=None):
    values = np.array(values, np.float32)
    scale_within(values, None if live is None else np.array(live))
    return values


def in_order(column, of_column, encoding):
    """Whether what comes of a column grows with it; among ranks of live places, 0 stands apart."""
    compared = column != 0 if encoding == "live-rank" else np.ones(len(column), bool)
    return (np.diff(of_column[compared][np.argsort(column[compared], kind="stable")]) >= 0).all()


@given(POPULATIONS | DOUBLES, ENCODINGS, st.booleans())
def test_whatever_the_values_what_comes_out_is_finite_and_in_their_order(values, encoding, take_log):
    x = encoded(fitted(encoding, values, take_log), values)
    assert np.isfinite(x).all()
    for column, of_column in zip(values.T, x.T, strict=True):
        assert in_order(column, of_column, encoding)


@given(POPULATIONS, POPULATIONS, ENCODINGS, st.booleans())
def test_rows_that_no_population_had_are_finite_and_in_order_too(values, others, encoding, take_log):
    width = min(values.shape[1], others.shape[1])
    x = encoded(fitted(encoding, values[:, :width], take_log), others[:, :width])
    assert np.isfinite(x).all()
    for column, of_column in zip(others.T, x.T, strict=False):
        assert in_order(column, of_column, encoding)


@given(POPULATIONS, ENCODINGS, st.data())
def test_a_row_is_encoded_by_itself(values, encoding, data):
    coding = fitted(encoding, values)
    rows = data.draw(st.lists(st.integers(0, len(values) - 1)))
    np.testing.assert_array_equal(encoded(coding, values[rows]), encoded(coding, values)[rows])


@given(POPULATIONS, ENCODINGS)
def test_a_coding_outlives_its_arrays_being_written_and_read(values, encoding):
    coding = fitted(encoding, values)
    again = restore_coding(encoding, {name: tensor.copy() for name, tensor in coding.tensors().items()})
    np.testing.assert_array_equal(encoded(again, values), encoded(coding, values))


@given(POPULATIONS, ENCODINGS)
def test_values_may_be_encoded_in_place(values, encoding):
    coding = fitted(encoding, values)
    expected = encoded(coding, values)
    coding.encode(values, values)
    np.testing.assert_array_equal(values, expected)


@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 40), st.integers(1, 3)), elements=VALUES))
def test_rank_is_the_normal_score_of_the_mid_rank(values):
    n = len(values)
    expected = norm.ppf((rankdata(values, axis=0) - 0.5) / n)
    np.testing.assert_allclose(encoded(fitted("rank", values), values), expected, rtol=1e-5, atol=1e-6)


@given(hnp.arrays(np.float32, (20, 2), elements=st.floats(-50, 50, width=32)))
def test_only_the_order_of_values_matters_to_rank(values):
    squeezed = np.exp(values.astype(np.float64) / 10)
    assume(all(len(np.unique(a)) == len(np.unique(b)) for a, b in zip(values.T, squeezed.T, strict=True)))
    np.testing.assert_array_equal(encoded(fitted("rank", values), values), encoded(fitted("rank", squeezed), squeezed))


@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 40), st.integers(1, 3)), elements=VALUES))
def test_live_ranks_are_those_among_values_other_than_0_which_stays_0(values):
    x = encoded(fitted("live-rank", values), values)
    for column, of_column in zip(values.T, x.T, strict=True):
        live = column != 0
        expected = norm.ppf((rankdata(column[live]) - 0.5) / max(live.sum(), 1))
        if len(np.unique(column[live])) == 1:
            expected = np.ones(live.sum())
        np.testing.assert_allclose(of_column[live], expected, rtol=1e-5, atol=1e-6)
        assert (of_column[~live] == 0).all()


def test_a_large_population_is_ranked_off_a_grid():
    values = np.random.default_rng(0).lognormal(size=(40_000, 1)).astype(np.float32)
    coding = fitted("rank", values)
    exact = norm.ppf((rankdata(values, axis=0) - 0.5) / len(values))
    step = (exact.max() - exact.min()) / (GRID - 1)
    x = encoded(coding, values)
    assert len(coding.values) <= GRID
    assert 0 < np.abs(x - exact).max() <= 2 * step
    assert x.min() == np.float32(exact.min()) and x.max() == np.float32(exact.max())


def test_standard_scores_are_those_of_numpy():
    values = np.random.default_rng(0).normal(3, 2, (50, 2)).astype(np.float32)
    x = encoded(fitted("zscore", values), values)
    np.testing.assert_allclose(x, (values - values.mean(0)) / values.std(0), rtol=1e-4, atol=1e-5)


def test_a_logarithm_spreads_magnitudes_and_keeps_signs():
    values = np.array([[-1e3], [-1.0], [-1e-3], [0.0], [1e-3], [1.0], [1e3]], np.float32)
    x = encoded(fitted("log", values), values)[:, 0]
    np.testing.assert_allclose(x, -x[::-1], atol=1e-6)
    gaps = np.diff(x[4:])
    assert gaps[0] == pytest.approx(gaps[1], rel=0.15)


def test_what_is_a_logarithm_already_is_only_standardised():
    values = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
    coding = fit_coding("log", values, np.array([False, True]))
    plain = encoded(fitted("zscore", values), values)
    x = encoded(coding, values)
    np.testing.assert_array_equal(x[:, 0], plain[:, 0])
    assert not np.allclose(x[:, 1], plain[:, 1])


def test_infinities_are_a_deviation_beyond_the_rest():
    values = np.array([[-np.inf], [1.0], [3.0], [np.inf]], np.float32)
    np.testing.assert_allclose(encoded(fitted("zscore", values), values)[:, 0], [-2, -1, 1, 2])
    np.testing.assert_allclose(encoded(fitted("minmax", values), values)[:, 0], [0, 0, 1, 1])


@pytest.mark.parametrize("encoding", OVER_POPULATION)
@pytest.mark.parametrize("value", [0.0, 0.1, -7.0])
def test_a_constant_coordinate_becomes_zeros_and_of_live_places_ones(encoding, value):
    values = np.full((7, 1), value, np.float32)
    assert (encoded(fitted(encoding, values), values) == (encoding == "live-rank" and value != 0)).all()


@pytest.mark.parametrize("value", [1.0, -7.0, np.inf, -np.inf])
def test_live_places_of_one_value_differ_from_dead_ones(value):
    values = np.array([[0.0], [value], [0.0], [value]], np.float32)
    assert encoded(fitted("live-rank", values), values)[:, 0].tolist() == [0.0, 1.0, 0.0, 1.0]


@given(POPULATIONS)
def test_minmax_is_the_published_formula(values):
    x = scaled(values)
    assert ((x >= 0) & (x <= 1)).all()
    for row, of_row in zip(values.astype(np.float64), x, strict=True):
        if np.isfinite(row).all():
            span = row.max() - row.min()
            expected = (row - row.min()) / span if span else np.zeros_like(row)
            np.testing.assert_allclose(of_row, expected, rtol=1e-6, atol=1e-40)


@given(POPULATIONS, st.data())
def test_minmax_sees_live_nodes_alone(values, data):
    live = data.draw(st.lists(st.integers(0, values.shape[1]), min_size=len(values), max_size=len(values)))
    x = scaled(values, live)
    for row, of_row, count in zip(values, x, live, strict=True):
        np.testing.assert_array_equal(of_row[:count], scaled(row[None, :count])[0])
        assert not of_row[count:].any()


def test_minmax_takes_an_infinity_for_the_extreme_of_its_row():
    inf = np.inf
    rows = [[-inf, 1, 2], [inf, 1, 2], [-inf, inf, 5], [-inf, -inf, -inf], [inf, inf, inf], [-inf, inf, inf]]
    expected = [[0, 0, 1], [1, 0, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 1, 1]]
    np.testing.assert_array_equal(scaled(rows), expected)
