"""The tangent kernel's condition against numpy's, over Jacobians from torch.func."""

import math

import numpy as np
import pytest
import torch
from convnets import Convnet, Unfollowed, convnets, draw, functional, score
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import jacrev

import zcpipe
from zcpipe.errors import UnsupportedError


def kernel(model, x):
    call, parameters = functional(model, training=True)
    weights = {name: p for name, p in parameters.items() if "weight" in name}
    rest = {name: p for name, p in parameters.items() if name not in weights}
    found = jacrev(lambda w: call(w | rest, x).sum(1))(weights)
    g = torch.cat([found[name].flatten(1) for name in weights], 1).numpy()
    return g @ g.T


@settings(max_examples=25)
@given(convnets, st.integers(2, 6), st.integers(0, 2**31))
def test_is_its_definition(model, samples, seed):
    x, _ = draw(model, seed, samples)
    expected = np.linalg.cond(kernel(model, x))
    assert 1 / score(model, x, None, "ntk_condition")[0] == pytest.approx(1 / expected, rel=1e-6, abs=1e-12)


def test_float32_is_near_float64():
    model = Convnet(3, True, True)
    x, _ = draw(model, 1, 6)
    exact = score(model, x, None, "ntk_condition")[0]
    assert score(model.float(), x.float(), None, "ntk_condition")[0] == pytest.approx(exact, rel=1e-3)


def test_samples_meet_in_batch_norm():
    """In train mode a sample's outputs depend on the others, so the kernel is not that of samples alone."""
    model = Convnet(3, True, True)
    x, _ = draw(model, 2, 4)
    together = kernel(model, x)
    alone = kernel(model, x[:2])
    assert not np.allclose(together[:2, :2], alone)


def test_one_sample_has_condition_one():
    model = Convnet(3, True, True)
    x, _ = draw(model, 3, 1)
    assert score(model, x, None, "ntk_condition")[0] == 1


def test_a_singular_kernel_is_infinite_whatever_rounding_says():
    model = nn.Sequential(nn.Flatten(), nn.Linear(243, 4))
    x = torch.randn(3, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    assert score(model, torch.cat([x, x[:1]]), None, "ntk_condition")[0] == math.inf
    assert score(model, torch.zeros_like(x), None, "ntk_condition")[0] == math.inf
    assert score(model, x, None, "ntk_condition")[0] < 10
    assert zcpipe.proxies.get_proxy("ntk_condition").direction == "lower"


def test_failures_say_why():
    model = Convnet(2, True, True)
    x, _ = draw(model, 4)
    with torch.no_grad():
        model.stem.weight[0, 0, 0, 0] = float("nan")
    broken = zcpipe.score(model, x, None, ["ntk_condition"])
    assert broken["ntk_condition"] is None and broken.failures[0].kind == "nonfinite"
    weightless = nn.Sequential(nn.Flatten(), nn.Unflatten(1, (1, 243)))
    weightless.scale = nn.Parameter(torch.ones(1))
    with pytest.raises(UnsupportedError, match="weight in its name"):
        zcpipe.score(weightless, x.float(), None, ["ntk_condition"])


def test_an_output_that_depends_on_nothing_is_unsupported():
    with pytest.raises(UnsupportedError, match="the output does not depend on the weights"):
        zcpipe.score(Unfollowed(), torch.randn(8, 6), None, ["ntk_condition"])


@pytest.mark.parametrize("shape", [(4, -1), (16, -1)])
def test_an_output_of_another_number_of_rows_is_unsupported(shape):
    """Rows that nothing fills would hold what the memory held."""
    model = nn.Sequential(nn.Linear(6, 8), nn.Flatten(0), nn.Unflatten(0, shape))
    with pytest.raises(UnsupportedError, match=rf"outputs must be \[8, ...\], a row a sample, got \({shape[0]}, "):
        zcpipe.score(model, torch.randn(8, 6), None, ["ntk_condition"])
