"""The zen score against its definition in plain torch, and against NASLib's values."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from zcpipe.errors import UnsupportedError
from zcpipe.ops.philox import Stream
from zcpipe.proxies.zen import zen
from zcpipe.scoring.guard import untouched
from zcpipe.scoring.network import ScoredNetwork
from zcpipe.spaces import get_space


def stream(purpose):
    return Stream.of(3, "", "", 0, purpose)


class Given:
    """In place of random streams: batches given, one after the other."""

    def __init__(self, *batches):
        self.batches = list(batches)

    def __call__(self, purpose):
        return self

    def normal_(self, tensor):
        return tensor.copy_(self.batches.pop(0))


def score(model, x, stream=stream):
    with untouched(dict(model.named_modules())):
        return zen(ScoredNetwork(model, [x], None, None, stream))[0]


def draw_normals(model):
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class Network(nn.Module):
    def __init__(self, pool=True, norm=True):
        super().__init__()
        torch.manual_seed(1)
        norms = [nn.BatchNorm2d(6) if norm else nn.Identity(), nn.BatchNorm2d(5) if norm else nn.Identity()]
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3), norms[0], nn.ReLU(inplace=True), nn.Conv2d(6, 5, 3, stride=2), norms[1], nn.ReLU()
        )
        self.pool = nn.AdaptiveAvgPool2d(1) if pool else None
        self.head = nn.Linear(5, 4)
        draw_normals(self)

    def forward(self, x):
        x = self.body(x)
        return self.head(x.mean((2, 3)) if self.pool is None else self.pool(x).flatten(1))


@pytest.mark.parametrize("channels_last", [True, False])
def test_zen_is_its_definition(channels_last):
    model, x = Network(), torch.randn(8, 3, 9, 9)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    first, second = (stream(f"zen:{part}:0").normal_(torch.empty(8, 3, 9, 9)) for part in ("x", "step"))
    plain = Network().train()
    with torch.no_grad():
        moved = (plain.body(first) - plain.body(first + 0.01 * second)).abs().sum((1, 2, 3)).mean().log()
    scales = sum(module.running_var.mean().sqrt().log() for module in plain.modules() if hasattr(module, "running_var"))
    assert score(model, x) == pytest.approx(float(moved + scales), abs=5e-5)  # a logarithm of float32 differences


def test_zen_leaves_the_network_as_it_was():
    model = Network()
    with torch.no_grad():
        model.body[1].running_var.fill_(7.0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    attributes = [sorted(vars(module)) for module in model.modules()]
    assert score(model, torch.randn(4, 3, 9, 9)) == score(model, torch.randn(4, 3, 9, 9))
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    assert [sorted(vars(module)) for module in model.modules()] == attributes
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_without_a_pool_the_last_linear_layer_says_where_the_features_end():
    model, x = Network(pool=False, norm=False), torch.randn(8, 3, 9, 9)
    first, second = torch.randn(8, 3, 9, 9), torch.randn(8, 3, 9, 9)
    with torch.no_grad():
        before, after = (model.body(batch).mean((2, 3)) for batch in (first, first + 0.01 * second))
    expected = math.log((after - before).abs().sum(1).mean())
    assert score(model, x, Given(first, second)) == pytest.approx(expected, abs=5e-5)


def test_features_are_what_they_were_when_they_entered():
    class Residual(nn.Module):
        def __init__(self, inplace):
            super().__init__()
            self.first, self.last, self.writes = nn.Linear(6, 4), nn.Linear(4, 4), inplace

        def forward(self, x):
            x = self.first(x)
            if not self.writes:
                return x + self.last(x)
            x += self.last(x)
            return x

    scores = []
    for inplace in (False, True):
        torch.manual_seed(1)
        scores.append(score(Residual(inplace), torch.randn(8, 6)))
    assert scores[1] == scores[0]


def test_dropout_drops_the_same_from_both_inputs():
    model = Network()
    x = torch.randn(8, 3, 16, 16)
    plain = score(model, x)
    model.body.append(nn.Dropout(0.2))
    assert score(model, x) == pytest.approx(plain, abs=0.2), "not nats higher, as where the two drop differently"


def test_a_layer_may_be_called_by_keyword():
    class Keyword(Network):
        def forward(self, x):
            return self.head(input=self.body(x).mean((2, 3)))

    x = torch.randn(8, 3, 9, 9)
    assert score(Keyword(pool=False, norm=False), x) == score(Network(pool=False, norm=False), x)


def test_no_pool_and_no_linear_layer_is_unsupported():
    with pytest.raises(UnsupportedError, match="adaptive pool"):
        score(nn.Conv2d(3, 4, 3), torch.randn(4, 3, 8, 8))


def test_integers_are_unsupported():
    with pytest.raises(UnsupportedError, match="integers"):
        score(nn.Embedding(5, 3), torch.zeros(4, 2, dtype=torch.int64))


def test_features_without_the_input_are_minus_infinity():
    model = Network()
    nn.init.zeros_(model.body[3].weight)
    assert score(model, torch.randn(4, 3, 9, 9)) == -math.inf


def test_overflow_is_not_a_number():
    model = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(40)), nn.AdaptiveAvgPool2d(1))
    for layer in model[:-1]:
        nn.init.constant_(layer.weight, 1e3)
    assert math.isnan(score(model, torch.randn(4, 3, 8, 8)))


def test_zen_matches_naslib_on_12_networks(data):
    """With NASLib's own draws: its seed, the order of its modules, then both batches."""
    values = json.loads(data("reference/values.json").read_text())["values"]
    x = torch.from_numpy(np.load(data("reference/batch16.npz"))["x"])
    space = get_space("nasbench201")
    for expected in values.values():
        arch = space.parse(expected["arch_str"])
        model = space.build(arch, "cifar10", cells_per_stage=1, full=True).model
        torch.manual_seed(123)
        draw_normals(model)
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        assert all((norm.weight == 1).all() and (norm.bias == 0).all() for norm in norms)
        given = Given(torch.randn(x.shape), torch.randn(x.shape))
        assert score(model, x, given) == pytest.approx(expected["naslib_f32"]["zen"], rel=1e-5)
