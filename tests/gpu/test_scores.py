"""What a run gives on a device: the CPU's values, and the same bits each time."""

import numpy as np
import pytest
import torch
from torch import nn

import zcpipe
from zcpipe.errors import is_out_of_memory
from zcpipe.run.spec import RunSpec
from zcpipe.scoring.guard import untouched
from zcpipe.scoring.rewrite import fast_operations
from zcpipe.scoring.rows import ClassScorer
from zcpipe.spaces import get_space
from zcpipe.spaces.base import DrawsByDataset

# space: the side of its images
SPACES = {
    "nasbench201": 32,
    "nasbench101": 32,
    "nasbench301": 32,
    "nasbenchmacro": 32,
    "transnasbench101_micro": 32,
    "transnasbench101_macro": 32,
    "nds/amoeba": 32,
    "nds/resnext-a": 32,
    "mbv2": 32,
    "autoformer/tiny": 224,
}
# What takes minutes of the CPU that the device is compared with.
DEAR = {"autoformer/tiny": {"gradsign", "grasp", "ntk_condition", "vkdnw"}, "mbv2": {"vkdnw"}}
# Of what is badly conditioned few digits survive another order of summation: variances that are nearly zero (zico), the
# smallest eigenvalues of maps of one pixel (ntk_condition), attention that takes all of a winner by a hair (synflow),
# ReLUs that rounding flips (fisher).
TOLERANCE = {
    "zico": 0.05,
    "ntk_condition": 0.9,
    "synflow": 0.005,
    "fisher": 0.005,
    "grasp": 0.01,
    "jacob_cov": 0.005,
    "gradsign": 0.005,
}
# The rest of a cancellation, layer by layer.
UNCOMPARED = {"zico@layer", "synflow_bn@layer", "gradsign@layer"}
# Gradients of a deep network whose last batch norms normalise four values: the CPU's own two ways, with and without the
# native library, differ as much.
GRADIENTS = {
    "auto_prox",
    "fisher",
    "grad_norm",
    "grad_norm_global",
    "grasp",
    "plain",
    "snip",
    "trainability",
    "gradsign",
}
CHAOTIC = {"mbv2": GRADIENTS | {"jacob_cov", "ntk_condition", "zico"}}


def drawn(space, dataset):
    if isinstance(space, DrawsByDataset):
        return space.sample_for(dataset, 0, 0)
    return space.sample(0, 0)


def row(name, device, **options):
    space = get_space(name)
    dataset = next(iter(space.datasets))
    spec = RunSpec(
        space=name,
        dataset=dataset,
        proxies=tuple(proxy for proxy in zcpipe.list_proxies() if proxy not in DEAR.get(name, ())),
        batch_size=4,
        resolution=SPACES[name],
        device=device,
        **options,
    )
    arch = drawn(space, dataset)
    return ClassScorer(spec).score(arch, [arch])[0]


@pytest.mark.parametrize("name", SPACES)
def test_every_proxy_equals_the_cpus_and_repeats_to_the_bit(device, name):
    ours, again, expected = row(name, str(device)), row(name, str(device)), row(name, "cpu")
    assert ours["failures"] == expected["failures"]
    assert not [column for column in ours if column != "seconds" and not same(ours[column], again[column])]
    compared = [column for column in expected if column not in UNCOMPARED | {"seconds"}]
    compared = [column for column in compared if column.partition("@")[0] not in CHAOTIC.get(name, ())]
    far = {column: (ours[column], expected[column]) for column in compared if not near(column, ours, expected)}
    assert not far


def same(a, b):
    return np.array_equal(a, b, equal_nan=True) if isinstance(a, float | np.ndarray) else a == b


def near(column, ours, expected):
    """Compare with the size of the largest: a statistic of many layers is large in some of them."""
    a, b = ours[column], expected[column]
    if not isinstance(a, float | np.ndarray):
        return a == b
    size = np.abs(np.asarray(b)[np.isfinite(b)]).max(initial=0.0)
    tolerance = TOLERANCE.get(column.partition("@")[0], 2e-3)
    return np.allclose(a, b, rtol=tolerance, atol=5e-3 * size if column.endswith("@layer") else 0.0, equal_nan=True)


def test_scores_do_not_depend_on_what_the_process_lets_be_rounded(device):
    model = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1)).to(device)
    x = torch.randn(16, 3, 32, 32, device=device)
    allowed = torch.backends.cudnn.allow_tf32
    found = []
    try:
        for rounded in (True, False):
            torch.backends.cudnn.allow_tf32 = rounded
            found.append(dict(zcpipe.score(model, x, blocks=["0", "1"])))
            assert torch.backends.cudnn.allow_tf32 == rounded
    finally:
        torch.backends.cudnn.allow_tf32 = allowed
    assert found[0] == found[1]


def test_attention_repeats_to_the_bit(device):
    attention = nn.MultiheadAttention(32, 4, batch_first=True)

    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.head = attention, nn.Linear(32, 10)

        def forward(self, x):
            return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))

    model, x = Attends().to(device), torch.randn(16, 196, 32, device=device)
    labels = torch.arange(16, device=device) % 10
    first, again = (dict(zcpipe.score(model, x, labels, "snip,grad_norm")) for _ in range(2))
    assert first == again


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("proxy", ["num_layers", "vkdnw", "grasp"])
def test_recurrent_networks_have_what_goes_backward_in_eval_mode_or_twice(device, proxy, kind):
    """cuDNN has no such gradients."""

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.cells, self.head = kind(6, 8, batch_first=True), nn.Linear(8, 4)

        def forward(self, x):
            return self.head(self.cells(x)[0].mean(1))

    model, x, labels = Recurrent(), torch.randn(8, 5, 6), torch.arange(8) % 4
    expected = zcpipe.score(model, x, labels, proxy)[proxy]
    found = zcpipe.score(model.to(device), x.to(device), labels.to(device), proxy)
    assert found[proxy] == pytest.approx(expected, rel=0.01), found.failures
    assert torch.backends.cudnn.enabled


def test_a_model_comes_back_to_the_cpu_whole(device):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).to(device)
    model[1].running_mean.uniform_()
    expected = model[1].running_mean.cpu()
    torch.ones(4096, 4096, device=device) @ torch.ones(4096, 4096, device=device)  # keeps the device busy
    zcpipe.initialise(model, device="cpu")
    assert torch.equal(model[1].running_mean, expected) and not model[1].running_mean.is_pinned()


def test_a_model_that_is_there_keeps_its_memory(device):
    model = nn.Conv2d(3, 8, 3).to(device)
    place = model.weight.data_ptr()
    zcpipe.initialise(model, device="cuda")
    assert model.weight.data_ptr() == place


def test_what_is_not_drawn_arrives_as_it_was(device):
    here, there = (nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.BatchNorm2d(8)) for _ in range(2))
    for model in (here, there):
        torch.manual_seed(0)
        for name, buffer in model.named_buffers():
            buffer.copy_(torch.rand(buffer.shape) * 9) if "running" in name else buffer.add_(3)
    zcpipe.initialise(here, seed=1)
    zcpipe.initialise(there, seed=1, device=device)
    for name, tensor in here.state_dict().items():
        arrived = there.state_dict()[name]
        assert arrived.is_cuda and (arrived.shape, arrived.dtype) == (tensor.shape, tensor.dtype)
        torch.testing.assert_close(arrived.cpu(), tensor, rtol=1e-6, atol=0)


def test_what_arrived_together_can_be_trained(device):
    """Running statistics lie side by side there; a change of one is none of what autograd kept of another."""
    model = zcpipe.initialise(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)),
        device=device,
    )
    kept = model[1].running_mean * torch.ones(8, device=device, requires_grad=True)
    model[4].running_mean.add_(1)
    kept.sum().backward()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(2):
        model(torch.randn(4, 3, 9, 9, device=device)).pow(2).sum().backward()
        optimizer.step()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


class Remembering(nn.Module):
    """Writes to some buffers, and has others that nobody can write to."""

    def __init__(self, device):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, device=device)
        self.norm = nn.BatchNorm2d(4, device=device)
        self.register_buffer("seen", torch.zeros(2, device=device))
        self.register_buffer("expanded", torch.ones(1, 1, device=device).expand(4, 4))
        with torch.inference_mode():
            self.register_buffer("inferred", torch.ones(3, device=device))

    def forward(self, x):
        self.seen += 1
        return self.norm(self.conv(x)).mean((2, 3)) * self.expanded[0] * self.inferred[0].clone()


def test_buffers_are_put_back_whatever_they_are(device):
    model = Remembering(device)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    kept = model.norm.running_mean * torch.ones(4, device=device, requires_grad=True)  # a graph that is still alive
    version = model.norm.running_mean._version
    zcpipe.score(model, torch.randn(4, 3, 9, 9, device=device), torch.arange(4, device=device), "snip,grad_norm")
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert model.norm.running_mean._version == version
    kept.sum().backward()


def test_cells_are_one_step_of_autograd(device):
    built = get_space("nasbench201").build(get_space("nasbench201")[5067], "cifar10")  # with every operation
    model = zcpipe.initialise(built.model, device=device)
    modules = dict(model.named_modules())
    with untouched(modules), fast_operations(modules):
        x = torch.randn(2, 16, 8, 8, device=device, requires_grad=True)
        assert "_Cell" in type(modules["cells.0"](x).grad_fn).__name__


def test_memory_that_runs_out_is_known_as_such(device):
    """Torch's own type of it does not come through the native library."""
    torch.cuda.set_per_process_memory_fraction(0.01, device)
    try:
        x = torch.empty(1, 1, 1, 1, device=device).expand(4096, 8, 256, 256)
        with pytest.raises(RuntimeError) as caught:
            torch.ops.zcpipe.conv_batch_norm_train(
                x, torch.ones(64, 8, 1, 1, device=device), None, None, None, 1e-5, 1, 0, False, False
            )
        assert is_out_of_memory(caught.value), caught.value
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
        torch.cuda.empty_cache()


def test_dropout_draws_the_same_in_every_call_and_leaves_the_random_state(device):
    torch.manual_seed(0)
    layers = nn.Flatten(), nn.Linear(768, 64), nn.Dropout(0.5), nn.ReLU(), nn.Linear(64, 4)
    model = nn.Sequential(*layers).to(device)
    x, labels = torch.randn(8, 3, 16, 16, device=device), (torch.arange(8) % 4).to(device)
    before = torch.cuda.get_rng_state(device), torch.get_rng_state()
    first, second = (dict(zcpipe.score(model, x, labels, "snip,grasp,zen,jacob_cov")) for _ in range(2))
    assert first == second
    assert torch.equal(torch.cuda.get_rng_state(device), before[0]) and torch.equal(torch.get_rng_state(), before[1])
