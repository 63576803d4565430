"""What must hold for every registered proxy, whatever it computes."""

import gc
import resource
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import assert_untouched, fingerprint, networks, small_network
from torch import nn

import zcpipe
from zcpipe.proxies import grasp
from zcpipe.scoring import measure, network
from zcpipe.spaces.layers import recurrent_gradients

PROXIES = zcpipe.list_proxies()
PER_CASE = settings(max_examples=6, suppress_health_check=[HealthCheck.too_slow])


def score(model, proxies, **options):
    x, y = torch.randn(6, 3, 9, 9, generator=torch.Generator().manual_seed(5)), torch.arange(6) % 4
    before = x.clone()
    scores = zcpipe.score(model, x, y, proxies, blocks=model.names, unsupported="skip", **options)
    assert torch.equal(x, before)
    return scores


def same(a, b, rel=0.0):
    for name in a:
        if a[name] is None:
            assert b[name] is None
        else:
            assert b[name] == pytest.approx(a[name], rel=rel, abs=0 if rel == 0 else 1e-12, nan_ok=True), name


@pytest.mark.parametrize("protocol", ["paper", "fused"])
@pytest.mark.parametrize("proxy", PROXIES)
@PER_CASE
@given(parts=networks, frozen=st.integers(0, 5))
def test_leaves_model_and_random_state_untouched_and_repeats(proxy, protocol, parts, frozen):
    model = small_network(parts, inplace=True)
    for parameter in list(model.parameters())[:frozen]:
        parameter.requires_grad_(False)
    before = fingerprint(model)
    first = score(model, proxy, protocol=protocol)
    assert_untouched(model, before)
    same(first, score(model, proxy, protocol=protocol))


@pytest.mark.parametrize("protocol", ["paper", "fused"])
@pytest.mark.parametrize("proxy", PROXIES)
def test_a_backward_that_the_caller_has_yet_to_run_is_right_after_it(proxy, protocol):
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU()]
    model = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    model.names = ["0", "3"]
    parameters, x = list(model.parameters()), torch.randn(3, 3, 9, 9)
    expected = torch.autograd.grad(model(x).square().sum(), parameters)
    loss = model(x).square().sum()
    score(model, proxy, protocol=protocol)
    for a, b in zip(torch.autograd.grad(loss, parameters), expected, strict=True):
        assert torch.equal(a, b)


class Recurrent(nn.Module):
    names = ("embed", "head")

    def __init__(self, kind):
        super().__init__()
        self.embed, self.cells, self.head = nn.Linear(4, 4), kind(4, 4, batch_first=True), nn.Linear(4, 4)

    def forward(self, x):
        return self.head(self.cells(self.embed(x))[0].mean(1))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("proxy", PROXIES)
def test_recurrent_layers_keep_their_list_of_weights(proxy, kind):
    torch.manual_seed(0)
    model = Recurrent(kind)
    own = list(model.cells.parameters())
    zcpipe.score(model, torch.randn(4, 3, 4), torch.arange(4), proxy, blocks=model.names, unsupported="skip")
    listed = zip(model.cells._flat_weights, model.cells._flat_weight_refs, own, strict=True)
    assert all(weight is reference() is parameter for weight, reference, parameter in listed)


@pytest.mark.parametrize("proxy", ["num_layers", "vkdnw", "grasp", "snip"])
def test_a_gpus_recurrent_layers_run_where_cudnn_has_no_gradient_of_them_without_it(monkeypatch, proxy):
    for module in (network, measure, grasp):
        on_gpu = partial(recurrent_gradients, device=torch.device("cuda"))
        monkeypatch.setattr(module, "recurrent_gradients", lambda modules, _, on_gpu=on_gpu: on_gpu(modules))
    seen = set()
    model = Recurrent(nn.LSTM)
    model.cells.register_forward_hook(
        lambda *_: seen.add((model.training, torch.is_grad_enabled(), torch._C._get_cudnn_enabled()))
    )
    score = zcpipe.score(model, torch.randn(4, 3, 4), torch.arange(4), proxy)[proxy]
    assert score is not None and not any(grad and cudnn for training, grad, cudnn in seen if not training)
    assert torch._C._get_cudnn_enabled() and ((True, True, True) in seen) == (proxy not in ("num_layers", "vkdnw"))
    assert ((True, True, False) in seen) == (proxy == "grasp")


@pytest.mark.parametrize("proxy", PROXIES)
@PER_CASE
@given(parts=networks)
def test_in_place_activations_change_nothing(proxy, parts):
    parts = (*parts[:3], 0.0, parts[4])
    same(score(small_network(parts, False), proxy), score(small_network(parts, True), proxy))


class InHalves(nn.Module):
    """The same network, run on two parts of the batch."""

    def __init__(self, model):
        super().__init__()
        self.inner = model
        self.names = [f"inner.{name}" for name in model.names]

    def forward(self, x):
        return torch.cat([self.inner(x[:2]), self.inner(x[2:])])


@pytest.mark.parametrize("proxy", [name for name in PROXIES if name != "meco"])  # counts containers, on one image
@PER_CASE
@given(parts=networks)
def test_splitting_the_batch_changes_nothing_without_batch_norm(proxy, parts):
    """Or is refused, where what is read off is a whole batch's map: never another value."""
    parts = (parts[0], parts[1], "group", 0.0, parts[4])
    model = small_network(parts, False)
    whole = score(model, proxy)
    try:
        split = score(InHalves(model), proxy)
    except zcpipe.errors.UsageError as error:
        assert "blocks must run once" in str(error)
        return
    if split[proxy] is None:
        assert split.failures[0].kind == "unsupported"
    else:
        same(whole, split, rel=1e-4)


@PER_CASE
@given(parts=networks)
def test_all_together_are_what_each_is_alone(parts):
    parts = (*parts[:3], 0.0, parts[4])
    model = small_network(parts, False)
    together = score(model, PROXIES)
    for proxy in PROXIES:
        alone = score(model, proxy)
        same({proxy: together[proxy]}, alone, rel=1e-5)


def test_memory_does_not_grow_over_50_networks():
    def once(i):
        score(small_network((2 + i % 3, 2, "batch", 0.0, True), True), PROXIES)

    for i in range(10):
        once(i)
    gc.collect()
    before = tensors()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i in range(50):
        once(i)
    gc.collect()
    assert tensors() <= before + 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 30_000  # KiB


@pytest.mark.parametrize("protocol", ["paper", "fused"])
def test_nothing_waits_for_the_garbage_collector(protocol):
    """A circle of references would keep whole graphs alive until it runs: gigabytes, in a worker."""
    model = small_network((3, 2, "batch", 0.0, True), True)
    score(model, PROXIES, protocol=protocol)
    gc.collect()
    gc.disable()
    try:
        before = tensors()
        score(model, PROXIES, protocol=protocol)
        assert tensors() <= before
    finally:
        gc.enable()


def tensors():
    return sum(type(thing) in (torch.Tensor, nn.Parameter) for thing in gc.get_objects())
