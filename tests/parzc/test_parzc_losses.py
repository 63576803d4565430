import math
from itertools import combinations, permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from zcpipe.errors import UsageError
from zcpipe.parzc.losses import diff_kendall, fixes_scale, loss_named, mse, pairwise

VALUES = st.sampled_from([-3.0, -0.5, 0.0, 0.25, 1.0, 4.0])
PAIRS = st.integers(2, 9).flatmap(lambda n: hnp.arrays(np.float64, (2, n), elements=VALUES))
GENERATOR = np.random.default_rng(0)


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


@given(PAIRS, st.sampled_from([0.5, 1.0, 3.0]))
def test_diff_kendall_is_the_published_sum_over_ordered_pairs(pair, alpha):
    x, y = pair.tolist()
    n = len(x)
    soft = [[sigmoid(alpha * gap) - sigmoid(-alpha * gap) for gap in np.subtract.outer(v, v).ravel()] for v in (x, y)]
    expected = -sum(a * b for a, b in zip(*soft, strict=True)) / (n * (n - 1) / 2)
    assert diff_kendall(*torch.tensor(pair), alpha).item() == pytest.approx(expected, abs=1e-12)


def test_diff_kendall_by_its_other_formula_and_its_published_alpha():
    x, y = torch.tensor(GENERATOR.normal(size=(2, 12)))
    products = [
        math.tanh(0.25 * (x[i] - x[j]).item()) * math.tanh(0.25 * (y[i] - y[j]).item())
        for i, j in combinations(range(12), 2)
    ]
    assert diff_kendall(x, y).item() == pytest.approx(-2 * np.mean(products), abs=1e-12)


def test_diff_kendall_tends_to_twice_tau_as_the_gaps_grow():
    x, y = GENERATOR.permutation(60), GENERATOR.permutation(60)
    tau = stats.kendalltau(x, y).statistic
    off = [abs(diff_kendall(*torch.tensor(np.stack([x, y]) * gap)).item() + 2 * tau) for gap in (1.0, 8.0, 100.0)]
    assert off[0] > off[1] > off[2]
    assert off[2] < 1e-12


def test_diff_kendall_of_ties_tends_to_tau_a():
    """A pair that is tied in either counts 0, and the number of pairs stays that of all."""
    x, y = torch.tensor([[0.0, 0.0, 1.0, 2.0], [0.0, 1.0, 1.0, 2.0]], dtype=torch.float64) * 1000
    assert diff_kendall(x, y).item() == pytest.approx(-2 * 4 / 6)


@given(PAIRS)
def test_pairwise_is_the_mean_over_ordered_pairs(pair):
    x, y = pair
    terms = [math.log(1 + math.exp(-(x[i] - x[j]) * np.sign(y[i] - y[j]))) for i, j in permutations(range(len(x)), 2)]
    assert pairwise(*torch.tensor(pair)).item() == pytest.approx(np.mean(terms), abs=1e-12)


def test_pairwise_does_not_overflow():
    x, y = torch.tensor([0.0, 1e4]), torch.tensor([1.0, 0.0])
    assert pairwise(x, y).item() == pytest.approx(1e4)


@given(PAIRS, st.permutations(range(9)))
@pytest.mark.parametrize("name", ["diffkendall", "pairwise", "mse"])
def test_the_order_of_rows_does_not_matter(name, pair, order):
    loss, order = loss_named(name), [i for i in order if i < pair.shape[1]]
    assert loss(*torch.tensor(pair[:, order])).item() == pytest.approx(loss(*torch.tensor(pair)).item(), abs=1e-9)


@given(PAIRS)
@pytest.mark.parametrize("name", ["diffkendall", "pairwise", "pairwise+diffkendall"])
def test_where_the_predictions_lie_matters_to_the_squared_error_alone(name, pair):
    x, y = torch.tensor(pair)
    assert loss_named(name)(x + 7, y).item() == pytest.approx(loss_named(name)(x, y).item(), abs=1e-9)
    assert not fixes_scale(name)
    assert mse(x + 7, x).item() == pytest.approx(49)
    assert fixes_scale("pairwise+mse")


@pytest.mark.parametrize("name", ["diffkendall", "pairwise", "mse", "mse+pairwise+diffkendall"])
def test_gradients(name):
    x, y = torch.tensor(GENERATOR.normal(size=(2, 7)))
    loss = loss_named(name)
    assert torch.autograd.gradcheck(lambda prediction: loss(prediction, y), (x.requires_grad_(),))
    assert torch.autograd.gradgradcheck(lambda prediction: loss(prediction, y), (x,))


def test_diff_kendall_has_a_gradient_by_its_target_too():
    x, y = torch.tensor(GENERATOR.normal(size=(2, 7)), requires_grad=True)
    assert torch.autograd.gradcheck(diff_kendall, (x, y))


def test_sums_are_unweighted():
    x, y = torch.tensor(GENERATOR.normal(size=(2, 30)))
    expected = mse(x, y) + pairwise(x, y) + diff_kendall(x, y, 2.0)
    assert loss_named("mse+pairwise+diffkendall", 2.0)(x, y).item() == pytest.approx(expected.item())
    assert loss_named("diffkendall", 2.0)(x, y) == diff_kendall(x, y, 2.0) != diff_kendall(x, y)


def test_unknown_names():
    with pytest.raises(UsageError, match="unknown loss 'difkendall'; did you mean diffkendall"):
        loss_named("mse+difkendall")
    with pytest.raises(UsageError, match="known: diffkendall, mse, pairwise"):
        loss_named("")
    with pytest.raises(UsageError, match="has mse twice"):
        loss_named("mse+pairwise+mse")


@pytest.mark.parametrize("loss", [diff_kendall, pairwise, mse])
def test_shapes_that_do_not_fit(loss):
    for x, y in [((3,), (4,)), ((3, 1), (3, 1)), ((0,), (0,))]:
        with pytest.raises(UsageError, match="prediction and target: got shapes"):
            loss(torch.zeros(x), torch.zeros(y))


@pytest.mark.parametrize("loss", [diff_kendall, pairwise])
def test_one_row_has_no_pair(loss):
    with pytest.raises(UsageError, match="n at least 2"):
        loss(torch.zeros(1), torch.zeros(1))


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.inf, math.nan])
def test_alpha_is_positive(alpha):
    with pytest.raises(UsageError, match="alpha: got"):
        diff_kendall(torch.zeros(2), torch.zeros(2), alpha)
