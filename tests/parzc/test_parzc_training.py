import copy
import math
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from parzc_problems import SHORT, D, X, Y, holed, linear, made, make, problem, same
from scipy import stats
from torch import nn

from zcpipe.errors import DataError, UsageError
from zcpipe.parzc import training
from zcpipe.parzc.bayesian import mean_weights
from zcpipe.parzc.losses import pairwise
from zcpipe.parzc.training import Settings, fit, fit_ensemble, hold_out, predict


def tau(model, x, y):
    return stats.kendalltau(predict(model, x, 4, 0)[0], y).statistic


@pytest.mark.parametrize("loss", ["mse", "pairwise", "diffkendall", "mse+pairwise+diffkendall"])
def test_it_learns(loss):
    x, y = problem(300)
    fitted = fit(made(), x, y, Settings(loss=loss, epochs=30, batch_size=32), 0)
    assert fitted.losses[-1] < fitted.losses[0]
    assert tau(fitted.model, *problem(300, seed=1)) > 0.4
    assert (fitted.taus, fitted.best, len(fitted.losses)) == ((), 29, 30)


def test_one_seed_gives_one_model_to_the_bit():
    settings = Settings(epochs=4, batch_size=16, patience=2, members=2, kl_weight=0.1)
    first, second, other = (fit_ensemble(make, X, Y, settings, seed) for seed in (5, 5, 6))
    for a, b, c in zip(first, second, other, strict=True):
        assert same(a.model, b.model)
        assert (a.losses, a.taus) == (b.losses, b.taus)
        assert not same(a.model, c.model)
    models = [member.model for member in first]
    assert np.array_equal(predict(models, X, 3, 1), predict(models, X, 3, 1))
    assert not np.array_equal(predict(models, X, 3, 1), predict(models, X, 3, 2))


def test_the_global_generators_stay_and_do_not_matter():
    torch.manual_seed(1)
    np.random.seed(1)
    before, numpys = torch.get_rng_state(), np.random.get_state()[1].tolist()
    first = fit_ensemble(make, X, Y, SHORT, 0)[0].model
    found = predict(first, X, 2, 0)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.random.get_state()[1].tolist() == numpys
    torch.manual_seed(2)
    second = fit_ensemble(make, X, Y, SHORT, 0)[0].model
    assert same(first, second)
    assert np.array_equal(predict(second, X, 2, 0), found)


def test_it_learns_where_gradients_are_switched_off():
    expected = fit_ensemble(make, X, Y, SHORT, 0)[0].model
    with torch.no_grad():
        assert same(fit_ensemble(make, X, Y, SHORT, 0)[0].model, expected)


def test_members_differ_in_everything():
    first, second = fit_ensemble(make, X, Y, Settings(epochs=1, members=2, learning_rate=1e-12), 0)
    assert not torch.allclose(first.model.network.enter.mean, second.model.network.enter.mean)


def test_members_hold_out_different_rows(monkeypatch):
    held = []
    tau_of = training._tau
    monkeypatch.setattr(training, "_tau", lambda network, x, *rest: held.append(x[:, 0]) or tau_of(network, x, *rest))
    fit_ensemble(make, X, Y, Settings(epochs=1, members=2, patience=1, held_out=0.25), 0)
    assert [len(rows) for rows in held] == [15, 15]
    assert set(held[0]) != set(held[1])
    assert all(set(rows) <= set(X[:, 0]) for rows in held)


def test_a_larger_ensemble_begins_with_the_smaller_one():
    one, three = (fit_ensemble(make, X, Y, SHORT.model_copy(update={"members": n}), 0) for n in (1, 3))
    assert len(three) == 3
    assert same(one[0].model, three[0].model)


def test_the_mode_a_network_comes_in_does_not_matter():
    """Dropout is on in training and off when it is over."""
    trained = fit(made().train(), X, Y, SHORT, 0).model
    assert same(trained, fit(made().eval(), X, Y, SHORT, 0).model)
    assert not any(module.training for module in trained.modules())


def test_a_network_that_cannot_tell_rows_apart_predicts_the_mean():
    x = np.ones((60, D), dtype=np.float32)
    mean, _ = predict(fit(made(), x, Y, SHORT, 0).model, x, 3, 0)
    np.testing.assert_allclose(mean, Y.mean(), atol=Y.std())


def test_targets_are_scaled_by_the_rows_of_training():
    fitted = fit(linear(), X, Y, Settings(loss="mse", epochs=1), 0)
    assert fitted.model.centre.item() == pytest.approx(Y.mean())
    assert fitted.model.scale.item() == pytest.approx(Y.std())
    validation = problem(20, seed=3)
    fitted = fit(linear(), X, Y, Settings(loss="mse", epochs=1, patience=1), 0, validation)
    assert fitted.model.centre.item() == pytest.approx(Y.mean())


@pytest.mark.parametrize(("factor", "shift"), [(2.0, 0.0), (0.125, 0.0), (1.0, 1000.0)])
@pytest.mark.parametrize("loss", ["mse", "pairwise+diffkendall"])
def test_the_targets_unit_does_not_matter(loss, factor, shift):
    settings = Settings(loss=loss, epochs=3, batch_size=16)
    plain = predict(fit(made(), X, Y, settings, 0).model, X, 3, 0)
    other = predict(fit(made(), X, factor * Y + shift, settings, 0).model, X, 3, 0)
    np.testing.assert_allclose(other[0], factor * plain[0] + shift, rtol=1e-4)
    np.testing.assert_allclose(other[1], factor * plain[1], rtol=1e-2)


def test_a_loss_of_order_alone_predicts_at_the_targets_scale():
    fitted = fit(made(), X, Y, Settings(loss="pairwise", epochs=5), 0)
    with mean_weights(fitted.model), torch.no_grad():
        values = fitted.model(torch.tensor(X))
    assert values.dtype == torch.float64
    assert values.mean().item() == pytest.approx(Y.mean())
    assert values.std(correction=0).item() == pytest.approx(Y.std())
    assert fitted.model.scale > 0


def test_one_step_is_adams_on_the_named_loss():
    """One batch, one epoch, no dropout: the step can be taken by hand."""
    network, by_hand = linear(), linear()
    settings = Settings(loss="pairwise", epochs=1, batch_size=100, kl_weight=2.0, prior_sigma=0.5, weight_decay=0.1)
    fit(network, X, Y, settings, 3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training._seed(3, training._NOISE))
        loss = pairwise(by_hand(torch.tensor(X)), torch.tensor(Y))
        (loss + 2.0 / len(X) * by_hand[0].kl(0.5)).backward()
    layer, expected = network[0], by_hand[0]
    gradients = (expected.mean.grad + 0.1 * expected.mean, expected.rho.grad)
    for parameter, start, gradient in zip(
        (layer.mean, layer.rho), (expected.mean, expected.rho), gradients, strict=True
    ):
        torch.testing.assert_close(parameter, start - 2e-3 * gradient / (gradient.abs() + 1e-8), rtol=1e-4, atol=1e-6)


def test_the_kl_term_draws_the_weights_to_the_prior():
    settings = Settings(epochs=20, batch_size=16, learning_rate=0.1, prior_sigma=0.3)
    free, drawn = (fit(made(), X, Y, settings.model_copy(update={"kl_weight": w}), 0).model.network for w in (0, 100))
    assert drawn.kl(0.3) < 0.5 * free.kl(0.3)


def test_rho_decays_only_where_asked():
    settings = Settings(epochs=20, learning_rate=0.01, weight_decay=10.0)
    kept, decayed = (
        fit(made(), X, Y, settings.model_copy(update={"decay_rho": decay}), 0).model.network for decay in (False, True)
    )
    assert kept.enter.rho.mean().item() == pytest.approx(-5, abs=0.05)
    assert decayed.enter.rho.mean().item() > -4.95
    assert kept.enter.mean.abs().mean() < 0.8 * made().enter.mean.abs().mean()


def test_the_learning_rate_falls_to_nothing_along_a_cosine(monkeypatch):
    rates = []
    epoch = training._epoch

    def spy(*arguments):
        rates.append([group["lr"] for group in arguments[4].param_groups])
        return epoch(*arguments)

    monkeypatch.setattr(training, "_epoch", spy)
    fit(made(), X, Y, Settings(epochs=8, learning_rate=0.1), 0)
    assert np.allclose(rates, [[0.05 * (1 + math.cos(math.pi * k / 8))] * 2 for k in range(8)])


@pytest.mark.parametrize(
    ("n", "size", "expected"),
    [(60, 16, [15] * 4), (61, 16, [16, 15, 15, 15]), (3, 2, [3]), (5, 2, [3, 2]), (2, 9, [2])],
)
def test_an_epoch_has_every_row_once_and_no_batch_of_one(n, size, expected):
    seen = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, x):
            if self.training:
                seen.append(x[:, 0].tolist())
            return x[:, 0] * self.weight

    x = np.arange(n, dtype=np.float32)[:, None]
    fit(Spy(), x, np.arange(n, dtype=np.float64), Settings(epochs=2, batch_size=size), 0)
    half = len(seen) // 2
    assert [len(batch) for batch in seen[:half]] == expected
    for epoch in (seen[:half], seen[half:]):
        assert sorted(chain.from_iterable(epoch)) == list(range(n))
    assert n < 5 or seen[:half] != seen[half:]


def test_stopping_keeps_the_best_epochs_weights(monkeypatch):
    """Kendall's tau is made to rise until epoch 2, to tie, and to fall."""
    taus = iter([0.1, 0.2, 0.5, 0.5, 0.3, 0.9])
    weights = []

    def scripted(network, *_):
        weights.append(copy.deepcopy(network.state_dict()))
        return next(taus)

    monkeypatch.setattr(training, "_tau", scripted)
    fitted = fit(made(), X, Y, Settings(epochs=6, patience=2), 0, problem(20, seed=3))
    assert fitted.taus == (0.1, 0.2, 0.5, 0.5, 0.3)
    assert (fitted.best, len(fitted.losses)) == (2, 5)
    state = fitted.model.network.state_dict()
    assert all(torch.equal(state[name], weights[2][name]) for name in state)
    assert not torch.equal(state["enter.mean"], weights[3]["enter.mean"])


def test_epochs_without_an_order_are_the_worst(monkeypatch):
    taus = iter([math.nan, -0.5, math.nan, math.nan])
    monkeypatch.setattr(training, "_tau", lambda *_: next(taus))
    fitted = fit(made(), X, Y, Settings(epochs=4, patience=3), 0, problem(20, seed=3))
    assert fitted.best == 1


def test_the_tau_that_stops_is_scipys_with_the_mean_weights():
    validation = problem(20, seed=3)
    fitted = fit(made(), X, Y, Settings(epochs=5, patience=5), 0, validation)
    with mean_weights(fitted.model), torch.no_grad():
        values = fitted.model(torch.tensor(validation[0]))
    assert fitted.taus[fitted.best] == max(fitted.taus)
    assert fitted.taus[fitted.best] == pytest.approx(stats.kendalltau(values, validation[1]).statistic)


def test_rows_held_out_are_not_learnt_from():
    """Another target for them, in the same order, changes no weight."""
    x, y = problem(20, seed=3)
    settings = Settings(epochs=3, patience=3)
    first = fit(made(), X, Y, settings, 0, (x, y))
    second = fit(made(), X, Y, settings, 0, (x, np.exp(y - 90)))
    assert same(first.model, second.model)


@given(st.integers(4, 200), st.floats(0.01, 0.99), st.integers(0, 9))
def test_a_split_has_every_row_once(n, share, seed):
    inside, outside = hold_out(n, share, seed)
    assert sorted([*inside, *outside]) == list(range(n))
    assert min(len(inside), len(outside)) >= 2
    assert len(outside) <= max(2, math.ceil(share * n))
    assert inside.tolist() == sorted(inside)


@given(st.lists(st.integers(0, 20), min_size=30, max_size=60), st.floats(0.05, 0.5), st.integers(0, 9))
def test_a_split_keeps_rows_of_one_key_together(keys, share, seed):
    keys = np.array(keys)
    if np.bincount(keys).max() > len(keys) / 3:
        return
    inside, outside = hold_out(len(keys), share, seed, keys)
    assert sorted([*inside, *outside]) == list(range(len(keys)))
    assert not set(keys[inside]) & set(keys[outside])
    assert len(outside) >= min(max(round(share * len(keys)), 2), len(keys) - 2)


def test_keys_that_differ_change_no_split():
    for found, expected in zip(hold_out(50, 0.2, 1, np.arange(50)[::-1]), hold_out(50, 0.2, 1), strict=True):
        assert found.tolist() == expected.tolist()
    with pytest.raises(DataError, match="fewer than 2 are left to learn from"):
        hold_out(50, 0.2, 1, np.zeros(50, np.int64))


def test_few_targets_that_differ_are_held_out_so_that_there_is_something_to_learn():
    y = np.full(12, 90.0)
    y[5] = 91.0
    settings = SHORT.model_copy(update={"patience": 2, "members": 8})
    fitted = fit_ensemble(make, X[:12], y, settings, 0)
    assert len(fitted) == 8
    assert all(math.isnan(tau) for one in fitted for tau in one.taus)


def test_splits_by_seed():
    assert len(hold_out(50, 0.2, 1)[1]) == 10
    assert hold_out(50, 0.2, 1)[1].tolist() == hold_out(50, 0.2, 1)[1].tolist() != hold_out(50, 0.2, 2)[1].tolist()
    with pytest.raises(DataError, match="3 rows are too few to hold some out"):
        hold_out(3, 0.5, 0)


def test_rows_that_cannot_be_written_to_are_read():
    x, y = X.copy(), Y.copy()
    x.flags.writeable = y.flags.writeable = False
    predict(fit(made(), x, y, SHORT, 0).model, x, 1, 0)


def test_a_divergence_says_when_and_what_helps():
    settings = Settings(epochs=5, loss="mse", learning_rate=1e30)
    with pytest.raises(DataError, match=r"diverged: the losses of epoch 1 .*lower learning_rate, now 1e\+30"):
        fit(made(), X, Y, settings, 0)


def test_a_divergence_in_the_last_step_is_seen():
    settings = Settings(epochs=1, batch_size=100, loss="mse", learning_rate=1e30)
    with pytest.raises(DataError, match="diverged: the predictions of epoch 0"):
        fit(made(), X, Y, settings, 0)


@pytest.mark.parametrize(
    ("x", "y", "error", "complaint"),
    [
        (X.astype(np.float64), Y, UsageError, r"training vectors: got float64 of shape \(60, 24\), expected float32"),
        (X[0], Y, UsageError, r"training vectors: got float32 of shape \(24,\)"),
        (X, Y[:-1], UsageError, r"training target: got shape \(59,\), expected \(60,\)"),
        (holed(X, np.nan), Y, DataError, "training vectors: row 3 holds a value that is not finite"),
        (X, holed(Y, np.nan), DataError, "training target: 1 of 60 values are not finite"),
        (X, np.full(60, 90.0), DataError, "training target: all of its 60 values are equal"),
        (X[:1], Y[:1], DataError, "all of its 1 values are equal"),
        (X[:0], Y[:0], DataError, "all of its 0 values are equal"),
    ],
)
def test_rows_that_cannot_be_learnt_from(x, y, error, complaint):
    with pytest.raises(error, match=complaint):
        fit(made(), x, y, SHORT, 0)


def test_rows_to_decide_by_are_checked_too():
    settings = Settings(epochs=1, patience=1)
    with pytest.raises(DataError, match="validation target: 1 of 5 values are not finite"):
        fit(made(), X, Y, settings, 0, (X[:5], holed(Y[:5], np.nan)))
    with pytest.raises(UsageError, match="only there"):
        fit(made(), X, Y, settings, 0)
    with pytest.raises(UsageError, match="only there"):
        fit(made(), X, Y, SHORT, 0, (X, Y))


def test_fewer_than_ten_labels():
    with pytest.raises(DataError, match="9 labelled architectures are too few to learn from; give at least 10"):
        fit_ensemble(make, X[:9], Y[:9], SHORT, 0)
    assert len(fit_ensemble(make, X[:10], Y[:10], SHORT.model_copy(update={"patience": 1}), 0)) == 1


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"loss": "msq"}, "unknown loss 'msq'; did you mean mse"),
        ({"epochs": 0}, "invalid settings: epochs: input should be greater than or equal to 1, got 0"),
        ({"batch_size": 1}, "batch_size"),
        ({"mc_samples": 10**9}, "mc_samples: input should be less than or equal to 10000"),
        ({"epochs": 10**9}, "epochs: input should be less than"),
        ({"members": 10**9}, "members: input should be less than"),
        ({"alpha": math.inf}, "alpha"),
        ({"kl_weight": -1}, "kl_weight"),
        ({"held_out": 1.0}, "held_out"),
        ({"epoch": 3}, "invalid settings: unknown name 'epoch'; did you mean epochs"),
    ],
)
def test_settings_that_mean_nothing(settings, complaint):
    with pytest.raises(UsageError, match=complaint):
        Settings(**settings)


def test_settings_go_through_json():
    settings = Settings(loss="mse", patience=3, kl_weight=0.5)
    assert Settings.model_validate_json(settings.model_dump_json()) == settings
