"""Layers whose weight a parametrisation makes at each reading are no layers, and nobody reads them in vain."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import zcpipe

X = torch.randn(8, 3, 10, 10, generator=torch.Generator().manual_seed(1))
Y = torch.arange(8) % 4


def network(parametrise):
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU())
    body = nn.Sequential(parametrise(nn.Conv2d(6, 6, 3, padding=1, bias=False)), nn.BatchNorm2d(6), nn.ReLU())
    return nn.Sequential(stem, body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)).train()


def score(model, *proxies):
    return zcpipe.score(model, X, Y, proxies, unsupported="skip")


@pytest.mark.parametrize("parametrise", [weight_norm, spectral_norm])
def test_gradients_are_those_of_torch(parametrise):
    scores = score(network(parametrise), "snip", "fisher", "grad_norm")
    assert scores.status == "ok"
    model = network(parametrise)
    weights = [model[0][0].weight, model[4].weight]
    gradients = torch.autograd.grad(F.cross_entropy(model(X), Y), weights)
    assert scores["grad_norm"] == pytest.approx(sum(float(g.norm()) for g in gradients), rel=1e-5)
    saliency = sum(float((w.detach() * g).abs().sum()) for w, g in zip(weights, gradients, strict=True))
    assert scores["snip"] == pytest.approx(saliency, rel=1e-5)


@pytest.mark.parametrize("proxy", ["grad_norm", "l2_norm", "auto_prox", "gradsign"])
def test_scoring_leaves_spectral_norms_where_they_are(proxy):
    model = network(spectral_norm)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert score(model, proxy).status == "ok"
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("proxy", ["auto_prox", "grad_norm", "fisher"])
def test_only_forwards_read_such_a_weight(proxy):
    forwards, readings = [], []

    class Counted(nn.Module):
        def forward(self, weight):
            readings.append(1)
            return 2 * weight

    def parametrise(conv):
        conv.register_forward_hook(lambda *_: forwards.append(1))
        return nn.utils.parametrize.register_parametrization(conv, "weight", Counted())

    model = network(parametrise)
    readings.clear()  # that it may be registered
    score(model, proxy)
    assert forwards and len(readings) == len(forwards)
