"""GradSign against per-sample gradients from torch.func, and each sample alone."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from convnets import Convnet, convnets, draw, functional, layers, score
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import grad, vmap

import zcpipe
from zcpipe.errors import UnsupportedError


def by_definition(model, x, y):
    call, parameters = functional(model, training=True)
    of_one = grad(lambda p, image, label: F.cross_entropy(call(p, image[None]), label[None]))
    found = vmap(of_one, in_dims=(None, 0, 0))(parameters, x, y)
    return np.array([np.abs(np.sign(found[name].numpy()).sum(0)).sum() for name in layers(model)])


@settings(max_examples=25)
@given(convnets, st.integers(1, 6), st.integers(0, 2**31))
def test_is_its_definition(model, samples, seed):
    x, y = draw(model, seed, samples)
    value, per_layer = score(model, x, y, "gradsign")
    expected = by_definition(model, x, y)
    # Where a gradient is zero but for rounding its sign is anybody's.
    assert per_layer == pytest.approx(expected, abs=2 * samples)
    assert value == per_layer.sum()


def test_usually_every_sign_is_right():
    model = Convnet(3, True, True)
    x, y = draw(model, 1, 9)
    assert score(model, x, y, "gradsign")[1].tolist() == by_definition(model, x, y).tolist()


def test_float32_is_near_float64():
    model = Convnet(3, True, True)
    x, y = draw(model, 1, 8)
    exact = score(model, x, y, "gradsign")[0]
    assert score(model.float(), x.float(), y, "gradsign")[0] == pytest.approx(exact, rel=0.02)


def test_samples_do_not_touch_each_other():
    """Of two batches the sums of signs add up: parity and bounds hold, and a batch of copies agrees throughout."""
    model = Convnet(3, False, True)
    x, y = draw(model, 2, 3)
    one = score(model, x[:1], y[:1], "gradsign")[0]
    copies = score(model, x[:1].expand(7, -1, -1, -1), y[:1].expand(7), "gradsign")[0]
    assert copies == 7 * one
    assert score(model, x, y, "gradsign")[0] <= sum(
        score(model, x[i : i + 1], y[i : i + 1], "gradsign")[0] for i in range(3)
    )


def test_a_layer_that_the_loss_does_not_see_counts_nothing():
    model = Convnet(2, True, True)
    x, y = draw(model, 3)
    value = score(model, x, y, "gradsign")[0]
    model.unused = nn.Conv2d(3, 3, 3)
    more, per_layer = score(model, x, y, "gradsign")
    assert more == value and per_layer[-1] == 0


def test_failures_say_why():
    model = Convnet(2, True, True)
    x, y = draw(model, 4)
    with torch.no_grad():
        model.head.weight[0, 0] = float("nan")
    broken = zcpipe.score(model, x, y, ["gradsign"])
    assert broken["gradsign"] is None and broken.failures[0].kind == "nonfinite"
    with pytest.raises(UnsupportedError, match="no convolution or linear layer"):
        zcpipe.score(nn.Sequential(nn.Flatten(), nn.LayerNorm(243)), x.float(), y, ["gradsign"])
