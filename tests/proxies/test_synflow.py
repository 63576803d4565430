"""synflow and synflow_bn against explicit matrices, numbers of any size, and published values."""

import json
import math
from itertools import pairwise

import mpmath
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import zcpipe
from zcpipe.errors import UnsupportedError
from zcpipe.scoring import absolute
from zcpipe.scoring.absolute import absolute_gradients
from zcpipe.scoring.guard import untouched
from zcpipe.spaces.nasbench201 import NasBench201


def score(model, x, proxies="synflow"):
    return zcpipe.score(model, x, proxies=proxies)


def flows(model, *x, norm="drop"):
    """ln(sum |w dR/dw|) of each layer."""
    modules = dict(model.named_modules())
    with untouched(modules):
        gradients = absolute_gradients(model, modules, x, norm)
    assert all(bool(torch.isfinite(g).all()) for g in gradients.gradients)
    sums = np.array([float((w * g).abs().sum()) for w, g in zip(gradients.weights, gradients.gradients, strict=True)])
    with np.errstate(divide="ignore"):
        return np.log(sums) + gradients.log_scale


NAMES = [f"arch{i:02d}" for i in range(0, 24, 2)]


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_published_values(data, name):
    values = json.loads(data("reference/values.json").read_text())["values"][name]
    space = NasBench201()
    model = space.build(space.parse(values["arch_str"]), "cifar10", cells_per_stage=1).model
    weights = {key: torch.from_numpy(array) for key, array in np.load(data(f"reference/{name}.npz")).items()}
    zcpipe.initialise(model).load_state_dict(weights, strict=False)
    scores = score(model, torch.from_numpy(np.load(data("reference/batch16.npz"))["x"]), "synflow,synflow_bn")
    for proxy in ("synflow", "synflow_bn"):
        assert math.exp(scores[proxy]) == pytest.approx(values["zcnas_f32"][proxy], rel=1e-6)


def matrices(widths, seed, bias=False):
    torch.manual_seed(seed)
    return [nn.Linear(a, b, bias=bias) for a, b in pairwise(widths)]


def by_matrices(layers, residual=False):
    """The layers' flows with mpmath, ReLUs (which do nothing here) left out; [+ x] behind every layer but the last."""
    weights = [mpmath.matrix(layer.weight.detach().double().abs().tolist()) for layer in layers]
    biases = [None if one.bias is None else mpmath.matrix(one.bias.detach().double().abs().tolist()) for one in layers]
    inputs = [mpmath.matrix([1] * weights[0].cols)]
    for w, b in zip(weights[:-1], biases, strict=False):
        z = w * inputs[-1]
        z = z if b is None else z + b
        inputs.append(z + inputs[-1] if residual else z)
    gradient, found = mpmath.matrix([1] * weights[-1].rows), []
    for i in range(len(weights) - 1, -1, -1):
        product = weights[i] * inputs[i]
        found.append(mpmath.log(sum(product[k] * gradient[k] for k in range(product.rows))))
        before = weights[i].T * gradient
        gradient = before + gradient if residual and i < len(weights) - 1 else before
    return [float(value) for value in reversed(found)]


@pytest.mark.parametrize("bias", [False, True])
def test_is_the_flow_through_the_matrices(bias):
    layers = matrices([5, 7, 3, 4], 0, bias)
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(inplace=True), layers[2])
    scores = score(model, torch.randn(6, 5))
    expected = by_matrices(layers)
    np.testing.assert_allclose(scores.statistics["synflow@layer"], expected, rtol=1e-12)
    assert scores["synflow"] == pytest.approx(math.log(sum(map(math.exp, expected))), rel=1e-12)


class Deep(nn.Module):
    def __init__(self, layers, residual):
        super().__init__()
        self.layers, self.residual = nn.ModuleList(layers), residual

    def forward(self, x):
        for layer in self.layers[:-1]:
            x = F.relu(layer(x)) + x if self.residual else F.relu(layer(x))
        return self.layers[-1](x)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("gain", [1e-3, 1.0, 30.0])
def test_a_thousand_layers(residual, gain, bias):
    layers = matrices([3] * 1001, 1, bias)
    with torch.no_grad():
        for layer in layers:
            layer.weight.mul_(gain)
    model = Deep(layers, residual)
    scores = score(model, torch.randn(2, 3))
    expected = np.array(by_matrices(layers, residual))
    found = scores.statistics["synflow@layer"]
    # What is 300 orders of magnitude below the total may be nothing.
    visible = expected > expected.max() - 690
    np.testing.assert_allclose(found[visible], expected[visible], rtol=1e-9)
    assert (found[~visible] <= expected.max() - 600).all()
    assert scores["synflow"] == pytest.approx(np.logaddexp.reduce(expected), rel=1e-9)


def test_seven_hundred_convolutions_and_their_concatenations():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.ModuleList(nn.Conv2d(8, 4, 3, padding=1) for _ in range(700))
            self.head = nn.Linear(8, 3)

        def forward(self, x):
            x = torch.cat([x] * 4, 1)
            for conv in self.body:
                x = torch.cat([F.relu(conv(x)), F.max_pool2d(x, 3, 1, 1)[:, 4:]], dim=1)
            return self.head(x.mean((2, 3)))

    torch.manual_seed(0)
    model = Network()
    with torch.no_grad():
        for conv in model.body:
            conv.weight.mul_(4)
    found = flows(model, torch.randn(3, 2, 6, 6))
    assert np.isfinite(found).all() and found.max() > 800
    with torch.no_grad():  # the same, smaller: every path goes through as many factors, but for biases and pools
        for conv in model.body:
            conv.weight.mul_(0.5)
            conv.bias.zero_()
    smaller = flows(model, torch.randn(3, 2, 6, 6))
    assert np.isfinite(smaller).all() and smaller.max() < found.max()


class Mixed(nn.Module):
    """Branches, biases, products, norms and activations that are no lines through zero."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1, bias=False)
        self.norm, self.gate, self.head = nn.GroupNorm(2, 4), nn.Linear(4, 4), nn.Linear(6, 5)
        self.act, self.pool = nn.GELU(), nn.MaxPool2d(2)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x):
        x = self.pool(F.relu(self.a(x)))
        y = x + self.act(self.norm(self.b(x)))
        y = y * self.gate(y.mean((2, 3))).sigmoid()[:, :, None, None] - 0.1 * x
        y = torch.cat([y, self.c(y).expand(-1, 2, -1, -1)], 1).flatten(2).transpose(1, 2)
        return self.head(self.attention(y, y, y)[0].mean(1))


@pytest.mark.parametrize("norm", ["drop", "batch"])
def test_exponents_change_nothing(monkeypatch, norm):
    torch.manual_seed(0)
    model, x = Mixed(), torch.randn(2, 3, 8, 8)
    plain = flows(model, x, norm=norm)
    assert np.isfinite(plain).all()
    monkeypatch.setattr(absolute, "_LARGEST", 0.0)
    np.testing.assert_allclose(flows(model, x, norm=norm), plain, rtol=1e-9)


def test_norm_layers_are_left_out_or_kept():
    torch.manual_seed(0)
    norms = [nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4), nn.LayerNorm(6), nn.RMSNorm(6)]
    for norm in norms:
        conv = nn.Conv2d(3, 4, 3)
        model, bare = (nn.Sequential(conv, *middle, nn.ReLU(), nn.Flatten()) for middle in ([norm], []))
        x = torch.randn(2, 3, 8, 8)
        assert flows(model, x) == pytest.approx(flows(bare, x), rel=1e-12)
        weight = conv.weight.detach().abs().double().requires_grad_()
        state = {"weight": weight, "bias": conv.bias.detach().abs().double()}
        z = torch.func.functional_call(conv, state, torch.ones(1, 3, 8, 8).double())
        z = F.relu(norm.double().train()(z)).sum()
        (gradient,) = torch.autograd.grad(z, weight)
        norm.float()
        assert math.exp(flows(model, x, norm="batch")[0]) == pytest.approx(float((weight * gradient).abs().sum()))


class Activated(nn.BatchNorm2d):
    def forward(self, x):
        return F.relu6(super().forward(x), inplace=True)


class ActivatedGroups(nn.GroupNorm):
    """As timm writes it."""

    def forward(self, x):
        return F.relu6(F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps))


class Gained(nn.LayerNorm):
    """Channels last, in float32, with a gain of its own."""

    def __init__(self, channels):
        super().__init__(channels)
        self.gain = nn.Parameter(torch.tensor(-3.0))

    def forward(self, x):
        y = super().forward(x.permute(0, 2, 3, 1).float()) * self.gain
        return y.to(x.dtype).permute(0, 3, 1, 2)


class Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


def patched(norm):
    forward = norm.forward
    norm.forward = lambda x: F.relu6(forward(x))
    return norm


@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize(
    ("norm", "left"),
    [
        (lambda: Activated(4), nn.ReLU6),
        (lambda: ActivatedGroups(2, 4), nn.ReLU6),
        (lambda: patched(nn.InstanceNorm2d(4)), nn.ReLU6),
        (lambda: Gained(4), lambda: Times(3)),
    ],
)
def test_what_else_a_norm_does_stays(monkeypatch, norm, left, forced):
    if forced:
        monkeypatch.setattr(absolute, "_LARGEST", 0.0)
    torch.manual_seed(0)
    first, head, x = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        first.weight.mul_(10)  # beyond 6
    model = nn.Sequential(first, norm(), head)
    before = dict(vars(model[1]))
    found = flows(model, x)
    assert found == pytest.approx(flows(nn.Sequential(first, left(), head), x), rel=1e-12)
    assert found != pytest.approx(flows(nn.Sequential(first, head), x), rel=1e-3)
    assert vars(model[1]) == before


def test_a_norm_that_cannot_be_left_out_is_unsupported():
    class ByHand(nn.LayerNorm):
        def forward(self, x):
            return F.relu((x - x.mean(-1, keepdim=True)) * self.weight)

    model, x = nn.Sequential(nn.Linear(3, 4), ByHand(4), nn.Linear(4, 2)), torch.randn(5, 3)
    with pytest.raises(UnsupportedError, match=r"'synflow': norm layer 1 \(ByHand\) cannot be left out"):
        score(model, x)
    assert "forward" not in vars(model[1]) and score(model, x, "synflow_bn").status == "ok"


def test_negative_activations_count_by_magnitude_not_by_sign():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 2))
    found = flows(model, torch.randn(3, 4), norm="batch")
    weights = [p.detach().abs().double().requires_grad_() for p in model.parameters()]
    state = dict(zip(dict(model.named_parameters()), weights, strict=True))
    gradients = torch.autograd.grad(torch.func.functional_call(model, state, torch.ones(1, 4).double()).sum(), weights)
    expected = [float((w * g).abs().sum()) for w, g in zip(weights, gradients, strict=True) if w.ndim > 1]
    keep = [e for e, p in zip(expected, [0, 2, 5], strict=False)]
    assert np.exp(found) == pytest.approx(keep, rel=1e-9)


def test_no_flow_is_minus_infinity_not_a_failure():
    class Dead(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3)

        def forward(self, x):
            return self.b(self.a(x) * 0)

    scores = score(Dead(), torch.randn(2, 3))
    assert scores.status == "ok" and scores["synflow"] == -math.inf
    assert list(scores.statistics["synflow@layer"]) == [-math.inf] * 2
    idle = nn.ModuleDict({"used": nn.Linear(3, 2), "idle": nn.Linear(3, 2)})
    idle.forward = lambda x: idle["used"](x)
    scores = score(idle, torch.randn(2, 3))
    assert math.isfinite(scores["synflow"]) and scores.statistics["synflow@layer"][1] == -math.inf


def test_the_first_sample_gives_the_shape_and_tokens_stay():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 2))
    tokens = torch.tensor([[1, 5, 7], [2, 2, 2]])
    weight = model[2].weight.detach().abs().double()
    embedded = model[0].weight.detach().abs().double()[tokens[0]].flatten()
    assert flows(model, tokens) == pytest.approx([math.log(float((weight * embedded).sum()))], rel=1e-12)
    images = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.LazyLinear(2))
    images(torch.randn(1, 3, 5, 6))
    assert (flows(images, torch.randn(2, 3, 5, 6)) == flows(images, torch.zeros(7, 3, 5, 6))).all()


def test_shared_weights_are_one_layer_and_recurrent_ones_count():
    torch.manual_seed(0)
    shared = nn.Linear(3, 3, bias=False)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    w = shared.weight.detach().abs().double().numpy()
    assert math.exp(flows(model, torch.randn(1, 3))[0]) == pytest.approx(2 * (w @ w).sum(), rel=1e-12)
    assert np.isfinite(flows(nn.LSTM(3, 4, batch_first=True), torch.randn(2, 5, 3))).all()


@pytest.mark.parametrize("forced", [False, True])
def test_the_model_is_as_it_was(monkeypatch, forced):
    if forced:
        monkeypatch.setattr(absolute, "_LARGEST", 0.0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.LazyLinear(2))
    model(torch.randn(2, 3, 5, 5))
    model[1].forward = own = model[1].forward
    tensors = {name: (id(t), t.clone(), t.requires_grad) for name, t in model.state_dict(keep_vars=True).items()}
    score(model, torch.randn(2, 3, 5, 5), "synflow,synflow_bn")
    for name, t in model.state_dict(keep_vars=True).items():
        identity, before, wanted = tensors[name]
        assert id(t) == identity and t.dtype == before.dtype and torch.equal(t, before) and t.requires_grad == wanted
    assert vars(model[1])["forward"] is own and "forward" not in vars(model[0])


def test_one_pixel_has_no_batch_statistics():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    scores = score(model, torch.randn(5, 3, 3, 3), "synflow,synflow_bn")
    assert scores["synflow"] is not None and scores["synflow_bn"] is None
    assert "more than 1 value per channel" in scores.failures[0].message


def test_a_network_without_layers_is_unsupported():
    with pytest.raises(UnsupportedError, match="no convolution or linear layer"):
        flows(nn.BatchNorm2d(3), torch.randn(2, 3, 4, 4))


def test_tokens_go_through_a_thousand_layers():
    layers = matrices([3] * 1001, 2)
    with torch.no_grad():
        for layer in layers:
            layer.weight.mul_(30)
    model = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), *layers)
    with torch.no_grad():
        model[0].weight.fill_(-1)
    assert flows(model, torch.tensor([[2]])) == pytest.approx(by_matrices(layers), rel=1e-9)


def test_what_no_exponent_can_hold_is_not_a_number():
    layers = matrices([3] * 1001, 2)
    with torch.no_grad():
        for layer in layers:
            layer.weight.mul_(30)
    scores = score(nn.Sequential(*layers, nn.GELU()), torch.randn(2, 3))
    assert scores["synflow"] is None and scores.failures[0].kind == "nonfinite"
