"""Saliencies against autograd, written out."""

import pytest
import torch
from torch import nn

import zcpipe
from zcpipe.errors import UnsupportedError


@pytest.fixture
def case():
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, groups=2, bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 5),
    ).double()
    x, y = torch.randn(7, 3, 9, 9, dtype=torch.float64), torch.arange(7) % 5
    return model, x, y


def gradients(model, x, y):
    nn.functional.cross_entropy(model.train()(x), y).backward()
    return {name: (p.detach(), p.grad) for name, p in model.named_parameters()}


def test_norms_and_products_are_those_of_autograd(case):
    model, x, y = case
    scores = zcpipe.score(model, x, y, ["grad_norm", "snip", "plain", "grad_norm_global"])
    every = gradients(model, x, y)
    layers = [every[f"{i}.weight"] for i in (0, 3, 6)]
    assert scores["grad_norm"] == pytest.approx(sum(float(g.norm()) for _, g in layers))
    assert scores["snip"] == pytest.approx(sum(float((w * g).abs().sum()) for w, g in layers))
    assert scores["plain"] == pytest.approx(sum(float((w * g).sum()) for w, g in layers))
    whole = torch.cat([g.flatten() for _, g in every.values()])
    assert scores["grad_norm_global"] == pytest.approx(float(whole.norm()))
    assert scores.statistics["snip@layer"] == pytest.approx([float((w * g).abs().sum()) for w, g in layers])


def test_fisher_is_its_definition(case):
    model, x, y = case
    scores = zcpipe.score(model, x, y, "fisher")
    outputs = []

    def keep(_module, _inputs, z):
        z.retain_grad()
        outputs.append(z)

    for i in (0, 3, 6):
        model[i].register_forward_hook(keep)
    nn.functional.cross_entropy(model.train()(x), y).backward()
    expected = 0.0
    for z, layer in zip(outputs, (model[0], model[3], model[6]), strict=True):
        products = (z * z.grad).flatten(2).sum(2) if z.ndim == 4 else z * z.grad
        expected += float(products.square().mean(0).sum() / 2) * layer.weight[0].numel()
    assert scores["fisher"] == pytest.approx(expected)


def test_fisher_of_tokens_sums_over_them():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Flatten(), nn.Linear(20, 2))
    x, y = torch.randn(6, 5, 3), torch.arange(6) % 2
    scores = zcpipe.score(model, x, y, "fisher")
    z = model[0](x)
    z.retain_grad()
    nn.functional.cross_entropy(model[2](model[1](z)), y).backward()
    first = float((z.detach() * z.grad).sum(1).square().mean(0).sum()) / 2 * 3
    assert scores.statistics["fisher@layer"][0] == pytest.approx(first, rel=1e-5)


class Spectral(nn.Module):
    """Mixes channels in the frequency domain."""

    def __init__(self):
        super().__init__()
        self.weights, self.head = nn.Parameter(torch.full((3, 8), 0.1 + 0.2j)), nn.Linear(8, 4)

    def forward(self, x):
        mixed = torch.einsum("nchw,cd->ndhw", torch.fft.rfft2(x), self.weights)
        return self.head(torch.fft.irfft2(mixed, s=x.shape[2:]).relu().mean((2, 3)))


@pytest.mark.parametrize("proxy", ["grad_norm_global", "ntk_condition", "vkdnw"])
def test_complex_parameters_are_refused_where_all_parameters_count(proxy):
    with pytest.raises(UnsupportedError, match=r"a parameter of shape \(3, 8\) is complex"):
        zcpipe.score(Spectral(), torch.randn(4, 3, 6, 6), torch.arange(4), [proxy])
