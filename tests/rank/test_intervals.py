"""bootstrap: intervals of rank correlations."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from zcpipe.errors import UsageError
from zcpipe.rank import correlate
from zcpipe.rank import intervals as module
from zcpipe.rank.intervals import bootstrap

VALUES = st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 2.0, np.inf, np.nan])


def slowly(scores, truth, resamples):
    """The same draws, each correlated by SciPy."""
    known = ~(np.isnan(scores) | np.isnan(truth))
    ranks = [stats.rankdata(values[known]) for values in (scores, truth)]
    n = int(known.sum())
    counts = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=resamples)
    found = []
    for row in counts:
        x, y = (np.repeat(values, row) for values in ranks)
        if len(set(x)) > 1 and len(set(y)) > 1:
            found.append((stats.kendalltau(x, y).statistic, stats.spearmanr(x, y).statistic))
    return np.quantile(found, [0.025, 0.975], axis=0).T if found else np.full((2, 2), np.nan)


@given(
    hnp.arrays(np.float64, 9, elements=VALUES),
    hnp.arrays(np.float64, 9, elements=st.sampled_from([10.0, 50.0, 94.4, np.nan])),
)
def test_against_scipy_draw_by_draw(scores, truth):
    found = bootstrap(scores, truth, 12)
    if (~(np.isnan(scores) | np.isnan(truth))).sum() < 2:
        assert np.isnan([found.kendall, found.spearman]).all()
    else:
        np.testing.assert_allclose([found.kendall, found.spearman], slowly(scores, truth, 12), atol=1e-7)


def test_a_population_in_pieces_is_the_same_population(monkeypatch):
    random = np.random.default_rng(1)
    truth = random.normal(size=60)
    scores = truth + random.normal(size=60)
    whole = bootstrap(scores, truth, 50)
    monkeypatch.setattr(module, "_AT_ONCE", 7 * 60)
    pieces = bootstrap(scores, truth, 50)
    np.testing.assert_allclose([*pieces.kendall, *pieces.spearman], [*whole.kendall, *whole.spearman], rtol=1e-12)


def test_intervals_hold_the_true_correlation_as_often_as_they_say():
    """Pairs of normals correlated by 0.6, whose tau is 2 asin(0.6) / pi."""
    random, held = np.random.default_rng(2), 0
    for _ in range(200):
        x, noise = random.normal(size=(2, 120))
        low, high = bootstrap(x, 0.6 * x + 0.8 * noise, 200).kendall
        held += low <= 2 * np.arcsin(0.6) / np.pi <= high
    assert 0.88 <= held / 200 <= 0.99


def test_the_interval_is_around_the_correlation():
    random = np.random.default_rng(3)
    truth = random.normal(size=100)
    scores = truth + random.normal(size=100)
    found, point = bootstrap(scores, truth, 500), correlate(scores, truth)
    assert found.kendall[0] < point.kendall < found.kendall[1]
    assert found.spearman[0] < point.spearman < found.spearman[1]


@pytest.mark.parametrize("resamples", [1, 10**12])
def test_too_few_or_too_many_resamples_are_refused(resamples):
    with pytest.raises(UsageError, match=f"resamples: got {resamples}, expected 2 or more, and 1000000 at most"):
        bootstrap(np.arange(3.0), np.arange(3.0), resamples)


def test_large_populations_with_ties_against_scipy_draw_by_draw():
    random = np.random.default_rng(4)
    truth = random.integers(0, 40, 700).astype(float)
    scores = truth + random.integers(0, 60, 700)
    found = bootstrap(scores, truth, 8)
    np.testing.assert_allclose([found.kendall, found.spearman], slowly(scores, truth, 8), rtol=1e-12)


def test_progress_is_told():
    told = []
    bootstrap(np.arange(2.0**17), np.arange(2.0**17), 9, progress=lambda done, total: told.append((done, total)))
    assert told == [(0, 9), (4, 9), (8, 9), (9, 9)]
