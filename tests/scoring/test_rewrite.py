"""fast_operations: native operations in place of modules, for the length of a pass."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

from zcpipe.scoring import rewrite
from zcpipe.scoring.guard import untouched
from zcpipe.scoring.rewrite import fast_operations
from zcpipe.spaces.layers import Dag, Op, add_to


def conv(inputs=4, outputs=6, kernel=3, **options):
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **{"bias": False, **options})


def given(module, name):
    """Put a tensor in the place of a parameter, as networks do that make the weights of others."""
    tensor = getattr(module, name).detach().clone()
    delattr(module, name)
    setattr(module, name, tensor)
    return module


CHAINS = {
    "relu conv norm": lambda: [nn.ReLU(), conv(), nn.BatchNorm2d(6)],
    "conv norm": lambda: [conv(), nn.BatchNorm2d(6)],
    "conv norm relu": lambda: [conv(stride=2), nn.BatchNorm2d(6), nn.ReLU()],
    "relu conv norm relu": lambda: [nn.ReLU(inplace=True), conv(kernel=1), nn.BatchNorm2d(6, affine=False), nn.ReLU()],
}
UNFUSED = {
    "bias": lambda: [conv(bias=True), nn.BatchNorm2d(6)],
    "groups": lambda: [conv(groups=2), nn.BatchNorm2d(6)],
    "dilation": lambda: [conv(dilation=2), nn.BatchNorm2d(6)],
    "reflected": lambda: [conv(padding_mode="reflect"), nn.BatchNorm2d(6)],
    "oblong": lambda: [nn.Conv2d(4, 6, (1, 3), bias=False), nn.BatchNorm2d(6)],
    "same": lambda: [nn.Conv2d(4, 6, 3, padding="same", bias=False), nn.BatchNorm2d(6)],
    "norm first": lambda: [nn.BatchNorm2d(4), conv()],
    "relu between": lambda: [conv(), nn.ReLU(), nn.BatchNorm2d(6)],
    "two relus": lambda: [nn.ReLU(), nn.ReLU(), conv(), nn.BatchNorm2d(6)],
    "two convolutions": lambda: [conv(), conv(6), nn.BatchNorm2d(6)],
    "leaky": lambda: [nn.LeakyReLU(), conv(), nn.BatchNorm2d(6)],
    "parametrised": lambda: [weight_norm(conv()), nn.BatchNorm2d(6)],
    "pruned": lambda: [prune.identity(conv(), "weight"), nn.BatchNorm2d(6)],
    "given kernels": lambda: [given(conv(), "weight"), nn.BatchNorm2d(6)],
    "given scales": lambda: [conv(), given(nn.BatchNorm2d(6), "weight")],
    "given shifts": lambda: [conv(), given(nn.BatchNorm2d(6), "bias")],
}


def all_of(model):
    return dict(model.named_modules())


@pytest.fixture
def fused(monkeypatch):
    """Count the calls of the fused operation."""
    calls = []
    op = rewrite.conv_batch_norm_train
    monkeypatch.setattr(rewrite, "conv_batch_norm_train", lambda *a, **k: calls.append(k) or op(*a, **k))
    return calls


def images(requires_grad=True):
    x = torch.randn(3, 4, 7, 7, generator=torch.Generator().manual_seed(0))
    return x.contiguous(memory_format=torch.channels_last).requires_grad_(requires_grad)


def outcome(model, x):
    y = model(x)
    return y, torch.autograd.grad(y, x, torch.ones_like(y).cumsum(0))[0]


@pytest.mark.parametrize("chain", [*CHAINS, *UNFUSED])
def test_what_a_chain_computes_stays_the_same(chain, fused):
    torch.manual_seed(0)
    model = nn.Sequential(*{**CHAINS, **UNFUSED}[chain]())
    with untouched(all_of(model)):
        expected = outcome(model, images())
        with fast_operations(all_of(model)):
            ours = outcome(model, images())
        assert len(fused) == (chain in CHAINS)
        again = outcome(model, images())
    for a, b, c in zip(ours, expected, again, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
        assert torch.equal(b, c)
    assert "forward" not in vars(model) and not any("forward" in vars(m) for m in model)


def test_an_output_joins_a_sum_in_one_go(fused):
    torch.manual_seed(0)
    model = nn.Sequential(*CHAINS["relu conv norm"]())
    x, total = images(), torch.ones(3, 6, 7, 7)
    with untouched(all_of(model)):
        expected = total + model(x)
        with fast_operations(all_of(model)):
            torch.testing.assert_close(add_to(total, model, x), expected, atol=1e-5, rtol=1e-5)
    assert fused[0]["total"] is total


def test_hooks_inside_a_chain_and_on_it_are_called(fused):
    model = nn.Sequential(*CHAINS["relu conv norm"]())
    seen = []
    model[1].register_forward_hook(lambda *_: seen.append("convolution"))
    with untouched(all_of(model)), fast_operations(all_of(model)):
        model(images())
    assert seen == ["convolution"] and not fused
    whole = nn.Sequential(*CHAINS["relu conv norm"]())
    whole.register_forward_hook(lambda *_: seen.append("chain"))
    with untouched(all_of(whole)), fast_operations(all_of(whole)):
        add_to(torch.zeros(3, 6, 7, 7), whole, images())
    assert seen[1:] == ["chain"] and fused


def test_modules_in_eval_mode_or_with_running_statistics_stay(fused):
    model = nn.Sequential(*CHAINS["conv norm"]()).eval()
    with fast_operations(all_of(model)):
        assert "forward" not in vars(model)
    with fast_operations(all_of(model.train())):
        assert "forward" not in vars(model)


def test_other_inputs_go_to_the_module_itself():
    model = nn.Sequential(*CHAINS["conv norm"]())
    with untouched(all_of(model)), fast_operations(all_of(model)), pytest.raises(RuntimeError, match="expected input"):
        model(torch.zeros(3, 5, 7, 7, dtype=torch.int64))


def test_everything_is_put_back_after_an_error():
    model = nn.Sequential(nn.Sequential(*CHAINS["conv norm"]()), nn.AvgPool2d(3, 1, 1, count_include_pad=False))
    with pytest.raises(ZeroDivisionError), untouched(all_of(model)), fast_operations(all_of(model)):
        assert "forward" in vars(model[0]) and "forward" in vars(model[1])
        raise ZeroDivisionError
    assert not any({"forward", "forward_onto"} & set(vars(module)) for module in model.modules())


class Halved(Op):
    """A layer that computes something else than its chain."""

    def forward(self, x):
        return super().forward(x) / 2


def cell(weighted=Op):
    """Node 1 is a weighted layer's, node 2 the sum of a pool of node 1, a skip and another weighted layer."""
    torch.manual_seed(0)
    chains = [nn.Sequential(nn.ReLU(), conv(4, 4), nn.BatchNorm2d(4)) for _ in range(2)]
    layers = {
        "a": weighted(*chains[0]),
        "b": nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False),
        "c": nn.Identity(),
        "d": chains[1],
    }
    return Dag([(0, 1), (1, 2), (0, 2), (0, 2)], layers, output=2)


@pytest.mark.parametrize("weighted", [Op, Halved])
def test_a_cell_is_one_step_that_computes_the_same(weighted):
    model = cell(weighted)
    with untouched(all_of(model)):
        expected = outcome(model, images())
        with fast_operations(all_of(model)):
            assert ("forward" in vars(model)) == (weighted is Op)
            ours = outcome(model, images())
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    assert "forward" not in vars(model)


@pytest.mark.parametrize("name", ["layers.a", "layers.a.op", "layers.a.op.1", "layers.b", "layers.c", "layers.d.2"])
def test_hooks_anywhere_in_a_cell_are_called(name):
    model = cell()
    seen = []
    model.get_submodule(name).register_forward_hook(lambda *_: seen.append(name))
    with untouched(all_of(model)), fast_operations(all_of(model)):
        model(images())
    assert seen == [name]


def test_a_cell_whose_parameters_want_gradients_gets_them():
    model = cell().requires_grad_()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
    with fast_operations(all_of(model)):
        model(images()).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def altered(model, change):
    change(model)
    return model


def patch(name):
    def change(model):
        part = model.get_submodule(name)
        forward = part.forward
        part.forward = lambda x: forward(x) * 3

    return change


ALTERATIONS = {
    "a convolution's own forward": patch("layers.a.op.1"),
    "a pool's own forward": patch("layers.b"),
    "a chain's own forward": patch("layers.d"),
    "an op's own forward": patch("layers.a"),
    "a backward hook": lambda m: m.layers["d"].register_full_backward_hook(lambda _m, g, _o: (g[0] * 5,)),
    "an integer stride": lambda m: setattr(m.layers["d"][1], "stride", 1),
    "an integer padding": lambda m: setattr(m.layers["a"].op[1], "padding", 1),
    "another kind of convolution": lambda m: m.layers["d"].__setitem__(1, Doubled(4, 4, 3, padding=1, bias=False)),
    "another way of its convolutions": lambda m: m.layers["d"].__setitem__(1, Centred(4, 4, 3, padding=1, bias=False)),
    "a convolution patched inside": lambda m: setattr(m.layers["d"][1], "_conv_forward", circular),
    "another kind of cell": lambda m: setattr(m, "__class__", Negative),
    "a divisor": lambda m: setattr(m.layers["b"], "divisor_override", 4),
    "a stride of three": lambda m: (setattr(m.layers["b"], "stride", 1), setattr(m.layers["b"], "ceil_mode", True)),
}


class Doubled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


class Centred(nn.Conv2d):
    """Weight standardisation, but for the scale."""

    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight - weight.mean((1, 2, 3), keepdim=True), bias)


def circular(x, weight, bias):
    """Tiles images, as Stable Diffusion is patched to."""
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="circular"), weight, bias)


class Negative(Dag):
    def forward(self, x):
        return -super().forward(x)


@pytest.mark.parametrize("name", ALTERATIONS)
def test_what_is_not_stock_counts(name):
    model = altered(cell(), ALTERATIONS[name])
    with untouched(all_of(model)):
        expected = outcome(model, images())
        with fast_operations(all_of(model)):
            ours = outcome(model, images())
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_hooks_on_all_modules_are_called():
    model = nn.Sequential(*CHAINS["conv norm"]())
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module)))
    try:
        with untouched(all_of(model)), fast_operations(all_of(model)):
            model(images())
    finally:
        handle.remove()
    assert nn.Conv2d in seen and nn.BatchNorm2d in seen


def test_modules_that_will_be_hooked_are_called(fused):
    model = nn.Sequential(*CHAINS["relu conv norm"]())
    with untouched(all_of(model)), fast_operations(all_of(model), called=["1"]):
        model(images())
    assert not fused


def test_the_layout_is_what_it_would_be(fused):
    model = nn.Sequential(*CHAINS["conv norm"]())
    x = images().contiguous()
    with untouched(all_of(model)), fast_operations(all_of(model)):
        assert model(x).is_contiguous()
        assert not fused
        assert model(images()).is_contiguous(memory_format=torch.channels_last)
    assert fused


def test_an_image_that_does_not_fit_is_refused_in_the_modules_words():
    model = nn.Sequential(*CHAINS["conv norm"]())
    with untouched(all_of(model)), fast_operations(all_of(model)):
        with pytest.raises(RuntimeError, match="to have 4 channels, but got 5"):
            model(torch.zeros(2, 5, 7, 7).contiguous(memory_format=torch.channels_last))
        with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
            model(torch.zeros(1, 4, 1, 1).contiguous(memory_format=torch.channels_last))


def test_a_layer_outside_any_pass_is_an_ordinary_module():
    layer, seen = Op(conv(4, 4), nn.BatchNorm2d(4)), []
    layer.register_full_backward_hook(lambda *_: seen.append("backward"))
    add_to(torch.zeros(3, 4, 7, 7), layer, images()).sum().backward()
    assert seen == ["backward"]
