"""A cell as one step of autograd computes what its layers compute one by one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from zcpipe.scoring.guard import untouched
from zcpipe.scoring.rewrite import fast_operations
from zcpipe.spaces.layers import Dag, Op

CHANNELS = 4
LAYERS = {
    "skip": nn.Identity,
    "pool": lambda: nn.AvgPool2d(3, 1, 1, count_include_pad=False),
    "conv1": lambda: Op(nn.ReLU(), nn.Conv2d(CHANNELS, CHANNELS, 1, bias=False), nn.BatchNorm2d(CHANNELS)),
    "conv3": lambda: nn.Sequential(
        nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False), nn.BatchNorm2d(CHANNELS), nn.ReLU()
    ),
}
EDGES = st.lists(
    st.integers(1, 4).flatmap(lambda target: st.tuples(st.integers(0, target - 1), st.just(target))), max_size=7
)


pytestmark = pytest.mark.usefixtures("native")


def cell_of(edges, names, output):
    """Make a cell; edges whose source nothing reaches are left out, as builders do."""
    torch.manual_seed(0)
    reached, kept = {0}, []
    for (source, target), name in sorted(zip(edges, names, strict=False), key=lambda edge: edge[0][1]):
        if source in reached:
            reached.add(target)
            kept.append(((source, target), name))
    layers = {str(i): LAYERS[name]() for i, (_, name) in enumerate(kept)}
    return Dag([edge for edge, _ in kept], layers, output)


def all_of(model):
    return dict(model.named_modules())


def outcome(model, x, cotangent):
    y = model(x)
    gradient = torch.autograd.grad(y, x, cotangent, allow_unused=True)[0] if y.requires_grad else None
    return y, torch.zeros_like(x) if gradient is None else gradient


def images(seed):
    x = torch.randn(3, CHANNELS, 6, 5, generator=torch.Generator().manual_seed(seed))
    return x.contiguous(memory_format=torch.channels_last)


@settings(max_examples=80)
@given(edges=EDGES, names=st.lists(st.sampled_from(sorted(LAYERS)), min_size=7, max_size=7), output=st.integers(1, 4))
def test_any_cell_gives_the_same_output_and_gradient(edges, names, output):
    cell = cell_of(edges, names, output)
    x, cotangent = images(0).requires_grad_(), images(1)
    kept = x.detach().clone(), cotangent.clone()
    with untouched(all_of(cell)):
        expected = outcome(cell, x, cotangent)
        with fast_operations(all_of(cell)):
            ours = outcome(cell, x, cotangent)
    for got, want in zip(ours, expected, strict=True):
        scale = max(1.0, float(want.detach().abs().max()))
        assert float((got - want).detach().abs().max()) < 1e-4 * scale
    assert torch.equal(x.detach(), kept[0]) and torch.equal(cotangent, kept[1])


def test_a_node_read_twice_is_left_alone(steps):
    """A skip hands a node on as it is; what is added to the copy must not change the node."""
    cell = cell_of([(0, 1), (1, 2), (1, 3), (0, 2), (2, 3)], ["conv3", "skip", "skip", "conv1", "pool"], 3)
    x, cotangent = images(0).requires_grad_(), images(1)
    with untouched(all_of(cell)):
        expected = outcome(cell, x, cotangent)
        with fast_operations(all_of(cell)):
            ours = outcome(cell, x, cotangent)
    assert steps
    for got, want in zip(ours, expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("names", [["skip"], []], ids=["identity", "nothing"])
def test_a_cell_that_makes_nothing_runs_as_it_is(names, steps):
    cell = cell_of([(0, 1)], names, 1)
    x = images(0).requires_grad_()
    with untouched(all_of(cell)), fast_operations(all_of(cell)):
        y = cell(x)
    assert not steps
    assert torch.equal(y, x) if names else not y.any()


@pytest.mark.parametrize(
    "x",
    [images(0).double(), images(0).contiguous(), images(0)[:0]],
    ids=["double precision", "other layout", "no images"],
)
def test_other_inputs_are_served_too(x):
    cell = cell_of([(0, 1), (0, 2), (1, 2)], ["conv3", "pool", "skip"], 2).to(x.dtype)
    x = x.detach().requires_grad_()
    with untouched(all_of(cell)):
        expected = outcome(cell, x, torch.ones_like(x)) if len(x) else (torch.empty_like(x), torch.empty_like(x))
        with fast_operations(all_of(cell)):
            ours = outcome(cell, x, torch.ones_like(x)) if len(x) else (x, x)
    for got, want in zip(ours, expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_it_has_no_second_derivative():
    cell = cell_of([(0, 1)], ["conv3"], 1)
    x = images(0).requires_grad_()
    with untouched(all_of(cell)), fast_operations(all_of(cell)):
        (first,) = torch.autograd.grad(cell(x).sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad"):
            torch.autograd.grad(first.sum(), x)


@pytest.mark.parametrize(
    ("op", "functional"),
    [("avg_pool3x3_onto", "avg_pool3x3"), ("avg_pool3x3_backward_onto", "avg_pool3x3_backward")],
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_pools_add_where_they_are_told(op, functional, layout):
    x, total = images(0), images(1).contiguous(memory_format=layout)
    expected = total + getattr(torch.ops.zcpipe, functional)(x)
    torch.library.opcheck(getattr(torch.ops.zcpipe, op).default, (x, total.clone()))
    getattr(torch.ops.zcpipe, op)(x, total)
    torch.testing.assert_close(total, expected)


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("relu_input", [False, True], ids=["linear", "relu"])
def test_convolutions_add_where_they_are_told(kernel, relu_input):
    ops = torch.ops.zcpipe
    x, total = images(0), images(1)
    weight = torch.randn(CHANNELS, CHANNELS, kernel, kernel, generator=torch.Generator().manual_seed(2))
    how = (1, kernel // 2, relu_input, False)
    expected, z, mean, invstd = ops.conv_batch_norm_train(x, weight, None, None, total, 1e-5, *how)
    arguments = (x, weight, None, None, total.clone(), 1e-5, *how)
    torch.library.opcheck(ops.conv_batch_norm_train_onto.default, arguments)
    ops.conv_batch_norm_train_onto(*arguments[:4], total, *arguments[5:])
    assert torch.equal(total, expected)
    back = (images(3), x, z, weight, None, None, mean, invstd)
    sum_ = images(4)
    wanted = sum_ + ops.conv_batch_norm_train_backward(*back, *how)
    torch.library.opcheck(ops.conv_batch_norm_train_backward_onto.default, (*back, sum_.clone(), *how))
    ops.conv_batch_norm_train_backward_onto(*back, sum_, *how)
    torch.testing.assert_close(sum_, wanted)


def test_a_sum_that_does_not_fit_is_named():
    ops = torch.ops.zcpipe
    x, weight = images(0), torch.zeros(CHANNELS, CHANNELS, 1, 1)
    for total, message in (
        (x.double(), "total: got Double, expected Float"),
        (x[:2], "total: got another shape"),
        (x.transpose(2, 3).contiguous().transpose(2, 3)[:, :, ::2].repeat_interleave(2, 2)[:, :, ::1], "total: "),
    ):
        with pytest.raises(RuntimeError, match=message):
            ops.conv_batch_norm_train_onto(x, weight, None, None, total, 1e-5, 1, 0, False, False)


def test_one_value_per_channel_is_refused_as_everywhere():
    cell = cell_of([(0, 1), (0, 1)], ["conv1", "skip"], 1)
    x = torch.zeros(1, CHANNELS, 1, 1).contiguous(memory_format=torch.channels_last).requires_grad_()
    with (
        untouched(all_of(cell)),
        fast_operations(all_of(cell)),
        pytest.raises(RuntimeError, match="more than one value"),
    ):
        cell(x)


def test_edges_that_lead_nowhere_cost_and_keep_nothing(steps):
    cell = cell_of([(0, 1), (1, 2)], ["conv3", "pool"], 1)
    with untouched(all_of(cell)), fast_operations(all_of(cell)):
        y = cell(images(0).requires_grad_())
    assert steps
    assert len(y.grad_fn.kept) == 1


@pytest.mark.parametrize(
    ("watched", "fast"), [(None, 1), ("layers.b", 0), ("layers.c.op.1", 0)], ids=["nobody", "a skip", "a convolution"]
)
def test_dead_layers_run_for_those_who_watch_and_change_nothing(watched, fast, steps):
    """Nothing reaches node 2, from which an edge leads into the output; and node 3 leads nowhere."""
    layers = {
        "a": LAYERS["conv3"](),
        "b": nn.Identity(),
        "c": LAYERS["conv1"](),
        "d": LAYERS["pool"](),
        "e": nn.Identity(),
    }
    cell = Dag([(0, 1), (0, 3), (3, 4), (1, 5), (2, 5)], layers, output=5, dead=["b", "c", "e"])
    pruned = Dag([(0, 1), (1, 5)], {name: layers[name] for name in ("a", "d")}, output=5)
    seen = []
    if watched:
        cell.get_submodule(watched).register_forward_hook(lambda *_: seen.append(watched))
    x, cotangent = images(0).requires_grad_(), images(1)
    with untouched(all_of(cell)), fast_operations(all_of(cell)):
        ours = outcome(cell, x, cotangent)
    assert len(steps) == fast
    assert seen == ([watched] if watched else [])
    with untouched(all_of(pruned)):
        expected = outcome(pruned, x, cotangent)
    for got, want in zip(ours, expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_forward_mode_goes_another_way(steps):
    cell = cell_of([(0, 1), (0, 1)], ["conv3", "skip"], 1)
    with untouched(all_of(cell)), fast_operations(all_of(cell)):
        _, tangent = torch.func.jvp(cell, (images(0),), (images(1),))
    assert not steps and tangent.any()


def test_a_sum_is_never_added_to_itself():
    x = images(0)
    for op in ("avg_pool3x3_onto", "avg_pool3x3_backward_onto"):
        with pytest.raises(RuntimeError, match="total: is what is added to it"):
            getattr(torch.ops.zcpipe, op)(x, x)
