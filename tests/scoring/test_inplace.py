"""Networks that compute in place on what a pass still needs have the values that torch has, or its error."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import zcpipe
from zcpipe.ops import available
from zcpipe.proxies import grasp
from zcpipe.scoring import tangents
from zcpipe.scoring.guard import untouched
from zcpipe.scoring.network import ScoredNetwork, _GradientTaps
from zcpipe.scoring.rewrite import fast_operations
from zcpipe.spaces.layers import Dag

CHANNELS = 6
BLOCKS = ["stem", "body.0", "body.1"]
X = torch.randn(8, 3, 10, 10, generator=torch.Generator().manual_seed(1))
Y = torch.arange(8) % 4


def norm_of(*first):
    return nn.Sequential(*first, nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False), nn.BatchNorm2d(CHANNELS))


def pre_activation():
    return norm_of(nn.ReLU())


def cell():
    layers = {"a": pre_activation(), "b": nn.Identity(), "c": pre_activation()}
    return Dag([(0, 1), (0, 2), (1, 2)], layers, output=2)


def pool():
    return Dag([(0, 1)], {"a": nn.AvgPool2d(3, 1, 1, count_include_pad=False)}, output=1)


def add(x, y):
    x += y
    return x


def subtract(x, y):
    x -= y
    return x


class Block(nn.Module):
    """A shortcut that may be added in place."""

    def __init__(self, branch, join):
        super().__init__()
        self.branch, self.join = branch, join

    def forward(self, x):
        return self.join(x, self.branch(x))


class Net(nn.Module):
    def __init__(self, join=add, branch=pre_activation):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, CHANNELS, 3, padding=1, bias=False), nn.BatchNorm2d(CHANNELS))
        self.body = nn.Sequential(Block(branch(), join), Block(branch(), join))
        self.head = nn.Linear(CHANNELS, 4)

    def forward(self, x):
        return self.head(F.relu(self.body(self.stem(x))).mean((2, 3)))


def score(model, proxies, **options):
    return zcpipe.score(model, X, Y, proxies, unsupported="skip", **options)


def assert_same(ours, expected):
    assert expected.status == "ok"
    for name, value in expected.items():
        assert ours[name] == pytest.approx(value, rel=1e-4), name


@pytest.mark.parametrize("branch", [pre_activation, cell])
@pytest.mark.parametrize(
    "proxies",
    [["grad_norm", "snip", "plain", "jacob_cov"], ["snip", "fisher", "nwot"], ["grad_norm_global"], ["grasp"]],
    ids=" ".join,
)
def test_shortcuts_added_in_place_change_no_value(proxies, branch):
    assert_same(score(Net(add, branch), proxies), score(Net(torch.add, branch), proxies))


@pytest.mark.parametrize("branch", [pre_activation, cell])
def test_nor_those_of_the_block_pass(branch):
    assert_same(
        score(Net(add, branch), ["aznas"], blocks=BLOCKS), score(Net(torch.add, branch), ["aznas"], blocks=BLOCKS)
    )


def test_nor_those_of_passes_in_one():
    proxies = ["aznas", "fisher", "jacob_cov"]
    ours, expected = (score(Net(join), proxies, blocks=BLOCKS, protocol="fused") for join in (add, torch.add))
    assert_same(ours, expected)


def curvatures(join):
    """With gradients that are right, so that only the pass of second derivatives is looked at."""
    model, exact = Net(join), Net(torch.add if join is add else torch.sub).double()
    known = ScoredNetwork(exact, [X.double()], Y, None, None)
    network = ScoredNetwork(model, [X.contiguous(memory_format=torch.channels_last)], Y, None, None)
    with untouched(known.modules):
        gradients = known.gradients
        expected = grasp.curvatures(known)
    gradients.gradients[:] = [gradient.float() for gradient in gradients.gradients]
    network.gradients = gradients
    with untouched(network.modules):
        return grasp.curvatures(network), expected


@pytest.mark.usefixtures("native")
def test_second_derivatives_of_what_is_subtracted_in_place(monkeypatch):
    counted = []
    apply = tangents._Steps.apply
    monkeypatch.setattr(tangents._Steps, "apply", lambda *a: counted.append(1) or apply(*a))
    found, expected = curvatures(subtract)
    assert counted
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-4 * max(map(abs, expected)))


@pytest.mark.parametrize(
    "proxies", [["snip"], ["fisher"], ["grad_norm_global"], ["grasp"], ["trainability"]], ids=" ".join
)
def test_what_torch_refuses_is_refused_in_its_words(proxies):
    """torch's convolutions keep what enters them."""
    scores = score(Net(add, norm_of), proxies, blocks=BLOCKS)
    assert list(scores.values()) == [None]
    assert "one of the variables needed for gradient computation" in scores.failures[0].message


@pytest.mark.parametrize("branch", [norm_of, pool])
def test_layers_that_need_not_know_what_entered_them_stay_fused(branch):
    ours, expected = (score(Net(join, branch), "jacob_cov") for join in (add, torch.add))
    assert ours.status == "ok" and dict(ours) == dict(expected)


class Activated(nn.Module):
    """Begins with an activation of what it is given."""

    def __init__(self, channels, inplace):
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(channels, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()
        self.begin = F.relu_ if inplace else F.relu  # a flag called inplace would be switched off

    def forward(self, x):
        return self.relu(self.norm(self.conv(self.begin(x))))


def test_blocks_that_begin_in_place_are_measured_in_every_pass():
    """Where no weight asks for a gradient, a block's map is what the graph of the next one begins with."""
    scores = []
    for inplace in (True, False):
        torch.manual_seed(0)
        body = [Activated(3, inplace=False), Activated(4, inplace), Activated(4, inplace)]
        model = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
        scores.append(score(model, ["aznas", "linear_regions"], blocks=["0", "1", "2"]))
    assert_same(*scores)


class OnInput(nn.Module):
    """Writes to the network's own input."""

    def __init__(self, join):
        super().__init__()
        torch.manual_seed(0)
        self.branch = nn.Sequential(nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3))
        self.head, self.join = nn.Linear(3, 4), join

    def forward(self, x):
        return self.head(F.relu(self.join(x, self.branch(x))).mean((2, 3)))


def test_a_pass_that_starts_over_starts_from_the_same_images():
    proxies = ["snip", "grad_norm_global"]
    assert_same(score(OnInput(add), proxies), score(OnInput(torch.add), proxies))


@pytest.mark.skipif(not available(), reason="the native library is not built")
def test_steps_whose_input_took_their_output_are_let_go():
    model = Net().train()
    modules = dict(model.named_modules())
    with untouched(modules), fast_operations(modules, taps=_GradientTaps()):
        x = model.stem(X.contiguous(memory_format=torch.channels_last).requires_grad_())
        y = model.body[0].branch(x)
        kept = weakref.ref(y.grad_fn.kept[0][1])
        x += y
    del x, y
    gc.collect()
    assert kept() is None
