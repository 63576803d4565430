"""Auto-Prox, against a plain computation with hooks on whole modules."""

import pytest
import torch
from torch import nn

import zcpipe
from zcpipe.errors import UnsupportedError

LABELS = torch.tensor([0, 2, 1, 3, 2])


class Net(nn.Module):
    """A tensor that two layers read, a convolution, tokens, and a layer that is called twice."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.norm = nn.LayerNorm(8)
        self.left, self.right = nn.Linear(8, 8), nn.Linear(8, 8)
        self.twice = nn.Linear(8, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.norm(self.patch(x).flatten(2).transpose(1, 2))
        x = x + torch.tanh(self.left(x)) * self.right(x)
        x = x + self.twice(torch.relu(self.twice(x)))
        return self.head(x.mean(1))


def plain(model, x, y):
    """Mean over layers of l1_norm(normalise(gradient at the input)) + mean(sqrt of positive weights)."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    found = {name: [] for name in layers}
    for name, layer in layers.items():
        layer.register_full_backward_hook(lambda m, gin, gout, name=name: found[name].append(gin[0].flatten()))
    nn.functional.cross_entropy(model(x.requires_grad_()), y).backward()
    total = 0.0
    for name, layer in layers.items():
        g = torch.cat(found[name]).double()
        w = layer.weight.detach().double()
        w[w <= 0] = 0
        total += float(((g - g.mean()) / g.std()).abs().sum() / g.numel()) + float(w.sqrt().mean())
    return total / len(layers)


@pytest.mark.parametrize("seed", range(3))
def test_is_the_published_expression(seed):
    torch.manual_seed(seed)
    model, x = Net(), torch.randn(5, 3, 8, 8)
    scores = zcpipe.score(model, x, LABELS, "auto_prox")
    nodes = [node["name"] for node in scores.nodes.to_pylist()]
    assert nodes == ["patch", "left", "right", "twice", "head"]
    assert scores["auto_prox"] == pytest.approx(plain(model, x, LABELS), rel=1e-6)


def test_layers_may_be_called_by_keyword():
    class Named(Net):
        def forward(self, x):
            return self.head(input=self.patch(input=x).flatten(2).mean(2))

    class Plain(Net):
        def forward(self, x):
            return self.head(self.patch(x).flatten(2).mean(2))

    torch.manual_seed(0)
    named, plain_, x = Named(), Plain(), torch.randn(5, 3, 8, 8)
    plain_.load_state_dict(named.state_dict())
    assert dict(zcpipe.score(named, x, LABELS, "auto_prox")) == dict(zcpipe.score(plain_, x, LABELS, "auto_prox"))


@pytest.mark.parametrize("call", ["positional", "keyword", "swapped"])
def test_layers_may_take_further_arguments(call):
    class Upsampling(nn.Module):
        def __init__(self, size):
            super().__init__()
            self.down, self.size = nn.Conv2d(3, 4, 3, 2, 1), size
            self.up, self.head = nn.ConvTranspose2d(4, 4, 3, 2, 1, output_padding=1), nn.Linear(4, 4)

        def forward(self, x):
            h = self.down(x).relu()
            calls = {
                "plain": lambda: self.up(h),
                "positional": lambda: self.up(h, x.shape[2:]),
                "keyword": lambda: self.up(input=h, output_size=x.shape[2:]),
                "swapped": lambda: self.up(output_size=x.shape[2:], input=h),
            }
            return self.head(calls[self.size]().mean((2, 3)))

    torch.manual_seed(0)
    sized, plain_, x = Upsampling(call), Upsampling("plain"), torch.randn(5, 3, 8, 8)
    plain_.load_state_dict(sized.state_dict())
    scores = zcpipe.score(sized, x, LABELS, "auto_prox")
    assert scores.status == "ok" and dict(scores) == dict(zcpipe.score(plain_, x, LABELS, "auto_prox"))


def test_inputs_may_require_gradients():
    torch.manual_seed(0)
    model, x = Net(), torch.randn(5, 3, 8, 8)
    expected = zcpipe.score(model, x, LABELS, "auto_prox")
    assert dict(zcpipe.score(model, x.clone().requires_grad_(), LABELS, "auto_prox")) == dict(expected)


def test_layers_that_the_output_does_not_depend_on_do_not_count():
    class Siding(Net):
        def __init__(self):
            super().__init__()
            self.dead = nn.Linear(8, 8)

        def forward(self, x):
            self.dead(torch.ones(2, 8))
            return super().forward(x)

    torch.manual_seed(0)
    model, x = Siding(), torch.randn(5, 3, 8, 8)
    alone = Net()
    alone.load_state_dict(model.state_dict(), strict=False)
    scores = zcpipe.score(model, x, LABELS, "auto_prox")
    assert scores["auto_prox"] == zcpipe.score(alone, x, LABELS, "auto_prox")["auto_prox"]
    assert scores.statistics["auto_prox@layer"][-1] == 0


def test_equal_gradients_have_no_spread():
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 1, bias=False)

        def forward(self, x):
            return self.layer(x)

    model = Mean()
    with torch.no_grad():
        model.layer.weight.fill_(0.25)
    scores = zcpipe.score(model, torch.ones(1, 4), torch.ones(1), "auto_prox", loss=lambda out, y: out.sum())
    assert scores["auto_prox"] == pytest.approx(0.5)  # sqrt(0.25) alone


def test_layers_that_no_module_computes_are_refused():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.MultiheadAttention(6, 2, batch_first=True), nn.Linear(6, 4)

        def forward(self, x):
            return self.b(self.a(x, x, x)[0].mean(1))

    with pytest.raises(UnsupportedError, match=r"input of layer 'a\.in_proj_weight' cannot be seen"):
        zcpipe.score(Net(), torch.randn(5, 3, 6), LABELS, "auto_prox")
