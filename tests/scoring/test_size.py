"""Sizes of any module: what is counted, and that counting leaves no trace and fails by itself."""

import pytest
import torch
from networks import assert_untouched, fingerprint
from torch import nn

from zcpipe.scoring.size import count, count_macs, count_params
from zcpipe.spaces.base import Size


class Noisy(nn.Module):
    """Draws random numbers, and writes to its buffers."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls = self.calls + torch.rand(()).to(self.calls.device)
        return self.act(self.norm(self.conv(x)))


class OnItsDevice(nn.Module):
    """Holds a tensor that does not move with it."""

    def __init__(self):
        super().__init__()
        self.layer, self.scale = nn.Linear(6, 4), torch.ones(4)

    def forward(self, x):
        return self.layer(x) * self.scale


@pytest.mark.parametrize("train", [True, False])
def test_leaves_no_trace(train):
    model, x = Noisy().train(train), torch.randn(2, 3, 8, 8)
    before, calls = fingerprint(model), model.calls
    assert count(model, [x]) == Size(216 + 16, 216 * 36)
    assert_untouched(model, before)
    assert model.calls is calls


def test_parameters_need_no_forward():
    model = OnItsDevice()
    assert count_params(model) == 28
    with pytest.raises(RuntimeError, match="meta"):
        count_macs(model, [torch.randn(2, 6)])


def test_a_parameter_that_is_used_twice_counts_once():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    assert count(model, [torch.randn(2, 4)]) == Size(16 + 4 + 4, 2 * 16)


def test_one_vector_is_enough_for_a_batch_norm():
    """Its statistics are not asked for: train mode would refuse them."""
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).train()
    assert count_macs(model, [torch.randn(1, 4)]) == 12
    assert model[1].training


def test_a_model_on_the_meta_device_can_be_counted():
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    assert count(model, [torch.randn(2, 3, 8, 8)]) == Size(216 + 8 + 16, 216 * 36)
