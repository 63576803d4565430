"""GradSign against per-sample gradients from torch.func, and each sample alone."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from convnets import Convnet, Unfollowed, convnets, draw, functional, layers, score
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import grad, vmap

import zcpipe
from zcpipe.errors import UnsupportedError
from zcpipe.proxies.gradsign import signs_one_by_one
from zcpipe.proxies.signs import NotSeparableError, signs_of_batch


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


class Given:
    """A network as a pass prepares it, as the proxy reads it."""

    def __init__(self, model, x, y):
        self.model, self.inputs, self.targets = model.train().requires_grad_(False), [x], y
        for module in model.modules():
            for flag in ("inplace", "track_running_stats"):
                if hasattr(module, flag):
                    setattr(module, flag, False)
        self.layers = {
            n: m.weight for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)
        }

    def loss(self, output, targets):
        return F.cross_entropy(output, targets)


class Tokens(nn.Module):
    """Linear layers over tokens, a convolution over sequences, a batch norm over sequences."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.norm = nn.Linear(27, 6), nn.Conv1d(6, 6, 3, padding=1), nn.BatchNorm1d(6)
        self.middle, self.head = nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x):
        tokens = self.embed(x.flatten(2).transpose(1, 2).reshape(len(x), 9, 27))
        tokens = tokens + self.middle(F.gelu(self.norm(self.mix(tokens.mT)).mT))
        return self.head(tokens.mean(1))


@pytest.mark.parametrize("make", [lambda: Convnet(3, True, True), lambda: Convnet(1, False, False), Tokens])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_whole_batch_gives_what_samples_give_one_by_one(make, layout):
    model = make()
    x, y = draw(model, 5, 7)
    network = Given(model, x.contiguous(memory_format=layout), y)
    for together, alone in zip(signs_of_batch(network), signs_one_by_one(network), strict=True):
        assert together.shape == alone.shape
        assert (together != alone).sum() <= 0.01 * alone.numel()
    assert not any("forward" in vars(module) for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())


class Meeting(Convnet):
    """Samples that meet outside a batch norm module."""

    def forward(self, x):
        return super().forward(x - x.mean(0, keepdim=True))


class Tied(Convnet):
    """A weight that is used without its module as well."""

    def forward(self, x):
        return super().forward(x) @ self.head.weight @ self.head.weight.mT


class BatchLast(nn.Module):
    """As many samples as positions, and a layer that sees positions first."""

    def __init__(self):
        super().__init__()
        self.mix, self.head = nn.Linear(5, 5), nn.Linear(5, 4)

    def forward(self, x):
        positions = self.mix(x.flatten(1)[:, :25].reshape(-1, 5, 5).transpose(0, 1))
        return self.head(positions.mean(0))


class Standardised(nn.Conv2d):
    """A convolution of another weight than its own."""

    def forward(self, x):
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


class Inside(nn.Conv2d):
    """The same, in the method that its class's forward calls."""

    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight - weight.mean(), bias)


def standardised(kind=Standardised):
    model = Convnet(2, True, True)
    model.stem = kind(3, 4, 3, 2, 1)
    return model


def tiling():
    model = Convnet(2, True, True)
    stem = model.stem
    stem._conv_forward = lambda x, w, b: F.conv2d(F.pad(x, (1, 1, 1, 1), mode="circular"), w, b, stem.stride)
    return model


@pytest.mark.parametrize(
    "make",
    [
        lambda: Convnet(2, True, True, shared=True),
        lambda: Meeting(2, True, True),
        lambda: Tied(2, True, True),
        BatchLast,
        standardised,
        lambda: standardised(Inside),
        tiling,
        lambda: nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(243, 4)),
    ],
)
def test_what_a_whole_batch_does_not_give_is_found_out(make):
    model = make()
    x, y = draw(model, 6)
    with pytest.raises(NotSeparableError):
        signs_of_batch(Given(model, x, y))
    assert not any("forward" in vars(module) for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_batch_norm_of_one_value_is_refused_in_torchs_words():
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(243), nn.Linear(243, 4))
    x, y = draw(model, 7)
    assert "more than 1 value per channel" in zcpipe.score(model, x, y, ["gradsign"]).failures[0].message


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


@pytest.mark.parametrize("samples", [1, 8])  # by itself, and the whole batch
def test_an_output_or_loss_that_depends_on_nothing_is_unsupported(samples):
    x, y = torch.randn(samples, 6), torch.arange(samples) % 4
    with pytest.raises(UnsupportedError, match="the output does not depend on the weights"):
        zcpipe.score(Unfollowed(), x, y, ["gradsign"])
    with pytest.raises(UnsupportedError, match="the loss does not depend on the weights"):
        zcpipe.score(nn.Linear(6, 4), x, y, ["gradsign"], loss=lambda output, _: output.sum().detach())
