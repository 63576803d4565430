"""Taps see of fused chains and cells what hooks see of their modules, in as many backward sweeps as there are."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from zcpipe.ops import available, product_sums
from zcpipe.scoring import cells
from zcpipe.scoring.guard import untouched
from zcpipe.scoring.rewrite import fast_operations
from zcpipe.spaces.layers import Dag, Op
from zcpipe.spaces.nasbench201 import SPACES

SPACE = SPACES[0]
CELLS = {
    "all convolutions": "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_1x1~1|+|nor_conv_1x1~0|nor_conv_3x3~1|nor_conv_3x3~2|",
    "mixed": "|nor_conv_3x3~0|+|skip_connect~0|avg_pool_3x3~1|+|nor_conv_1x1~0|none~1|skip_connect~2|",
    "no convolution": "|skip_connect~0|+|none~0|avg_pool_3x3~1|+|skip_connect~0|none~1|avg_pool_3x3~2|",
}


@pytest.fixture(autouse=True)
def _native():
    if not available():
        pytest.skip("the native library is not built")


@pytest.fixture
def steps(monkeypatch):
    """Count what runs as one step."""
    counted = []
    apply = cells._Cell.apply
    monkeypatch.setattr(cells._Cell, "apply", lambda *a: counted.append(1) or apply(*a))
    return counted


class Seen:
    """What a pass sees of layers and ReLUs, by taps or by hooks."""

    def __init__(self, outputs=True, relus=True):
        self.active, self.outputs, self.relus = True, outputs, relus
        self.products, self.codes = {}, []

    def output(self, conv, products):
        assert self.active and self.outputs
        assert conv not in self.products
        self.products[conv] = products

    def relu(self, relu, x):
        assert isinstance(relu, nn.ReLU)
        assert not x.requires_grad
        self.codes.append((relu, x > 0))

    def hook(self, model):
        """Put hooks on all modules, which those that are fused do not call."""

        def on_output(module, _, z):
            def on_gradient(dz):
                if self.active:
                    self.output(module, product_sums(z, dz))

            z.register_hook(on_gradient)

        for module in model.modules():
            if isinstance(module, nn.Conv2d) and self.outputs:
                module.register_forward_hook(on_output)
            if isinstance(module, nn.ReLU) and self.relus:
                module.register_forward_pre_hook(lambda relu, x: self.relu(relu, x[0].detach()))


def network(text):
    model = SPACE.build(SPACE.parse(text), "cifar10", cells_per_stage=1).model
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                fan_in = module.weight[0].numel()
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator) * (2 / fan_in) ** 0.5)
    return model


def weights_of(model):
    return [m.weight for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


def images(shape=(3, 3, 16, 16)):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return x.contiguous(memory_format=torch.channels_last)


def sweeps(model, seen, x):
    """Gradients of a loss at all weights, then those of the sum of the outputs at the input, over one graph."""
    for weight in weights_of(model):
        weight.requires_grad_()
    y = model(x)
    seen.active = True
    loss = F.cross_entropy(y, torch.arange(len(y)) % y.shape[1])
    weights = torch.autograd.grad(loss, weights_of(model), retain_graph=True)
    seen.active = False
    (inputs,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    seen.active = True
    seen.products, kept = {}, seen.products
    again = torch.autograd.grad(loss, weights_of(model))
    assert all(torch.equal(a, b) for a, b in zip(weights, again, strict=True))
    assert all(torch.equal(seen.products[conv], kept[conv]) for conv in kept)
    return [*weights, inputs]


def assert_near(got, expected, tolerance=1e-3):
    for a, b in zip(got, expected, strict=True):
        assert a.shape == b.shape
        assert float((a - b).abs().max()) <= tolerance * float(b.abs().max())


def everything_of(model):
    return dict(model.named_modules())


@pytest.mark.parametrize("text", CELLS.values(), ids=CELLS)
def test_taps_see_what_hooks_see(text, steps):
    model, x = network(text), images().requires_grad_()
    hooked, tapped = Seen(), Seen()
    with untouched(everything_of(model)), fast_operations(everything_of(model), taps=tapped):
        tapped.hook(model)
        ours = sweeps(model, tapped, x)
    assert len(steps) >= 1 + 2 * 2  # the stem and the reductions' chains
    # In double precision there is nothing fused: hooks see it all.
    model = network(text).double()
    x = x.detach().double().requires_grad_()
    hooked.hook(model)
    with untouched(everything_of(model)):
        expected = sweeps(model, hooked, x)
    assert_near(ours, [t.float() for t in expected], 1e-4)
    names = {module: name for name, module in model.named_modules()}
    own_names = {module: name for name, module in everything_of_tapped(tapped).items()}
    assert {own_names[c] for c in tapped.products} == {names[c] for c in hooked.products}
