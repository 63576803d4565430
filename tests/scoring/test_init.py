"""Initialisation: the recipe's distribution, a function of its names alone, and nothing left to chance."""

import math

import pytest
import torch
from torch import nn

import zcpipe
from zcpipe.errors import UsageError


def model(device="cpu"):
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, device=device), nn.BatchNorm2d(64, device=device), nn.Linear(500, 40, device=device)
    )


def test_kaiming_normal_fan_in():
    net = zcpipe.initialise(model())
    assert net[0].weight.std().item() == pytest.approx(math.sqrt(2 / 27), rel=0.05)
    assert net[2].weight.std().item() == pytest.approx(math.sqrt(2 / 500), rel=0.02)
    assert net[2].weight.mean().item() == pytest.approx(0, abs=0.002)
    assert not net[0].bias.any()
    assert (net[1].weight == 1).all()
    assert not net[1].bias.any()


def test_weights_depend_on_seed_scope_repeat_and_name_alone():
    first = zcpipe.initialise(model(), seed=1, scope="a").state_dict()
    torch.manual_seed(99)
    again = zcpipe.initialise(model("meta"), seed=1, scope="a").state_dict()
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    for other in ({"seed": 2, "scope": "a"}, {"seed": 1, "scope": "b"}, {"seed": 1, "scope": "a", "repeat": 1}):
        assert not torch.equal(zcpipe.initialise(model(), **other)[0].weight, first["0.weight"])


def test_global_random_state_is_untouched():
    before = torch.get_rng_state()
    net = zcpipe.get_space("nasbench201").build(zcpipe.get_space("nasbench201")[5], "cifar10").model
    zcpipe.initialise(net)
    assert torch.equal(torch.get_rng_state(), before)


def test_layers_without_a_rule_are_refused_where_memory_would_show_through():
    with pytest.raises(UsageError, match="ConvTranspose2d"):
        zcpipe.initialise(nn.Sequential(nn.ConvTranspose2d(3, 3, 3, device="meta")))
    holder = nn.Sequential(nn.Conv2d(3, 3, 3, device="meta"))
    holder.register_buffer("table", torch.arange(3, device="meta"))
    with pytest.raises(UsageError, match="'table'"):
        zcpipe.initialise(holder)


def test_layers_without_a_rule_keep_their_weights_unless_strict():
    net = nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(3, 3, 3), nn.Conv2d(3, 3, 3))
    before = net[1].weight.clone(), net[2].weight.clone()
    with pytest.raises(UsageError, match="'1' of type ConvTranspose2d"):
        zcpipe.initialise(net, strict=True)
    assert torch.equal(net[2].weight, before[1])
    zcpipe.initialise(net)
    assert torch.equal(net[1].weight, before[0])
    assert not torch.equal(net[2].weight, before[1])
