"""Fused chains and cells for values and tangents compute what the layers compute one by one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.scoring.test_cells import CHANNELS, EDGES, LAYERS, cell_of
from zcpipe.ops import available
from zcpipe.proxies import grasp
from zcpipe.scoring import tangents
from zcpipe.scoring.guard import untouched
from zcpipe.scoring.network import ScoredNetwork
from zcpipe.spaces.layers import Op

KINDS = sorted(LAYERS)


@pytest.fixture(autouse=True)
def _native():
    if not available():
        pytest.skip("the native library is not built")


@pytest.fixture
def steps(monkeypatch):
    """Count the chains and cells that run fused."""
    counted = []
    apply = tangents._Steps.apply
    monkeypatch.setattr(tangents._Steps, "apply", lambda *a: counted.append(len(a[3])) or apply(*a))
    return counted


def network_around(*middle):
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Conv2d(3, CHANNELS, 3, padding=1, bias=False), nn.BatchNorm2d(CHANNELS))
    tail = [nn.BatchNorm2d(CHANNELS), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, 3)]
    model = nn.Sequential(stem, *middle, *tail).train()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 2)
                module.bias.normal_()
                module.eps = 1e-2
    return model


def images(dtype):
    x = torch.randn(6, 3, 7, 8, generator=torch.Generator().manual_seed(1)).to(dtype)
    return x.contiguous(memory_format=torch.channels_last)


def curvatures(model, dtype=torch.float32, x=None):
    network = ScoredNetwork(model.to(dtype), [images(dtype) if x is None else x], torch.arange(6) % 3, None, None)
    with untouched(network.modules):
        return grasp.curvatures(network)


def assert_exact(model):
    """Against double precision, where nothing is fused."""
    found, expected = curvatures(model), curvatures(model, torch.float64)
    size = max(map(abs, expected))
    assert size > 0
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-4 * size)


@settings(max_examples=40, deadline=None)
@given(EDGES, st.lists(st.sampled_from(KINDS), min_size=7, max_size=7), st.integers(1, 4))
def test_cells_are_what_their_layers_are(edges, names, output):
    cell = cell_of(edges, names, output)
    torch.manual_seed(0)
    model = network_around(cell)
    if any(target == cell.output for _, target in cell.edges):  # else nothing depends on the stem
        assert_exact(model)


def test_chains_and_cells_are_fused(steps):
    cell = cell_of([(0, 1), (1, 2), (0, 2), (1, 3), (2, 3)], ["conv1", "pool", "skip", "conv1", "conv1"], 3)
    curvatures(network_around(cell, LAYERS["conv1"]()))
    assert steps == [1, 5, 1]


def test_strided_chains_and_those_that_end_in_a_relu(steps):
    down = Op(nn.ReLU(), nn.Conv2d(CHANNELS, CHANNELS, 3, 2, 1, bias=False), nn.BatchNorm2d(CHANNELS))
    assert_exact(network_around(down, LAYERS["conv3"]()))
    assert 2 in steps


def test_a_first_chain_may_end_in_a_relu():
    torch.manual_seed(0)
    parts = nn.Conv2d(3, CHANNELS, 3, bias=False), nn.BatchNorm2d(CHANNELS), nn.ReLU()
    assert_exact(nn.Sequential(nn.Sequential(*parts), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, 3)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_images_take_the_layers_themselves(steps, dtype):
    x = images(dtype).contiguous()
    model = network_around(LAYERS["conv1"]())
    found = curvatures(model, dtype, x)
    assert steps == []
    assert found == pytest.approx(curvatures(model, torch.float64), rel=1e-3, abs=1e-6)


def test_a_weight_of_two_chains_counts_in_both():
    first, second = LAYERS["conv1"](), LAYERS["conv1"]()
    second.op[1].weight = first.op[1].weight
    assert_exact(network_around(first, second))


def test_hooks_are_called(steps):
    chain = LAYERS["conv1"]()
    model = network_around(chain)
    calls = []
    chain.op[1].register_forward_hook(lambda *_: calls.append(1))
    network = ScoredNetwork(model, [images(torch.float32)], torch.arange(6) % 3, None, None)
    with untouched(network.modules):
        _ = network.gradients
        calls.clear()
        grasp.curvatures(network)
    assert steps == [1]  # the stem
    assert calls
