"""Layers that a model calls by keyword, as torch names what it takes, have the scores of those called otherwise."""

import inspect

import pytest
import torch
from networks import assert_untouched, fingerprint
from torch import nn

import zcpipe
from zcpipe.spaces.layers import Op

LAYERS = {
    "convolution": lambda: nn.Conv2d(4, 4, 3, padding=1),
    "batch norm": lambda: nn.BatchNorm2d(4),
    "group norm": lambda: nn.GroupNorm(2, 4),
    "instance norm": lambda: nn.InstanceNorm2d(4, affine=True),
    "layer norm": lambda: nn.LayerNorm([4, 6, 6]),
    "rms norm": lambda: nn.RMSNorm([4, 6, 6]),
    "hardsigmoid": lambda: nn.Hardsigmoid(),
    "pool": lambda: nn.AvgPool2d(3, 1, 1, count_include_pad=False),
    "relu": lambda: nn.ReLU(),
    "linear": lambda: nn.Linear(6, 6),
    "chain": lambda: nn.Sequential(nn.Conv2d(4, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
    "op": lambda: Op(nn.Conv2d(4, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4)),
}


class Calling(nn.Module):
    """A layer among others, each called by the name of what it takes, or by place."""

    def __init__(self, layer, by_name):
        super().__init__()
        self.stem, self.layer, self.head, self.by_name = nn.Conv2d(3, 4, 3), layer, nn.Linear(4, 5), by_name

    def forward(self, x):
        maps = self.call(self.layer, self.call(self.stem, x).relu())
        return self.call(self.head, maps.mean((2, 3)))

    def call(self, layer, x):
        (name, *_) = inspect.signature(type(layer).forward).parameters.keys() - {"self"}
        return layer(**{name: x}) if self.by_name else layer(x)


@pytest.mark.parametrize("kind", LAYERS)
def test_change_nothing(kind):
    x = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = []
    for by_name in (False, True):
        torch.manual_seed(0)
        model = Calling(LAYERS[kind](), by_name)
        before = fingerprint(model)
        scores = zcpipe.score(
            model, x, torch.arange(8) % 5, zcpipe.list_proxies(), blocks=["stem", "layer"], unsupported="skip"
        )
        assert_untouched(model, before)
        found.append(scores)
    by_place, by_name = found
    assert by_name.failures == by_place.failures
    assert dict(by_name) == {n: None if v is None else pytest.approx(v, rel=1e-4) for n, v in by_place.items()}
    lost = {"grasp", "gradsign", "synflow", "synflow_bn", "zen", "snip"} & {f.proxy for f in by_name.failures}
    assert not lost, by_name.failures
