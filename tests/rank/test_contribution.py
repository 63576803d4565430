import numpy as np
import pytest
from scipy import stats

from zcpipe.errors import UsageError
from zcpipe.rank import leave_one_out, linear_rank, log_rank

GENERATOR = np.random.default_rng(2)
TRUTH = GENERATOR.normal(size=200)
COLUMNS = {
    "good": TRUTH + 0.3 * GENERATOR.normal(size=200),
    "fair": TRUTH + 2 * GENERATOR.normal(size=200),
    "noise": GENERATOR.normal(size=200),
}
DIRECTIONS = dict.fromkeys(COLUMNS, "higher")


@pytest.mark.parametrize("combine", [log_rank, linear_rank])
def test_against_the_definition(combine):
    whole = stats.kendalltau(combine(COLUMNS, DIRECTIONS), TRUTH).statistic
    lost = leave_one_out(COLUMNS, DIRECTIONS, TRUTH, combine)
    assert list(lost) == list(COLUMNS)
    for name in COLUMNS:
        others = {other: values for other, values in COLUMNS.items() if other != name}
        assert lost[name] == pytest.approx(whole - stats.kendalltau(combine(others, DIRECTIONS), TRUTH).statistic)
    assert lost["good"] > 0 > lost["noise"]


def test_the_population_stays_the_same():
    """A row without one of the proxies counts nowhere, not even where that proxy is left out."""
    holed = {name: values.copy() for name, values in COLUMNS.items()}
    holed["noise"][:50] = np.nan
    truth = TRUTH.copy()
    truth[:10] = np.nan
    cut = {name: values[50:] for name, values in COLUMNS.items()}
    assert leave_one_out(holed, DIRECTIONS, truth) == leave_one_out(cut, DIRECTIONS, TRUTH[50:])


def test_one_proxy_cannot_be_left_out():
    with pytest.raises(UsageError, match="two or more"):
        leave_one_out({"good": COLUMNS["good"]}, DIRECTIONS, TRUTH)
