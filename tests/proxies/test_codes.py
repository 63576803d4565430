"""Activation codes against their definitions, written out in numpy."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import zcpipe
from zcpipe.errors import UnsupportedError
from zcpipe.proxies.codes import (
    add_agreements,
    count_neuron_codes,
    count_regions,
    log_determinant,
    mark_neuron_codes,
    neuron_codes,
    refine_regions,
)
from zcpipe.spaces import get_space

shapes = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=5)


def maps_of(samples, shapes, seed, channels_last=False, levels=3):
    """Maps of few distinct values, so that codes repeat and zeros, which are not above zero, occur."""
    random = np.random.default_rng(seed)
    maps = [torch.from_numpy(random.integers(-1, levels - 1, (samples, *shape)).astype(np.float32)) for shape in shapes]
    return [x.contiguous(memory_format=torch.channels_last) for x in maps] if channels_last else maps


def rows_of(maps):
    return np.concatenate([x.flatten(1).numpy() > 0 for x in maps], 1)


def run(add, finish, maps):
    total = None
    for x in maps:
        total = add(x, total)
    return finish(total)


@settings(max_examples=40)
@given(st.integers(1, 9), shapes, st.integers(0, 2**31), st.booleans())
def test_nwot_is_the_log_determinant_of_agreements(samples, shapes, seed, channels_last):
    maps = maps_of(samples, shapes, seed, channels_last)
    rows = rows_of(maps)
    kernel = np.array([[(a == b).sum() for b in rows] for a in rows])
    total = None
    for x in maps:
        total = add_agreements(x, total)
    np.testing.assert_array_equal(total.numpy(), kernel)
    assert log_determinant(total) == np.linalg.slogdet(kernel.astype(np.float64))[1]


def test_nwot_of_equal_samples_is_minus_infinity():
    x = maps_of(1, [(3, 4, 4)], 0)[0].repeat(2, 1, 1, 1)
    assert log_determinant(add_agreements(x, None)) == -math.inf


def test_nwot_reads_vectors_and_tokens():
    x = torch.tensor([[1.0, -1.0, 0.0], [1.0, 1.0, -1.0]])
    expected = [[3, 2], [2, 3]]
    assert add_agreements(x, None).tolist() == expected
    assert add_agreements(x[:, None], None).tolist() == expected


@settings(max_examples=40)
@given(st.integers(1, 9), shapes, st.integers(0, 2**31), st.booleans())
def test_linear_regions_counts_distinct_samples(samples, shapes, seed, channels_last):
    maps = maps_of(samples, shapes, seed, channels_last)
    assert run(refine_regions, count_regions, maps) == len({row.tobytes() for row in rows_of(maps)})


def test_linear_regions_of_many_equal_samples_is_whole():
    x = maps_of(1, [(2, 3, 3)], 0)[0]
    assert run(refine_regions, count_regions, [x.repeat(49, 1, 1, 1)]) == 1.0  # 49 / 49 summed up is below 1


@settings(max_examples=40)
@given(st.integers(1, 20), shapes, st.integers(0, 2**31), st.booleans(), st.sampled_from([2, 3, 30]))
def test_swap_counts_distinct_neurons_over_the_first_16_samples(samples, shapes, seed, channels_last, levels):
    maps = maps_of(samples, shapes, seed, channels_last, levels)
    expected = len({column.tobytes() for column in np.ascontiguousarray(rows_of(maps)[:16].T)})
    assert run(mark_neuron_codes, count_neuron_codes, maps) == expected


@settings(max_examples=20)
@given(st.integers(1, 16), st.integers(1, 200), st.integers(0, 2**31))
def test_neuron_codes_hold_the_samples_as_bits(samples, neurons, seed):
    x = torch.from_numpy(np.random.default_rng(seed).standard_normal((samples, neurons)))
    expected = ((x > 0).long() << torch.arange(samples)[:, None]).sum(0)
    assert sorted(neuron_codes(x).tolist()) == sorted(expected.tolist())


def test_swap_counts_maps_only():
    x = maps_of(4, [(2, 3, 3)], 0)[0]
    alone = run(mark_neuron_codes, count_neuron_codes, [x])
    assert run(mark_neuron_codes, count_neuron_codes, [x.flatten(1), x, x.flatten(2)]) == alone
    with pytest.raises(UnsupportedError, match="feature maps"):
        run(mark_neuron_codes, count_neuron_codes, [x.flatten(1)])


def test_a_dead_map_has_one_code():
    dead = torch.zeros(5, 3, 4, 4)
    assert run(mark_neuron_codes, count_neuron_codes, [dead]) == 1
    assert run(refine_regions, count_regions, [dead]) == 1
    assert run(add_agreements, log_determinant, [dead]) == -math.inf


def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 1), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 36, 7), nn.ReLU())


def test_scores_of_a_network_are_those_of_its_relus():
    model, x = network(), torch.randn(9, 3, 8, 8)
    plain, seen = network(), []
    for module in plain:
        if isinstance(module, nn.ReLU):
            module.inplace = False
            module.register_forward_pre_hook(lambda m, arguments: seen.append(arguments[0].detach()))
    plain(x)
    rows = rows_of(seen)
    kernel = rows.astype(float) @ rows.T + (~rows).astype(float) @ (~rows).T
    scores = zcpipe.score(model, x, proxies=["nwot", "swap", "linear_regions"])
    assert scores["nwot"] == pytest.approx(np.linalg.slogdet(kernel)[1], rel=1e-12)
    assert scores["linear_regions"] == 9
    columns = np.ascontiguousarray(rows_of(seen[:2]).T)
    assert scores["swap"] == len({column.tobytes() for column in columns})


@pytest.mark.parametrize("proxy", ["nwot", "swap", "linear_regions"])
def test_functional_relus_are_not_seen(proxy):
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv(x).relu().mean((2, 3))

    with pytest.raises(UnsupportedError, match="no ReLU"):
        zcpipe.score(Functional(), torch.randn(4, 3, 8, 8), proxies=proxy)


@pytest.mark.parametrize("batch", [1, 2])
def test_small_batches(batch):
    scores = zcpipe.score(network(), torch.randn(batch, 3, 8, 8), proxies=["nwot", "swap", "linear_regions"])
    assert scores["linear_regions"] == batch
    assert scores["swap"] <= 2**batch
    neurons = 9 * 36 + 7
    assert batch > 1 or scores["nwot"] == pytest.approx(math.log(neurons))


def test_nwot_matches_naslib_on_12_networks(data):
    values = json.loads(data("reference/values.json").read_text())["values"]
    x = torch.from_numpy(np.load(data("reference/batch16.npz"))["x"])
    space = get_space("nasbench201")
    for name, expected in values.items():
        arch = space.parse(expected["arch_str"])
        model = space.build(arch, "cifar10", cells_per_stage=1, full=True).model
        weights = np.load(data(f"reference/{name}.npz"))
        loaded = model.load_state_dict({key: torch.from_numpy(weights[key]) for key in weights}, strict=False)
        assert not loaded.unexpected_keys
        found = zcpipe.score(model, x, proxies="nwot")["nwot"]
        # A few activations so near zero that rounding decides their sign move the score by some 1e-5.
        assert found == pytest.approx(expected["naslib_f32"]["nwot"], abs=1e-3)
