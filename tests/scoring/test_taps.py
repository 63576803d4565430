"""Taps see of fused chains and cells what hooks see of their modules, in as many backward sweeps as there are."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from zcpipe.ops import product_sums
from zcpipe.scoring.guard import untouched
from zcpipe.scoring.rewrite import fast_operations
from zcpipe.spaces.layers import Dag, Op
from zcpipe.spaces.nasbench201 import SPACES

SPACE = SPACES[0]
CELLS = {
    "all convolutions": "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_1x1~1|+|nor_conv_1x1~0|nor_conv_3x3~1|none~2|",
    "mixed": "|nor_conv_3x3~0|+|skip_connect~0|avg_pool_3x3~1|+|nor_conv_1x1~0|none~1|skip_connect~2|",
    "no convolution": "|skip_connect~0|+|none~0|avg_pool_3x3~1|+|skip_connect~0|none~1|avg_pool_3x3~2|",
}


pytestmark = pytest.mark.usefixtures("native")


class Seen:
    """What a pass sees of layers and ReLUs, by taps or by hooks."""

    def __init__(self, model, outputs=True, relus=True):
        self.active, self.outputs, self.relus, self.norms = True, outputs, relus, False
        self.products, self.codes = {}, []
        self._names = {module: name for name, module in model.named_modules()}

    def output(self, conv, products):
        assert self.active and self.outputs
        assert self._names[conv] not in self.products
        self.products[self._names[conv]] = products

    def relu(self, relu, x):
        assert isinstance(relu, nn.ReLU) and self.relus
        self.codes.append((self._names[relu], x > 0))

    def hook(self):
        """Put hooks on all modules, which those that are fused do not call."""

        def on_output(module, _, z):
            def on_gradient(dz):
                if self.active:
                    self.output(module, product_sums(z, dz))

            z.register_hook(on_gradient)

        for module in self._names:
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


def seen_by_hooks(model, x, **options):
    """All in double precision, where nothing is fused."""
    model, x = model.double(), x.detach().double().requires_grad_()
    seen = Seen(model, **options)
    with untouched(everything_of(model)):
        seen.hook()
        return seen, sweeps(model, seen, x)


@pytest.mark.parametrize("text", CELLS.values(), ids=CELLS)
@pytest.mark.parametrize("relus", [False, True], ids=["no ReLUs", "ReLUs"])
@pytest.mark.parametrize("outputs", [False, True], ids=["no outputs", "outputs"])
def test_taps_see_what_hooks_see(text, outputs, relus, steps):
    model, x = network(text), images().requires_grad_()
    tapped = Seen(model, outputs, relus)
    with untouched(everything_of(model)), fast_operations(everything_of(model), taps=tapped):
        tapped.hook()
        ours = sweeps(model, tapped, x)
    assert len(steps) == 1 + 2 * 2 + 3  # the stem, the reductions' chains and the cells
    hooked, expected = seen_by_hooks(network(text), x, outputs=outputs, relus=relus)
    assert_near(ours, expected)
    assert tapped.products.keys() == hooked.products.keys() and bool(hooked.products) == outputs
    assert_near([tapped.products[name] for name in hooked.products], hooked.products.values())
    assert [name for name, _ in tapped.codes] == [name for name, _ in hooked.codes] and bool(hooked.codes) == relus
    for (_, ours_on), (_, on) in zip(tapped.codes, hooked.codes, strict=True):
        assert float((ours_on != on).double().mean()) < 1e-3


def test_the_input_of_the_network_need_not_ask_for_a_gradient(steps):
    model, x = network(CELLS["mixed"]), images()
    tapped = Seen(model)
    with untouched(everything_of(model)), fast_operations(everything_of(model), taps=tapped):
        for weight in weights_of(model):
            weight.requires_grad_()
        loss = model(x).square().sum()
        ours = torch.autograd.grad(loss, weights_of(model))
    assert steps
    exact = network(CELLS["mixed"]).double()
    with untouched(everything_of(exact)):
        for weight in weights_of(exact):
            weight.requires_grad_()
        assert_near(ours, torch.autograd.grad(exact(x.double()).square().sum(), weights_of(exact)))
    assert "stem.0" in tapped.products


def chain(kernel=3, stride=1, relu_output=False):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 4, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(nn.ReLU(), conv, nn.BatchNorm2d(4), *[nn.ReLU()] * relu_output)


def branches(**options):
    """A cell with a layer that is used twice, a sum of four, and a layer that leads nowhere."""
    shared = chain(**options)
    layers = {
        "a": shared,
        "b": Op(*chain(1)),
        "dead": chain(5),
        "c": nn.Identity(),
        "d": shared,
        "e": nn.AvgPool2d(3, 1, 1, count_include_pad=False),
        "f": chain(),
    }
    return Dag([(0, 1), (0, 1), (1, 2), (0, 3), (1, 3), (1, 3), (0, 3)], layers, output=3)


class Summed(Seen):
    """Layers may be called more than once."""

    def output(self, conv, products):
        name = self._names[conv]
        self.products[name] = self.products.get(name, 0) + products


@pytest.mark.parametrize("norms", [False, True], ids=["frozen norms", "norms"])
def test_all_parameters_of_a_cell_and_layers_that_are_used_twice(norms, steps):
    results = []
    for dtype in (torch.float32, torch.float64):
        model = branches().to(dtype)
        x = images((3, 4, 7, 6)).to(dtype).requires_grad_()
        seen = Summed(model)
        with untouched(everything_of(model)), fast_operations(everything_of(model), taps=seen):
            seen.hook()
            for parameter in model.parameters():
                parameter.requires_grad_(norms or parameter.ndim == 4)
            asked = [x, *(p for p in model.parameters() if p.requires_grad)]
            y = model(x)
            found = torch.autograd.grad((y**3).sum(), asked, allow_unused=True)
        results.append((found, seen))
    assert len(steps) == 1
    (ours, tapped), (expected, hooked) = results
    assert [g is None for g in ours] == [g is None for g in expected]
    assert_near([g for g in ours if g is not None], [g for g in expected if g is not None], 1e-4)
    assert tapped.products.keys() == hooked.products.keys()
    assert_near([tapped.products[name] for name in hooked.products], hooked.products.values(), 1e-4)
    assert sorted(name for name, _ in tapped.codes) == sorted(name for name, _ in hooked.codes)  # the dead come last


@pytest.mark.parametrize("relus", [False, True], ids=["no ReLUs", "ReLUs"])
def test_a_relu_whose_input_is_never_written_keeps_its_chain_apart(relus, steps):
    model, x = chain(relu_output=True), images((3, 4, 7, 6)).requires_grad_()
    seen = Seen(model, relus=relus)
    with untouched(everything_of(model)), fast_operations(everything_of(model), taps=seen):
        seen.hook()
        model(x)
    assert len(steps) == (0 if relus else 1)
    assert [name for name, _ in seen.codes] == (["0", "3"] if relus else [])


def test_modules_that_must_be_called_are_called(steps):
    model, x = network(CELLS["mixed"]), images()
    seen, called = Seen(model), []
    with untouched(everything_of(model)), fast_operations(everything_of(model), ["stem.0"], seen):
        model.stem[0].register_forward_hook(lambda *_: called.append("stem"))
        model(x)
    assert called == ["stem"] and len(steps) == 2 * 2 + 3


@pytest.mark.parametrize(
    "x", [images((3, 4, 7, 6)).double(), images((3, 4, 7, 6)).contiguous()], ids=["double precision", "other layout"]
)
def test_what_is_not_fused_goes_to_the_modules(x, steps):
    model = branches().to(x.dtype)
    seen = Summed(model)
    with untouched(everything_of(model)), fast_operations(everything_of(model), taps=seen):
        seen.hook()
        model.requires_grad_()
        model(x).sum().backward()
    assert not steps
    assert len(seen.codes) == 5 and len(seen.products) == 3


def test_there_is_no_second_derivative():
    model, x = chain(), images((3, 4, 7, 6)).requires_grad_()
    with untouched(everything_of(model)), fast_operations(everything_of(model), taps=Seen(model)):
        (first,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            first.sum().backward()
