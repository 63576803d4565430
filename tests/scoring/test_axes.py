"""Maps of three dimensions: tokens [N, T, C] are measured, a 1-d convolution's [N, C, L] is refused."""

import pytest
import torch
from networks import assert_untouched, fingerprint
from torch import nn

import zcpipe
from zcpipe.errors import UsageError
from zcpipe.scoring.axes import Axes

PASSES = [
    {"proxies": ["expressivity", "trainability"]},
    {"proxies": ["expressivity", "trainability", "snip"], "protocol": "fused"},
]


class Swapped(nn.Module):
    """Layers for [N, C, L] among tokens."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return x + self.layers(x.transpose(1, 2)).transpose(1, 2)


class Loop(nn.Module):
    """A block of Mamba's kind: the convolution lies inside, and a linear layer ends it."""

    def __init__(self, channels):
        super().__init__()
        self.enter, self.leave = nn.Linear(channels, 2 * channels), nn.Linear(2 * channels, channels)
        self.conv = nn.Conv1d(2 * channels, 2 * channels, 3, padding=2, groups=2 * channels)

    def forward(self, x):
        mixed = self.conv(self.enter(x).transpose(1, 2))[..., : x.shape[1]].transpose(1, 2)
        return x + self.leave(nn.functional.silu(mixed))


class Along(nn.Module):
    """A linear layer along the last axis, called by keyword."""

    def __init__(self, length):
        super().__init__()
        self.linear = nn.Linear(length, length)

    def forward(self, x):
        return self.linear(input=x)


class Mean(nn.Module):
    def forward(self, x):
        return x.mean(1)


def conv(channels, out=None):
    return nn.Conv1d(channels, out or channels, 3, padding=1)


def score(blocks, shape, **options):
    """Score all of some modules in a row as blocks."""
    torch.manual_seed(0)
    model = nn.Sequential(*blocks, Mean(), nn.LazyLinear(4))
    x = torch.randn(8, *shape)
    model(x)
    before = fingerprint(model)
    names = [str(i) for i in range(len(blocks))]
    try:
        return zcpipe.score(model, x, torch.arange(8) % 4, blocks=names, **options)
    finally:
        assert_untouched(model, before)


@pytest.mark.parametrize("options", PASSES)
@pytest.mark.parametrize("length", [12, 6])  # 6 is as many as channels
@pytest.mark.parametrize(
    "build",
    [
        lambda n: (conv(6), nn.ReLU()),
        lambda n: (nn.Sequential(conv(6), nn.ReLU()), nn.BatchNorm1d(6)),
        lambda n: (nn.Sequential(conv(6), nn.GLU(1)), nn.Hardtanh()),
        lambda n: (nn.Sequential(nn.MaxPool1d(3, 1, 1)), nn.ReLU()),
        lambda n: (nn.Sequential(conv(6), nn.Linear(n, n)), nn.ReLU()),
        lambda n: (nn.Sequential(conv(6), Along(n), nn.LayerNorm([6, n])), nn.ReLU()),
    ],
)
def test_maps_of_1d_layers_are_refused_also_where_the_layer_is_in_no_block(build, length, options):
    with pytest.raises(UsageError, match=r"1-d convolution's map|may be \[N, C, L\]"):
        score(build(length), (6, length), **options)
    torch.manual_seed(0)
    model = nn.Sequential(conv(6), nn.ReLU(), conv(6), nn.ReLU(), Mean(), nn.Linear(length, 4))
    with pytest.raises(UsageError, match=r"1-d convolution's map|may be \[N, C, L\]"):
        zcpipe.score(model, torch.randn(8, 6, length), torch.arange(8) % 4, blocks=["1", "3"], **options)


@pytest.mark.parametrize("options", PASSES)
@pytest.mark.parametrize(
    "build",
    [
        lambda: (Swapped(conv(6), nn.ReLU()), Swapped(conv(6), nn.BatchNorm1d(6))),
        lambda: (Loop(6), Loop(6)),
        lambda: (nn.Sequential(Swapped(conv(6)), nn.LayerNorm(6)), nn.TransformerEncoderLayer(6, 2, 12, 0.0)),
        lambda: (nn.Sequential(Swapped(conv(6)), nn.Linear(6, 9)), nn.ReLU()),
    ],
)
def test_blocks_of_tokens_may_hold_1d_layers(build, options):
    found = score(build(), (12, 6), **options)
    assert found.status == "ok", found.failures


def test_the_values_are_those_of_tokens():
    options = {"proxies": ["expressivity", "progressivity"]}
    blocks = (Loop(6), Loop(6))
    bare = [type("Bare", (nn.Module,), {"forward": lambda self, x, block=block: block(x)})() for block in blocks]
    assert dict(score(blocks, (12, 6), **options)) == dict(score(bare, (12, 6), **options))


def test_a_stem_of_1d_convolutions_leaves_tokens_alone():
    """As many channels as tokens, too: the layers of the blocks say what they are."""

    class Stem(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = conv(3, 8)

        def forward(self, x):
            return self.conv(x).transpose(1, 2)

    torch.manual_seed(0)
    encoder = (nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True) for _ in range(2))
    model = nn.Sequential(Stem(), *encoder)
    assert zcpipe.score(model, torch.randn(4, 3, 8), None, "expressivity", blocks=["1", "2"]).status == "ok"


def test_other_models_are_not_watched():
    assert Axes(dict(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 4)).named_modules())).watch() == []
