"""VKDNW against its definition in numpy, over per-sample Jacobians from torch.func."""

import math

import numpy as np
import pytest
import torch
from convnets import Convnet, Unfollowed, convnets, draw, functional, score
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import jacrev, vmap

import zcpipe
from zcpipe.errors import UnsupportedError
from zcpipe.proxies import vkdnw
from zcpipe.proxies.vkdnw import decile_entropy, fisher_information, output_jacobian


def dead(model, name):
    """Whether the output of one of these networks does not depend on a parameter."""
    return getattr(model, "shared", False) and name.startswith("last.")


def layers_of(model):
    """What the score counts beside the entropy."""
    layers = [n for n, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    return sum(not dead(model, f"{name}.weight") for name in layers)


def jacobian_by_definition(model, x):
    call, parameters = functional(model, training=False)
    names = [name for name in parameters if not dead(model, name)][:128]
    of_one = jacrev(lambda p, image: call(p, image[None])[0])
    found = vmap(of_one, in_dims=(None, 0))(parameters, x)
    logits = call(parameters, x).detach().numpy()
    return logits, torch.stack([found[name].flatten(2)[..., 0] for name in names], 2).numpy()


def entropy_by_definition(logits, jacobian):
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True) * 0.95 + 0.05 / logits.shape[1]
    terms = [j.T @ (np.diag(q) - np.outer(q, q)) @ j for q, j in zip(p, jacobian, strict=True)]
    spectrum = np.linalg.svd(np.mean(terms, 0), compute_uv=False)
    deciles = np.quantile(spectrum, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
    q = deciles / np.abs(deciles).sum()
    return -(q * np.log(q + 1e-10)).sum()


@settings(max_examples=25)
@given(convnets, st.integers(1, 6), st.integers(0, 2**31))
def test_is_its_definition(model, samples, seed):
    x, _ = draw(model, seed, samples)
    expected = entropy_by_definition(*jacobian_by_definition(model, x))
    assert score(model, x, None, "vkdnw")[0] - layers_of(model) == pytest.approx(expected, rel=1e-6, abs=1e-9)


class Given:
    """A network in eval mode, as the proxy reads it."""

    def __init__(self, model, x):
        self.model, self.inputs = model.eval(), [x]
        self.parameters = [p for name, p in model.named_parameters() if not dead(model, name)]


@pytest.fixture
def alone(monkeypatch):
    """Counts the samples that went through the network alone."""
    calls, original = [], vkdnw._alone
    monkeypatch.setattr(vkdnw, "_alone", lambda *args: calls.append(args[2]) or original(*args))
    return calls


@settings(max_examples=25)
@given(convnets, st.integers(1, 4), st.integers(0, 2**31))
def test_jacobian_of_the_whole_batch_is_each_samples(model, samples, seed):
    x, _ = draw(model, seed, samples)
    expected = jacobian_by_definition(model, x)
    for got, wanted in zip(output_jacobian(Given(model, x)), expected, strict=True):
        assert got == pytest.approx(wanted, rel=1e-9, abs=1e-9 * np.abs(wanted).max())


def test_known_layers_need_one_sample_alone(alone):
    model = Convnet(2, True, True)
    output_jacobian(Given(model, draw(model, 1)[0]))
    assert alone == [0]


class Tokens(nn.Module):
    """Layer norms and linear layers over tokens, and a weight that two layers share."""

    def __init__(self, shared):
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(27, 27), nn.LayerNorm(27), nn.Linear(27, 27)
        self.head = nn.Linear(27, 4)
        if shared:
            self.second.weight = self.first.weight

    def forward(self, x):
        x = x.flatten(2).transpose(1, 2).reshape(len(x), 9, 27)
        return self.head(self.second(self.norm(self.first(x))).mean(1))


class Mixing(nn.Module):
    """Samples that meet in eval mode too."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(243, 4)

    def forward(self, x):
        return self.head(x.flatten(1) - x.flatten(1).mean(0) * 0.5)


class Scaled(nn.Module):
    """A parameter of a module that no rule knows."""

    def __init__(self):
        super().__init__()
        self.scale, self.head = nn.Parameter(torch.ones(3, 1, 1)), nn.Linear(243, 4)

    def forward(self, x):
        return self.head((self.scale * x).flatten(1))


@pytest.mark.parametrize(
    ("model", "falls_back"), [(Tokens(False), False), (Tokens(True), True), (Mixing(), True), (Scaled(), True)]
)
def test_what_the_whole_batch_cannot_give_is_taken_sample_by_sample(model, falls_back, alone):
    x, _ = draw(model, 2)
    logits, jacobian = output_jacobian(Given(model, x))
    call, parameters = functional(model, training=False)
    for i in range(len(x)):
        found = jacrev(lambda p, i=i: call(p, x[i : i + 1])[0])(parameters)
        expected = torch.stack([value.flatten(1)[:, 0] for value in found.values()], 1)
        assert jacobian[i] == pytest.approx(expected.numpy(), rel=1e-9, abs=1e-12)
    assert logits.shape == (5, 4) and jacobian.shape == (5, 4, len(parameters))
    assert alone == (list(range(5)) if falls_back else [0])


def test_only_the_first_128_tensors_count():
    model = nn.Sequential(nn.Flatten(), *(nn.Linear(243, 243) for _ in range(70)), nn.Linear(243, 4))
    x = torch.randn(2, 3, 9, 9)
    assert output_jacobian(Given(model, x))[1].shape == (2, 4, 128)


def test_information_is_the_covariance_between_jacobians():
    random = np.random.default_rng(0)
    logits, jacobian = 9 * random.standard_normal((6, 5)), random.standard_normal((6, 5, 40))
    information = fisher_information(logits, jacobian)
    assert np.linalg.eigvalsh(information)[0] >= -1e-12  # rank 24: no rounding makes it indefinite
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True) * 0.95 + 0.01
    expected = sum(j.T @ (np.diag(q) - np.outer(q, q)) @ j for q, j in zip(p, jacobian, strict=True)) / 6
    assert information == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_entropy_of_deciles():
    assert decile_entropy(np.full(40, 1e-30)) == pytest.approx(math.log(9))
    assert decile_entropy(np.zeros(40)) == 0
    assert decile_entropy(np.r_[np.zeros(99), 1.0]) == 0  # a spectrum of one value has no deciles above zero
    assert decile_entropy(np.arange(11.0)) == pytest.approx(-sum(i / 45 * math.log(i / 45) for i in range(1, 10)))


def test_float32_is_near_float64():
    model = Convnet(3, True, True)
    x, _ = draw(model, 1, 8)
    exact = score(model, x, None, "vkdnw")[0] - layers_of(model)
    assert score(model.float(), x.float(), None, "vkdnw")[0] - layers_of(model) == pytest.approx(exact, rel=1e-3)


def test_failures_say_why():
    model = Convnet(2, True, True)
    x, _ = draw(model, 4)
    with torch.no_grad():
        model.stem.weight[0, 0, 0, 0] = float("nan")
    broken = zcpipe.score(model, x, None, ["vkdnw"])
    assert broken["vkdnw"] is None and broken.failures[0].kind == "nonfinite"
    with pytest.raises(UnsupportedError, match=r"outputs must be \[1, classes\], got shape \(1, 2, 7, 7\)"):
        zcpipe.score(nn.Conv2d(3, 2, 3), x.float(), None, ["vkdnw"])


def test_an_output_that_depends_on_nothing_is_unsupported():
    with pytest.raises(UnsupportedError, match="the output does not depend on the weights"):
        zcpipe.score(Unfollowed(), torch.randn(8, 6), None, ["vkdnw"])


def test_an_output_that_no_first_element_moves_has_no_entropy():
    x = torch.randn(8, 6)
    x[:, 0] = 0
    assert zcpipe.score(nn.Linear(6, 4, bias=False), x, None, ["vkdnw"])["vkdnw"] == 1  # layer, no information


def test_the_first_tensors_are_those_of_layers_that_the_output_depends_on():
    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.unused, self.head = nn.ModuleList([nn.Linear(1, 1) for _ in range(70)]), nn.Linear(6, 4)

        def forward(self, x):
            return self.head(x)

    model, x = Late(), torch.randn(8, 6)
    late, alone = (zcpipe.score(m, x, None, ["vkdnw"])["vkdnw"] for m in (model, model.head))
    assert late == alone > 1


class OneByOne(nn.Module):
    """Layers that take samples without a batch's dimension, as many channels as samples."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.head = layer, nn.Linear(5, 4)

    def forward(self, x):
        x = torch.stack([self.layer(one) for one in x])
        return self.head(x.flatten(2).mean(2) if x.ndim == 4 else x)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: nn.Conv2d(3, 5, 3), (3, 9, 9)),
        (lambda: nn.Conv2d(3, 6, 3, bias=False), (3, 9, 9)),
        (lambda: nn.Linear(5, 5), (5,)),
        (lambda: nn.LayerNorm(5), (5,)),
    ],
)
def test_layers_that_see_no_batch_are_taken_sample_by_sample(layer, shape, alone):
    model = OneByOne(layer()).double()
    model.head = nn.Linear(model.layer.out_channels if len(shape) == 3 else 5, 4).double()
    x = torch.randn(5, *shape, dtype=torch.float64)
    logits, jacobian = output_jacobian(Given(model, x))
    assert alone == list(range(5))
    for i in range(5):
        expected = jacobian_by_definition(model, x[i : i + 1])
        assert logits[i] == pytest.approx(expected[0][0])
        assert jacobian[i] == pytest.approx(expected[1][0], rel=1e-9, abs=1e-12)


def test_layers_called_by_keyword_are_taken_sample_by_sample(alone):
    class Keyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(6, 4)

        def forward(self, x):
            return self.head(input=x)

    assert output_jacobian(Given(Keyword(), torch.randn(5, 6)))[1].shape == (5, 4, 2)
    assert alone == list(range(5))


def test_an_output_of_another_number_of_rows_is_unsupported():
    model = nn.Sequential(nn.Linear(6, 8), nn.Flatten(0), nn.Unflatten(0, (-1, 4)))
    with pytest.raises(UnsupportedError, match=r"outputs must be \[1, classes\], got shape \(2, 4\)"):
        zcpipe.score(model, torch.randn(8, 6), None, ["vkdnw"])
