import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from zcpipe.errors import DataError
from zcpipe.rank import correlate

SCORES = st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 2.0, np.inf, np.nan])
TRUTHS = st.sampled_from([10.0, 50.0, 90.0, 94.37, np.nan])
PAIRS = hnp.arrays(np.float64, st.integers(0, 14), elements=SCORES).flatmap(
    lambda scores: st.tuples(st.just(scores), hnp.arrays(np.float64, len(scores), elements=TRUTHS))
)


def naive_tau_b(x, y):
    """Concordant less discordant pairs, over the geometric mean of the pairs untied in either."""
    pairs = list(combinations(range(len(x)), 2))
    sign = {name: [int(v[i] > v[j]) - int(v[i] < v[j]) for i, j in pairs] for name, v in (("x", x), ("y", y))}
    agreement = sum(a * b for a, b in zip(sign["x"], sign["y"], strict=True))
    return agreement / math.sqrt(sum(map(abs, sign["x"])) * sum(map(abs, sign["y"])))


@given(PAIRS)
def test_against_the_definition(pair):
    scores, truth = pair
    known = ~np.isnan(truth)
    if len(np.unique(truth[known])) < 2:
        with pytest.raises(DataError):
            correlate(scores, truth)
        return
    both = known & ~np.isnan(scores)
    found = correlate(scores, truth)
    assert (found.n, found.failed) == (both.sum(), known.sum() - both.sum())
    x, y = scores[both], truth[both]
    if len(np.unique(x)) < 2 or len(np.unique(y)) < 2:
        assert all(map(math.isnan, (found.kendall, found.spearman, found.pair_accuracy)))
        return
    pairs = [(i, j) for i, j in combinations(range(len(x)), 2) if y[i] != y[j]]
    right = sum(0.5 if x[i] == x[j] else float((x[i] > x[j]) == (y[i] > y[j])) for i, j in pairs)
    assert found.pair_accuracy == right / len(pairs)
    assert found.kendall == pytest.approx(naive_tau_b(x, y), abs=1e-12)
    pearson_of_ranks = np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1]
    assert found.spearman == pytest.approx(pearson_of_ranks, abs=1e-12)


def test_against_scipy_on_raw_values():
    generator = np.random.default_rng(3)
    scores, truth = generator.normal(size=(2, 500)).round(1)
    found = correlate(scores, truth)
    assert found.kendall == pytest.approx(stats.kendalltau(scores, truth).statistic, abs=1e-12)
    assert found.spearman == pytest.approx(stats.spearmanr(scores, truth).statistic, abs=1e-12)


def test_signed():
    rising = np.arange(5.0)
    assert correlate(rising, rising).kendall == pytest.approx(1)
    assert correlate(-rising, rising).spearman == pytest.approx(-1)


def test_minus_infinity_is_the_lowest_score():
    truth = np.array([1.0, 2.0, 3.0, 4.0])
    assert correlate(np.array([-np.inf, 0.0, 1.0, np.inf]), truth).kendall == pytest.approx(1)


def test_failed_counts_only_architectures_with_truth():
    found = correlate(np.array([np.nan, np.nan, 1.0, 2.0]), np.array([1.0, np.nan, 2.0, 3.0]))
    assert (found.n, found.failed) == (2, 1)
    nothing = correlate(np.full(3, np.nan), np.arange(3.0))
    assert math.isnan(nothing.kendall) and (nothing.n, nothing.failed) == (0, 3)


def test_constant():
    assert math.isnan(correlate(np.zeros(4), np.arange(4.0)).kendall)
    with pytest.raises(DataError, match="target 'cifar10_test_200' is constant over all 4"):
        correlate(np.arange(4.0), np.ones(4), name="cifar10_test_200")
    with pytest.raises(DataError, match="acc: no architecture"):
        correlate(np.arange(2.0), np.full(2, np.nan), name="acc")
    with pytest.raises(DataError, match="do not fit"):
        correlate(np.arange(2.0), np.arange(3.0))
