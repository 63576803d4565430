"""grasp against two backward passes written out plainly, on every kind of layer, and against published values."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import zcpipe
from zcpipe.errors import UnsupportedError
from zcpipe.proxies import grasp
from zcpipe.scoring.guard import untouched
from zcpipe.scoring.network import ScoredNetwork
from zcpipe.spaces.nasbench201 import NasBench201


def by_definition(model, x, y, loss=F.cross_entropy):
    """-sum(w (H g)) of each layer, and sum |w (H g)|, which says how exact it can be."""
    network = ScoredNetwork(model, x, y, None, None)
    weights = [weight.requires_grad_() for weight in network.layers.values()]
    torch.manual_seed(0)
    with sdpa_kernel(SDPBackend.MATH):
        output = model(*x)
    value = loss(output[0] if isinstance(output, tuple) else output, y)
    first = torch.autograd.grad(value, weights, create_graph=True, allow_unused=True)
    z = sum((g.detach() * g).sum() for g in first if g is not None)
    second = torch.autograd.grad(z, weights, allow_unused=True, materialize_grads=True)
    products = [w.detach() * h for w, h in zip(weights, second, strict=True)]
    for weight in weights:
        weight.requires_grad_(False)
    return [-float(p.sum()) for p in products], [float(p.abs().sum()) for p in products]


def measure(model, x, y, loss=None):
    network = ScoredNetwork(model, x, y, loss, None)
    with untouched(network.modules):
        return grasp.curvatures(network)


def check(model, *x, tolerance=1e-9, loss=None):
    """In float64 against the definition."""
    model = model.double().train()
    x = [part.double() if part.is_floating_point() else part for part in x]
    y = torch.arange(len(x[0])) % 3
    before = {name: id(p) for name, p in model.named_parameters()}
    found = measure(model, x, y, loss)
    assert {name: id(p) for name, p in model.named_parameters()} == before
    assert not any("forward" in vars(module) for module in model.modules())
    for p in model.parameters():
        p.requires_grad_(False)
    expected, sizes = by_definition(model, x, y, loss or F.cross_entropy)
    assert any(sizes)
    for value, wanted, size in zip(found, expected, sizes, strict=True):
        assert value == pytest.approx(wanted, rel=0, abs=tolerance * max(size, 1e-12))


@pytest.fixture
def one_pass(monkeypatch):
    """Two backward passes are not allowed."""
    monkeypatch.setattr(grasp, "_twice_backward", lambda *_: pytest.fail("went through two backward passes"))


@pytest.fixture
def two_passes(monkeypatch):
    """Two backward passes must happen."""
    calls, original = [], grasp._twice_backward
    monkeypatch.setattr(grasp, "_twice_backward", lambda *given: calls.append(1) or original(*given))
    yield
    assert calls


def images(channels=3, batch=5, size=8):
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(1))


def head(channels):
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 3)]


def seeded(build):
    torch.manual_seed(7)
    return build()


CHAINS = {
    "bias-free before batch norm": lambda: [nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()],
    "bias": lambda: [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU()],
    "grouped and dilated": lambda: [
        nn.Conv2d(3, 6, 3, groups=3, padding=2, dilation=2),
        nn.BatchNorm2d(6),
        nn.Conv2d(6, 4, 1, bias=False),
        nn.ReLU6(),
    ],
    "strides and other paddings": lambda: [
        nn.Conv2d(3, 4, 3, stride=2, padding=1, padding_mode="reflect"),
        nn.Hardswish(),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
    ],
    "transposed": lambda: [nn.ConvTranspose2d(3, 4, 2, stride=2), nn.BatchNorm2d(4, affine=False), nn.ReLU()],
    "norms": lambda: [
        nn.Conv2d(3, 4, 3),
        nn.GroupNorm(2, 4),
        nn.SiLU(),
        nn.Conv2d(4, 4, 3),
        nn.InstanceNorm2d(4),
        nn.LayerNorm(4),
        nn.GELU(),
    ],
    "pools": lambda: [
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.AvgPool2d(3, 1, 1, count_include_pad=False),
        nn.ReLU(),
        nn.Conv2d(4, 4, 1),
        nn.MaxPool2d(2),
        nn.AvgPool2d(3, 1, 1),
        nn.Sigmoid(),
    ],
    "in place": lambda: [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1)],
    "dead": lambda: [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.0)],
    "norm of the image": lambda: [nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.Tanh()],
}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", CHAINS)
def test_is_its_definition(one_pass, name, channels_last):
    model = seeded(lambda: nn.Sequential(*CHAINS[name](), *head(4)))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d) and module.affine:
                module.weight.normal_()
                module.bias.normal_()
                module.weight[0] = 0
    x = images()
    check(model, x.contiguous(memory_format=torch.channels_last) if channels_last else x)


@settings(max_examples=15)
@given(st.integers(2, 5), st.integers(1, 5), st.floats(-30, 30), st.integers(0, 2**31))
def test_batch_norm_of_any_images(batch, channels, offset, seed):
    torch.manual_seed(seed)
    norm = nn.BatchNorm2d(channels, eps=10.0 ** torch.randint(-6, 0, ()).item())
    model = nn.Sequential(nn.Conv2d(2, channels, 1), norm, nn.Tanh(), *head(channels))
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    check(model, images(2, batch, 3) + offset, tolerance=1e-7)


class Foreign(nn.Module):
    def __init__(self, operation):
        super().__init__()
        self.operation = operation

    def forward(self, x):
        return self.operation(x)


OPERATIONS = {
    "activations": [nn.ELU(), nn.LeakyReLU(), nn.Softplus(), nn.Mish(), nn.GELU(approximate="tanh")],
    "functions": [
        lambda x: x.clamp(-0.2, 0.3).abs().sqrt() + (x.exp() + 1).log() - 1 / (2 - x.tanh()),
        lambda x: torch.stack([*x.unbind(1)], 1).roll(1, 2).repeat(1, 1, 2, 1),
        lambda x: torch.where(x > 0, x, -x) * torch.softmax(x.flatten(2), 2).reshape(x.shape),
        lambda x: (
            torch.cat([sum(x.chunk(2, 1)) ** 2] * 2, 1)
            + x.split([2, 2], 1)[1].masked_fill(x[:, :2] < 0, 0.3).repeat(1, 2, 1, 1)
        ),
        lambda x: F.pad(x, (1, 1, 0, 2)) + F.pad(x, (0, 2, 1, 1), mode="replicate"),
        lambda x: F.adaptive_avg_pool2d(x, 3) + F.adaptive_avg_pool2d(x, 1),
        lambda x: torch.einsum("nchw,nchv->ncwv", x, x) + torch.baddbmm(x[:, 0], x[:, 1], x[:, 2])[:, None],
        lambda x: F.dropout(x, 0.4),
        lambda x: x.new_zeros(x.shape) + torch.zeros_like(x) + x,
        lambda x: F.interpolate(x, 6) + F.interpolate(x, 6, mode="bilinear"),
        lambda x: F.pixel_shuffle(x, 2).index_select(1, torch.tensor([0, 0, 0, 0])),
    ],
}


@pytest.mark.parametrize("operation", OPERATIONS["activations"] + OPERATIONS["functions"])
def test_operations_that_are_known_are_right(one_pass, operation):
    parts = nn.Conv2d(3, 4, 3), Foreign(operation), nn.Tanh(), nn.Conv2d(4, 4, 1), nn.Tanh()
    check(seeded(lambda: nn.Sequential(*parts, *head(4))), images())


@pytest.mark.parametrize("norm", [F.layer_norm, lambda x, *_: F.batch_norm(x, None, None, training=True)])
def test_normalisations_by_hand_take_two_backward_passes(two_passes, norm):
    """What torch's tangents of them give is wrong when differentiated again."""
    parts = nn.Conv2d(3, 4, 3), Foreign(lambda x: norm(x, x.shape[1:])), nn.Tanh()
    check(seeded(lambda: nn.Sequential(*parts, *head(4))), images())


class Odd(nn.Module):
    """A shared convolution, a weight used by hand, branches, a weight that two modules share, layers never called."""

    def __init__(self):
        super().__init__()
        self.stem, self.shared = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.side, self.idle = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1, bias=False), nn.Conv2d(4, 4, 1)
        self.tied = nn.Conv2d(4, 4, 1)
        self.tied.weight = self.side.weight
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.shared(F.relu(self.norm(self.shared(x))))
        y = self.tied(torch.tanh(self.side(x))) * F.conv2d(x, self.shared.weight, padding=1).sigmoid()
        z = torch.cat([x, y], 1).mean((2, 3))
        return self.head(z) + F.linear(z * z, self.head.weight), z


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.block(self.embed(x)).mean(1))


def test_odd_networks(one_pass):
    check(seeded(Odd), images())


def test_attention(one_pass):
    check(seeded(Attention), torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(2)))


def test_sequences_and_volumes(one_pass):
    check(
        seeded(lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))),
        torch.randn(4, 2, 8),
    )
    check(
        seeded(lambda: nn.Sequential(nn.Conv3d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))),
        torch.randn(4, 2, 3, 3, 3),
    )


def test_tokens(one_pass):
    model = seeded(
        lambda: nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 3))
    )
    check(model, torch.arange(12).reshape(4, 3) % 7)


def test_any_loss(one_pass):
    check(seeded(Odd), images(), loss=lambda output, y: (output.softmax(1)[:, 0] - y).square().mean().sqrt())


def test_dropout_drops_the_same_in_both_gradients(one_pass):
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.5), *head(4))).train()
    assert any(measure(model, [images()], torch.arange(5) % 3))


class _Doubled(torch.autograd.Function):
    """A function of somebody's own, without tangents."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, g):
        return 2 * g


def test_operations_without_tangents_take_two_backward_passes(two_passes):
    check(seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), Foreign(_Doubled.apply), nn.Tanh(), *head(4))), images())


def test_memory_that_runs_out_is_no_reason_for_two_backward_passes(one_pass):
    """torch's CPU allocator raises a plain RuntimeError."""

    def exhausted(x):
        if torch.autograd.forward_ad.unpack_dual(x).tangent is not None:
            torch.empty(1 << 60)
        return x

    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), Foreign(exhausted), *head(4)))
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
        measure(model, [images()], torch.arange(5) % 3)


@pytest.mark.skipif(not zcpipe.ops.available(), reason="needs the native library")
def test_operations_that_lose_tangents_silently_are_found_out(two_passes):
    """torch takes the derivative along a direction for zero where an operation is registered without it."""
    pool = torch.ops.zcpipe.avg_pool3x3
    check(seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), Foreign(pool), nn.Tanh(), *head(4))), images())


def test_native_operations_see_no_tangents(monkeypatch):
    """Only values and tangents by themselves go to them, whatever stands in the network."""
    unpack, seen = torch.autograd.forward_ad.unpack_dual, []

    def watch(name):
        original = getattr(grasp, name)

        def watched(*given):
            seen.append(name)
            assert all(unpack(t).tangent is None for t in given if isinstance(t, torch.Tensor))
            return original(*given)

        monkeypatch.setattr(grasp, name, watched)

    for name in ("avg_pool3x3", "_apply_jacobian"):
        watch(name)
    check(seeded(lambda: nn.Sequential(*CHAINS["pools"](), *head(4))), images())
    assert {"avg_pool3x3", "_apply_jacobian"} <= set(seen) or not zcpipe.ops.available()


def test_a_network_without_layers_is_unsupported():
    with pytest.raises(UnsupportedError, match="no convolution or linear layer"):
        measure(
            nn.Sequential(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), [images()], torch.arange(5) % 3
        )


def test_lower_precision_takes_two_backward_passes(two_passes):
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), *head(4))).bfloat16()
    assert all(map(np.isfinite, measure(model, [images().bfloat16()], torch.arange(5) % 3)))


def test_infinite_activations_are_not_a_number():
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), *head(4)))
    with torch.no_grad():
        model[0].weight.fill_(1e38)
    scores = zcpipe.score(model, images(), torch.arange(5) % 3, "grasp")
    assert scores["grasp"] is None
    assert scores.failures[0].kind == "nonfinite"


def reference(data, name, dtype):
    values = json.loads(data("reference/values.json").read_text())["values"][name]
    space = NasBench201()
    model = space.build(space.parse(values["arch_str"]), "cifar10", cells_per_stage=1).model
    weights = {key: torch.from_numpy(array) for key, array in np.load(data(f"reference/{name}.npz")).items()}
    zcpipe.initialise(model)  # norm layers, which the file leaves out
    model.load_state_dict(weights, strict=False)
    batch = np.load(data("reference/batch16.npz"))
    x, y = (torch.from_numpy(batch[key]) for key in ("x", "y"))
    return model.to(dtype), x.to(dtype), y, values


NAMES = [f"arch{i:02d}" for i in range(0, 24, 2)]


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_published_values(one_pass, data, name):
    model, x, y, values = reference(data, name, torch.float64)
    exact = zcpipe.score(model, x, y, "grasp")
    assert exact["grasp"] == pytest.approx(values["naslib_f64"]["grasp"], rel=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_is_as_exact_in_float32_as_two_backward_passes(one_pass, data, name):
    """A rounding error may decide a ReLU: then two passes are as far from float64."""
    model, x, y, values = reference(data, name, torch.float32)
    x = x.contiguous(memory_format=torch.channels_last)
    scores = zcpipe.score(model, x, y, "grasp")
    assert scores["grasp"] == pytest.approx(values["zcnas_f32"]["grasp"], rel=1e-3)
    network = ScoredNetwork(model, [x], y, None, None)
    with untouched(network.modules):
        plain, _ = by_definition(model, [x], y)
    model.double()
    with untouched(network.modules):
        exact, sizes = by_definition(model, [x.double()], y)
    found = scores.statistics["grasp@layer"]
    for value, other, wanted, size in zip(found, plain, exact, sizes, strict=True):
        assert value == pytest.approx(wanted, rel=0, abs=max(1e-6 * size, 10 * abs(other - wanted)))
