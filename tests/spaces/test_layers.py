"""Layers for builders: what a copy shares with its original, and what it does not."""

import copy

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from zcpipe.spaces.layers import Conv2d, made, replica


@pytest.mark.parametrize("train", [True, False])
def test_a_replica_is_a_deep_copy(train):
    torch.manual_seed(0)
    module = nn.ModuleDict(
        {"chain": nn.Sequential(nn.ReLU(), Conv2d(2, 3, 1), nn.BatchNorm2d(3)), "skip": nn.Identity()}
    )
    module.train(train)
    module["chain"][1].weight.data.normal_()
    module["chain"](torch.randn(2, 2, 4, 4))
    module["chain"][1].weight.requires_grad_(False)
    ours, theirs = replica(module), copy.deepcopy(module)
    assert str(ours) == str(theirs)
    torch.testing.assert_close(ours.state_dict(), module.state_dict(), rtol=0, atol=0)
    for a, b, original in zip(ours.modules(), theirs.modules(), module.modules(), strict=True):
        assert type(a) is type(original) and a is not original
        assert vars(a).keys() == vars(b).keys()
        for name, part in vars(a).items():
            assert type(part) is type(vars(b)[name])
            assert not isinstance(part, (dict, set)) or part is not vars(original)[name], name
    for a, b, original in zip(ours.parameters(), theirs.parameters(), module.parameters(), strict=True):
        assert type(a) is nn.Parameter and a.requires_grad == b.requires_grad
        assert a.data_ptr() != original.data_ptr()
    assert {t.data_ptr() for t in ours.buffers()}.isdisjoint(t.data_ptr() for t in module.buffers())


def test_a_replica_lives_where_its_original_does():
    module = nn.BatchNorm2d(2, device="meta", dtype=torch.float64)
    assert all(t.is_meta and (t.dtype == torch.float64 or t.ndim == 0) for t in replica(module).state_dict().values())


def test_hooks_on_a_replica_stay_off_its_original():
    module = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(2, affine=False, track_running_stats=False))
    seen = []
    replica(module)[0].register_forward_hook(lambda *_: seen.append("called"))
    module(torch.randn(2, 2, 3, 3))
    assert not seen


def test_what_is_made_twice_is_constructed_once_and_shared_with_nobody():
    made_of = []

    def layer(channels):
        made_of.append(channels)
        return nn.Sequential(Conv2d(channels, 2, 1), nn.BatchNorm2d(2))

    first, second, other = made(layer, 2), made(layer, 2), made(layer, 3)
    assert made_of == [2, 3]
    assert str(first) == str(second) != str(other)
    with torch.no_grad():
        first[0].weight.fill_(1.0)
    first.eval().append(nn.ReLU())
    assert not second[0].weight.any() and second.training and len(second) == 2
    assert not made(layer, 2)[0].weight.any()


@pytest.mark.parametrize(
    ("circumstance", "holds"),
    [
        (lambda: torch.device("meta"), lambda weight: weight.is_meta),
        (torch.inference_mode, lambda weight: weight.is_inference()),
        (FakeTensorMode, lambda weight: isinstance(weight.data, FakeTensor)),
    ],
    ids=["device", "inference mode", "fake tensors"],
)
def test_layers_belong_to_the_circumstances_in_which_they_are_made(circumstance, holds):
    def kind():
        return Conv2d(1, 1, 1)

    before = made(kind)
    with circumstance():
        assert holds(made(kind).weight)
    for layer in (before, made(kind)):
        assert not layer.weight.is_meta and not holds(layer.weight)


def test_layers_have_the_dtype_of_their_time():
    def kind():
        return Conv2d(1, 1, 1)

    assert made(kind).weight.dtype == torch.float32
    torch.set_default_dtype(torch.float64)
    try:
        assert made(kind).weight.dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_default_device_is_a_circumstance():
    def kind():
        return Conv2d(1, 1, 1)

    assert not made(kind).weight.is_meta
    torch.set_default_device("meta")
    try:
        assert made(kind).weight.is_meta
    finally:
        torch.set_default_device(None)
    assert not made(kind).weight.is_meta


def test_what_a_patched_torch_makes_is_not_kept(monkeypatch):
    """As under a library's context in which models get no memory."""

    def kind():
        return Conv2d(1, 1, 1)

    with monkeypatch.context() as patched:
        registered = nn.Module.register_parameter

        def on_meta(self, name, parameter):
            registered(self, name, None if parameter is None else nn.Parameter(parameter.to("meta")))

        patched.setattr(nn.Module, "register_parameter", on_meta)
        assert made(kind).weight.is_meta
    assert not made(kind).weight.is_meta
