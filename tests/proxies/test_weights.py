"""Proxies of the weights alone, and expressivity of stages."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

import zcpipe
from zcpipe.proxies import get_proxy
from zcpipe.proxies.stages import positions
from zcpipe.spaces import get_space


def test_l2_norm_and_num_layers_of_a_small_network():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))
    scores = zcpipe.score(model, torch.randn(2, 3, 8, 8), proxies=["l2_norm", "num_layers"])
    norms = [float(np.linalg.norm(layer.weight.detach().double().numpy())) for layer in (model[0], model[4])]
    assert scores["num_layers"] == 2
    assert scores["l2_norm"] == pytest.approx(sum(norms), rel=1e-6)
    np.testing.assert_allclose(scores.statistics["l2_norm@layer"], norms, rtol=1e-6)


def test_no_layers_have_no_norm():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU())
    scores = zcpipe.score(model, torch.randn(2, 3, 8, 8), proxies=["l2_norm", "num_layers"])
    assert dict(scores) == {"l2_norm": 0.0, "num_layers": 0.0}


def test_l2_norm_matches_naslib_on_12_networks(data):
    """Dead layers included."""
    values = json.loads(data("reference/values.json").read_text())["values"]
    space = get_space("nasbench201")
    for name, expected in values.items():
        arch = space.parse(expected["arch_str"])
        model = space.build(arch, "cifar10", cells_per_stage=1, full=True).model
        weights = np.load(data(f"reference/{name}.npz"))
        model.load_state_dict({key: torch.from_numpy(weights[key]) for key in weights}, strict=False)
        found = zcpipe.score(model, torch.zeros(1, 3, 32, 32), proxies="l2_norm")["l2_norm"]
        assert found == pytest.approx(expected["naslib_f64"]["l2_norm"], rel=1e-6)


def stages(entropy, resolution):
    statistics = {"expressivity": np.array(entropy), "resolution": np.array(resolution, dtype=float)}
    return get_proxy("stage_expressivity").reduce(statistics)


def test_the_last_map_of_each_run_of_one_resolution_counts():
    assert stages([0.1, 2.0, 1.5, 3.0, 0.2, 1.8], [64, 64, 16, 16, 16, 4]) == 0.2
    assert stages([0.1, 2.0, 0.3, 1.9], [64, 64, 16, 64]) == 0.3
    assert stages([0.1, 2.0], [64, 64]) == 2.0
    assert stages([1.0], [64]) == 1.0


def test_a_dead_last_map_is_worst_and_another_is_not():
    assert stages([1.0, -math.inf, 2.0], [64, 64, 16]) == -math.inf
    assert stages([-math.inf, 1.0, 2.0], [64, 64, 16]) == 1.0
    assert math.isnan(stages([1.0, math.nan, 2.0], [64, 64, 16]))


def test_positions_are_those_of_a_sample_or_all_rows():
    assert int(positions(torch.zeros(5, 3, 4, 6))) == 24
    assert int(positions(torch.zeros(35, 3))) == 35


def test_stages_of_a_network_share_the_pass_of_expressivity():
    space = get_space("nasbench201")
    arch = space.parse("|nor_conv_3x3~0|+|avg_pool_3x3~0|nor_conv_1x1~1|+|skip_connect~0|none~1|nor_conv_3x3~2|")
    model = zcpipe.initialise(space.build(arch, "cifar10", cells_per_stage=2).model)
    scores = zcpipe.score(model, torch.randn(8, 3, 16, 16), proxies=["expressivity", "stage_expressivity"])
    assert scores.statistics["resolution@block"].tolist() == [256] * 3 + [64] * 3 + [16] * 3
    entropy = scores.statistics["expressivity@block"]
    assert scores["stage_expressivity"] == min(entropy[2], entropy[5], entropy[7])
