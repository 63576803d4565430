"""ZiCo against its definition in numpy, over gradients from torch.func."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from convnets import Convnet, convnets, draw, functional, layers, score
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import grad

import zcpipe
from zcpipe.errors import UnsupportedError


def gradients(model, x, y):
    call, parameters = functional(model, training=True)
    found = grad(lambda p: F.cross_entropy(call(p, x), y))(parameters)
    return [found[name].numpy().reshape(-1) for name in layers(model)]


def by_definition(model, x, y):
    half = len(x) // 2
    values = []
    for pair in zip(gradients(model, x[:half], y[:half]), gradients(model, x[half:], y[half:]), strict=True):
        g = np.stack(pair)
        kept = g.std(0) > 0  # the population's
        total = (np.abs(g).mean(0)[kept] / g.std(0)[kept]).sum()
        values.append(np.log(total) if total > 0 else 0.0)
    return np.array(values)


@settings(max_examples=25)
@given(convnets, st.integers(2, 7), st.integers(0, 2**31))
def test_is_its_definition(model, samples, seed):
    x, y = draw(model, seed, samples)
    value, per_layer = score(model, x, y, "zico")
    expected = by_definition(model, x, y)
    assert per_layer == pytest.approx(expected, rel=1e-5, abs=1e-5)  # ratios of nearly equal gradients are rough
    assert value == pytest.approx(per_layer.sum())


def test_float32_is_near_float64():
    model = Convnet(3, True, True)
    x, y = draw(model, 1, 8)
    exact = score(model, x, y, "zico")[0]
    assert score(model.float(), x.float(), y, "zico")[0] == pytest.approx(exact, rel=1e-2)


def test_each_half_has_batch_statistics_of_its_own():
    model = Convnet(2, False, True)
    x, y = draw(model, 2, 6)
    swapped = torch.cat([x[3:], x[:3]]), torch.cat([y[3:], y[:3]])
    mixed = x[[0, 3, 1, 4, 2, 5]], y[[0, 3, 1, 4, 2, 5]]
    value = score(model, x, y, "zico")[0]
    assert score(model, *swapped, "zico")[0] == pytest.approx(value)
    assert score(model, *mixed, "zico")[0] != pytest.approx(value)


def test_weights_of_equal_gradients_are_left_out():
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 3))
    x = torch.tensor([[1.0, 0.0], [1.0, 2.0]])  # the second input of the first half is 0: gradients 0 and not
    y = torch.tensor([0, 0])
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.zero_()
    # The first column's gradients agree and drop out; of the second column's, mean / std = 1 for each of 3 weights.
    assert score(model, x, y, "zico")[0] == pytest.approx(np.log(3))


def test_a_layer_that_the_loss_does_not_see_counts_nothing():
    model = Convnet(2, True, True)
    x, y = draw(model, 3)
    value = score(model, x, y, "zico")[0]
    model.unused = nn.Conv2d(3, 3, 3)
    more, per_layer = score(model, x, y, "zico")
    assert more == pytest.approx(value, rel=1e-12) and per_layer[-1] == 0


def test_failures_say_why():
    model = Convnet(2, True, True)
    x, y = draw(model, 4)
    with pytest.raises(UnsupportedError, match="two samples or more, one for each half of the batch, got 1"):
        zcpipe.score(model, x[:1], y[:1], ["zico"])
    with torch.no_grad():
        model.head.weight[0, 0] = float("nan")
    broken = zcpipe.score(model, x, y, ["zico"])
    assert broken["zico"] is None and broken.failures[0].kind == "nonfinite"
    with pytest.raises(UnsupportedError, match="no convolution or linear layer"):
        zcpipe.score(nn.Sequential(nn.Flatten(), nn.LayerNorm(243)), x.float(), y, ["zico"])
