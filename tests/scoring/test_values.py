"""Statistics give a number for each node: others cost the proxies that read it, by name, and no others."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

import zcpipe
from zcpipe.proxies.base import (
    ActivationStatistic,
    CustomStatistic,
    GradientStatistic,
    InputGradientStatistic,
    JacobianStatistic,
    MapStatistic,
    OutputStatistic,
    Proxy,
    Recipe,
    WeightStatistic,
)
from zcpipe.scoring.measure import Batch, measure, philox_probes
from zcpipe.scoring.values import values_of

BATCH = Recipe(init="kaiming_normal", inputs="data", norm="batch")
ABSOLUTE = Recipe(init="default", inputs="ones", norm="drop", absolute=True)
GIVEN = {
    "one number": (1.0, "float of shape ()"),
    "none": (None, "NoneType of shape ()"),
    "too few": ([1.0], "1 numbers"),
    "too many": ([1.0] * 9, "9 numbers"),
    "rows": (np.ones((2, 2)), "ndarray of shape (2, 2)"),
    "texts": (["a", "b"], "list: could not convert string to float"),
}
KINDS = {
    "map": lambda give: MapStatistic("wrong", "", torch.sum, lambda moments: give),
    "jacobian": lambda give: JacobianStatistic("wrong", "", lambda a, b: a.sum(), lambda moments: give),
    "gradient": lambda give: GradientStatistic("wrong", "", lambda gradients: give),
    "weight": lambda give: WeightStatistic("wrong", "", lambda weights: give),
    "custom by layer": lambda give: CustomStatistic("wrong", "", "layer", lambda network: give),
    "custom by block": lambda give: CustomStatistic("wrong", "", "block", lambda network: give),
}
SINGLE = {
    "input gradient": lambda give: InputGradientStatistic("wrong", "", lambda gradient: give),
    "activation": lambda give: ActivationStatistic("wrong", "", lambda x, total: x.sum(), lambda total: give),
    "output": lambda give: OutputStatistic("wrong", "", lambda products: products.sum(), lambda outputs: give),
}


class Subject:
    """Four blocks and three layers."""

    blocks = ("0", "2", "4", "6")
    loss = None
    pruned = True

    def __init__(self):
        torch.manual_seed(0)
        convolutions = [nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)]
        head = [nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)]
        self.model = nn.Sequential(convolutions[0], nn.ReLU(), convolutions[1], nn.ReLU(), *head)
        self.probe = philox_probes(0, "", "", 0)

    def network(self, recipe, full):
        return nullcontext(self.model)

    def batch(self, recipe):
        return Batch([torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))], torch.tensor([0, 4]))

    def stream(self, purpose):
        return zcpipe.ops.Stream.of(0, "", "", 0, purpose)

    def size(self):
        raise AssertionError("nobody counts here")


def measured(statistic, recipe=BATCH):
    """What came of a proxy of the statistic, and of one beside it in the same pass."""
    beside = GradientStatistic("beside", "", lambda gradients: [1.0] * len(gradients.weights))
    proxies = [Proxy.of(s, recipe=recipe, formula="", paper="", targets=True) for s in (statistic, beside)]
    return measure(Subject(), proxies)


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("kind", KINDS)
def test_another_number_of_them_costs_the_statistics_own_proxies(kind, given):
    give, got = GIVEN[given]
    found = measured(KINDS[kind](give))
    assert found.scores == {"wrong": None, "beside": 3.0}
    (failure,) = found.failures
    assert failure.proxy == "wrong" and "statistic wrong must give" in failure.message
    assert got in failure.message
    assert "wrong" not in found.statistics


@pytest.mark.parametrize("give", [[1.0, 2.0], None, "a"], ids=str)
@pytest.mark.parametrize("kind", SINGLE)
def test_what_is_of_the_network_gives_one(kind, give):
    found = measured(SINGLE[kind](give))
    assert found.scores == {"wrong": None, "beside": 3.0}
    assert [failure.proxy for failure in found.failures] == ["wrong"]
    assert "statistic wrong must give" in found.failures[0].message


def test_so_do_gradients_of_absolute_weights():
    found = measured(GradientStatistic("wrong", "", lambda gradients: [1.0]), ABSOLUTE)
    assert found.scores == {"wrong": None, "beside": 3.0}
    assert "must give 3 numbers, one for each layer, but gave 1 numbers" in found.failures[0].message


def wipes(x, *_):
    x.mul_(0.0)
    return x.sum()


WRITING = {
    "map": lambda: MapStatistic("wrong", "", wipes, lambda moments: [0.0] * len(moments)),
    "jacobian": lambda: JacobianStatistic("wrong", "", wipes, lambda moments: [0.0] * len(moments)),
    "activation": lambda: ActivationStatistic("wrong", "", wipes, lambda total: 0.0),
    "map that fails": lambda: MapStatistic("wrong", "", lambda x: wipes(x) + "a", lambda moments: []),
}


@pytest.mark.parametrize(
    ("kind", "alone"),
    [(kind, alone) for kind in WRITING for alone in (True, False) if not (alone and kind == "activation")],
)
def test_one_that_writes_to_what_it_reads_costs_its_pass(kind, alone):
    if alone:  # with nothing but blocks: a pass of its own
        beside = MapStatistic("beside", "", torch.sum, lambda moments: [1.0] * len(moments))
        proxies = [Proxy.of(s, recipe=BATCH, formula="", paper="") for s in (WRITING[kind](), beside)]
        found = measure(Subject(), proxies)
    else:
        found = measured(WRITING[kind]())
    assert found.scores == {"wrong": None, "beside": None}
    assert {f.message for f in found.failures} == {"WrittenError: statistic wrong wrote to what it was given to read"}


def fills(network):
    for parameter in network.parameters:
        parameter.data.fill_(2.0)  # which autograd's versions do not count
    return [1.0]


def swaps(network):
    network.model[0].weight.data = torch.zeros(4, 3, 1, 1)
    return [1.0]


def hooks(network):
    network.model[2].register_forward_hook(lambda *given: given[2] * 0)
    return [1.0]


def replaces(network):
    network.model[0].weight = nn.Parameter(torch.zeros(4, 3, 1, 1))
    return [1.0]


def drops(network):
    network.model[0].bias = None
    return [1.0]


def wraps(network):
    network.model[2] = nn.Sequential(network.model[2], nn.Tanh())
    return [1.0]


def appends(network):
    network.model.append(nn.Tanh())
    return [1.0]


def does_all(network):
    fills(network)
    wraps(network)
    hooks(network)
    return [1.0]


CHANGES = {
    fills: "weights",
    swaps: "weights",
    replaces: "weights",
    drops: "weights",
    hooks: "hooks",
    wraps: "modules",
    appends: "modules",
    does_all: "weights and modules",  # the hook is on what it put there itself
}


@pytest.mark.parametrize(("does", "what"), CHANGES.items())
def test_one_that_leaves_the_network_changed_fails_alone_and_the_network_is_as_before(does, what):
    def output_of(network):
        return [float(torch.as_tensor(network.run(network.inputs)).abs().sum())]

    def proxies(*statistics):
        return [Proxy.of(s, recipe=BATCH, formula="", paper="") for s in statistics]

    honest = CustomStatistic("honest", "", "network", output_of)
    subject = Subject()
    before = {name: value.clone() for name, value in subject.model.state_dict().items()}
    objects = [*subject.model.modules(), *subject.model.parameters()]
    expected = measure(subject, proxies(honest)).scores["honest"]
    found = measure(subject, proxies(CustomStatistic("wrong", "", "network", does), honest))
    assert found.scores == {"wrong": None, "honest": expected}
    assert found.failures[0].message == (
        f"ValueError: statistic wrong left {what} of the network changed; undo what is done to it"
    )
    for name, value in subject.model.state_dict().items():
        assert torch.equal(value, before[name])
    now = [*subject.model.modules(), *subject.model.parameters()]
    assert all(one is was for one, was in zip(now, objects, strict=True))
    assert not any(module._forward_hooks for module in subject.model.modules())


def test_one_that_leaves_what_is_not_a_number_alone_has_left_it_alone():
    subject = Subject()
    with torch.no_grad():
        subject.model[2].bias[0] = torch.nan
    blind = CustomStatistic("blind", "", "network", lambda network: [1.0])
    found = measure(subject, [Proxy.of(blind, recipe=BATCH, formula="", paper="")])
    assert found.scores == {"blind": 1.0} and not found.failures


def test_numbers_of_any_kind_become_float64():
    statistic = KINDS["gradient"](None)
    for found in ([1, 2], (1.0, 2.0), np.array([1, 2], dtype=np.float32), torch.tensor([1.0, 2.0])):
        values = values_of(statistic, found, 2)
        assert values.dtype == np.float64 and values.tolist() == [1.0, 2.0]
    assert values_of(statistic, [], 0).shape == (0,)
