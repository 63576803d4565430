import copy
import math

import numpy as np
import pytest
import torch
from parzc_problems import SHORT, D, X, Y, holed, linear, made
from torch import nn

from zcpipe.errors import DataError, UsageError
from zcpipe.parzc import training
from zcpipe.parzc.mabn import MABN
from zcpipe.parzc.training import Scaled, fit, predict


def test_members_of_equal_weights_are_drawn_apart():
    network = linear()
    assert predict([network, network], X, 1, 0)[1].min() > 0


def test_monte_carlo_tends_to_the_known_distribution():
    network = linear()
    mean, std = predict(network, X, 4000, 0)
    weight, sigma = network[0].mean.detach().numpy()[0], network[0].sigma().detach().numpy()[0]
    np.testing.assert_allclose(std, np.sqrt((X**2) @ sigma**2), rtol=0.06)
    assert np.abs((mean - X @ weight) / std).max() < 4 / math.sqrt(4000)


def test_a_draw_is_one_for_all_rows(monkeypatch):
    """Also where they go through the network in several pieces: equal rows get equal predictions."""
    monkeypatch.setattr(training, "_CHUNK", 7)
    mean, std = predict(linear(), np.repeat(X[:1], 30, axis=0), 3, 0)
    np.testing.assert_allclose(mean, mean[0], rtol=1e-5)
    np.testing.assert_allclose(std, std[0], rtol=1e-5)
    assert std[0] > 0


def test_pieces_change_nothing_but_rounding(monkeypatch):
    whole = predict(made(), X, 3, 0)
    monkeypatch.setattr(training, "_CHUNK", 7)
    np.testing.assert_allclose(predict(made(), X, 3, 0), whole, rtol=1e-3, atol=1e-6)


def test_an_ensembles_variance_is_total(monkeypatch):
    """The mean of the members' variances and the variance of their means."""
    members = [linear(seed) for seed in range(3)]
    draws = []
    values = training._values

    def noted(network, x):
        draws.append(values(network, x))
        return draws[-1]

    monkeypatch.setattr(training, "_values", noted)
    mean, std = predict(members, X, 5, 0)
    drawn = np.array(draws).reshape(3, 5, len(X))
    np.testing.assert_allclose(mean, drawn.mean(axis=(0, 1)))
    np.testing.assert_allclose(std**2, drawn.var(axis=1).mean(axis=0) + drawn.mean(axis=1).var(axis=0))
    assert len({row.tobytes() for row in drawn.reshape(15, -1)}) == 15


def test_one_sample_of_one_network_has_no_spread():
    mean, std = predict(linear(), X, 1, 0)
    assert (mean.dtype, std.dtype) == (np.float64, np.float64)
    assert not std.any()


def test_more_samples_begin_with_the_fewer():
    network = linear()
    first, two = predict(network, X, 1, 0)[0], predict(network, X, 2, 0)
    np.testing.assert_allclose(np.abs(first - two[0]), two[1], rtol=1e-5, atol=1e-9)


def test_predicting_uses_no_dropout_and_changes_nothing():
    network = MABN(D, dim=16, dropout=0.9).train()
    for layer in (network.enter, network.head):
        nn.init.constant_(layer.rho, -50.0)
    before = copy.deepcopy(network.state_dict())
    _, std = predict(network, X, 5, 0)
    assert std.max() < 1e-6
    assert network.training
    assert all(module.training for module in network.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_no_rows_no_predictions():
    mean, std = predict(made(), X[:0], 2, 0)
    assert (mean.shape, std.shape) == ((0,), (0,))


def test_a_model_keeps_its_scale_with_its_weights():
    fitted = fit(made(), X, Y, SHORT, 0)
    restored = Scaled(made(1))
    restored.load_state_dict(fitted.model.state_dict())
    assert np.array_equal(predict(restored, X, 2, 0), predict(fitted.model, X, 2, 0))


def test_predictions_of_what_cannot_be_predicted():
    with pytest.raises(DataError, match="row 3 holds a value that is not finite"):
        predict(made(), holed(X, np.inf), 1, 0)
    with pytest.raises(UsageError, match="got float64"):
        predict(made(), X.astype(np.float64), 1, 0)
    with pytest.raises(UsageError, match="got 0 and 1"):
        predict([], X, 1, 0)
    with pytest.raises(UsageError, match="got 1 and 0"):
        predict(made(), X, 0, 0)
