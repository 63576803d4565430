"""Every op's CUDA kernels on a device, against the reference twins."""

import pytest
import torch

from zcpipe import ops
from zcpipe.ops import Stream
from zcpipe.ops._check import dense_format
from zcpipe.ops.batchnorm import _batch_norm_train
from zcpipe.ops.convolution import _conv_batch_norm_train
from zcpipe.ops.null import _null
from zcpipe.ops.philox import fill_all
from zcpipe.ops.pool import _avg_pool3x3
from zcpipe.scoring.arithmetic import plain_arithmetic

SHAPES = [(2, 3, 5, 7), (1, 16, 8, 8), (64, 16, 32, 32), (3, 17, 9, 4), (4, 5, 1, 1), (1, 1, 2, 3)]
EMPTY = [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4)]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def norm_inputs(x):
    return x, *(torch.randn(x.shape[1], dtype=x.dtype, device=x.device) for _ in range(2)), torch.randn_like(x)


def rectified(x):
    """Among a million elements one is so near 0 that rounding decides whether ReLU lets its gradient pass."""
    return x.numel() < 100_000


def norm(x, weight, bias, total):
    return ops.batch_norm_train(x, weight, bias, relu=rectified(x), total=total)


def norm_twin(x, weight, bias, total):
    return _batch_norm_train(x, weight, bias, total, 1e-5, rectified(x))


# name of the op: (public function, twin, its tensors from images)
OPS = {
    "null": (ops.null, _null, lambda x: (x,)),
    "avg_pool3x3": (ops.avg_pool3x3, _avg_pool3x3, lambda x: (x,)),
    "batch_norm_train": (norm, norm_twin, norm_inputs),
}
every_op = pytest.mark.parametrize("name", OPS)


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


def images(shape, dtype, device, layout=torch.contiguous_format):
    return torch.randn(shape, dtype=dtype, device=device).to(memory_format=layout)


def close(ours, twin):
    """Compare with the size of the largest: two pixels of nearly one value have a steep derivative."""
    largest = float(twin.abs().max()) if twin.numel() else 0.0
    atol = (2e-5 if ours.dtype == torch.float32 else 1e-11) * max(1.0, largest)
    torch.testing.assert_close(ours, twin, atol=atol, rtol=1e-4)


@every_op
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_twin_forward_and_backward(device, name, shape, layout, dtype):
    op, twin, inputs_of = OPS[name]
    inputs = [t.detach().requires_grad_() for t in inputs_of(images(shape, dtype, device, layout))]
    y, expected = op(*inputs), twin(*inputs)
    assert name in type(y.grad_fn).__name__, "the op went to its twin"
    close(y.detach(), expected.detach())
    assert y.is_contiguous(memory_format=dense_format(inputs[0]))
    cotangent = torch.randn_like(y)
    for ours, theirs in zip(
        torch.autograd.grad(y, inputs, cotangent), torch.autograd.grad(expected, inputs, cotangent), strict=True
    ):
        close(ours, theirs)


@every_op
@pytest.mark.parametrize("shape", EMPTY, ids=str)
def test_no_images_give_no_images(device, name, shape, dtype):
    op, _, inputs_of = OPS[name]
    inputs = [t.detach().requires_grad_() for t in inputs_of(images(shape, dtype, device))]
    y = op(*inputs)
    assert y.shape == shape and y.is_cuda
    y.sum().backward()
    assert inputs[0].grad.shape == shape


@every_op
def test_vectors_may_start_anywhere(device, name, dtype):
    op, twin, inputs_of = OPS[name]
    storage = torch.randn(2 * 4 * 8 * 8 + 1, dtype=dtype, device=device)
    inputs = inputs_of(storage[1:].view(2, 4, 8, 8))
    close(op(*inputs), twin(*inputs))


@every_op
def test_gives_the_same_bits_every_time(device, name, dtype):
    op, _, inputs_of = OPS[name]
    inputs = inputs_of(images((64, 16, 32, 32), dtype, device))
    first = op(*inputs)
    assert all(torch.equal(first, op(*inputs)) for _ in range(3))


@every_op
def test_runs_on_the_current_stream(device, name):
    """The input becomes what it is on a stream that is busy before: another stream would read what was there before."""
    op, twin, inputs_of = OPS[name]
    inputs = inputs_of(torch.zeros(4, 8, 16, 16, device=device))
    late = images((4, 8, 16, 16), torch.float32, device)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        inputs[0].copy_(late)
        y = op(*inputs)
    stream.synchronize()
    close(y, twin(late, *inputs[1:]))


@every_op
def test_neither_waits_for_the_device_nor_breaks_a_capture(device, name):
    op, twin, inputs_of = OPS[name]
    inputs = inputs_of(images((4, 8, 16, 16), torch.float32, device))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        op(*inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = op(*inputs)
    for _ in range(2):
        inputs[0].copy_(torch.randn_like(inputs[0]))
        graph.replay()
        close(y, twin(*inputs))


@every_op
def test_runs_where_its_tensors_are(name):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    op, twin, inputs_of = OPS[name]
    inputs = inputs_of(images((4, 8, 16, 16), torch.float32, torch.device("cuda", 1)))
    y = op(*inputs)
    assert y.device.index == 1 and torch.cuda.current_device() == 0
    close(y, twin(*inputs))


@pytest.mark.parametrize("fill", ["normal_", "uniform_", "rademacher_"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_random_numbers_are_those_of_the_cpu_bit_for_bit(device, fill, shape, layout, dtype):
    stream = Stream.of(0, "space", "scope", 0, "test")
    there = torch.empty(shape, dtype=dtype).to(memory_format=layout)
    here = torch.empty_like(there, device=device)
    assert torch.equal(getattr(stream, fill)(here).cpu(), getattr(stream, fill)(there))


@pytest.mark.parametrize("distribution", ["normal", "uniform"])
def test_many_tensors_of_random_numbers_are_those_of_the_cpu_bit_for_bit(device, distribution):
    shapes = [(16, 3, 3, 3), (7,), (0, 4), (64, 64, 3, 3), ()] * 40  # more than a launch takes
    streams = [Stream.of(0, "space", "scope", 0, str(i)) for i in range(len(shapes))]
    kinds = [torch.float32 if i % 3 else torch.float64 for i in range(len(shapes))]
    here, there = (
        [torch.empty(shape, dtype=dtype, device=d) for shape, dtype in zip(shapes, kinds, strict=True)]
        for d in (device, "cpu")
    )
    for tensors in (here, there):
        fills = [(tensor, stream, 0.1 * i) for i, (tensor, stream) in enumerate(zip(tensors, streams, strict=True))]
        fill_all(fills, distribution)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(here, there, strict=True))


@pytest.mark.parametrize("n", [1, 3, 130])
def test_random_bits_are_those_of_the_cpu(device, n):
    here, there = (torch.empty(n, dtype=torch.int64, device=d) for d in (device, "cpu"))
    for words in (here, there):
        torch.ops.zcpipe.philox_bits_(words, -5, 7, -2)
    assert torch.equal(here.cpu(), there)


def test_the_librarys_runtime_and_torchs_work_side_by_side(device):
    """A static runtime has its own state, but the same context: memory, streams and errors stay torch's."""
    x = images((8, 16, 32, 32), torch.float32, device)
    for _ in range(3):
        close(ops.avg_pool3x3(x @ x.mT), _avg_pool3x3(x @ x.mT))
    ops.batch_norm_train(x)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    ops.batch_norm_train(x)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before
    version = ops.build_info()["cuda_runtime"]
    assert version.endswith("shared") or torch.version.cuda.split(".")[0] == version.split(".")[0]


# (channels in, out, kernel, stride, padding, ReLU before, after, scales and shifts)
CHAINS = [
    (3, 5, 3, 1, 1, True, False, True),
    (16, 32, 3, 2, 1, True, False, True),
    (16, 16, 1, 1, 0, False, True, False),
    (4, 8, 5, 1, 2, False, False, True),
    (1, 3, 3, 1, 1, True, False, False),
]
every_chain = pytest.mark.parametrize("chain", CHAINS, ids=str)
every_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=str)


def chain_inputs(chain, device, layout=torch.contiguous_format):
    """A chain's tensors, and its settings without the sum's: channels_last ones lie so, as a network's would."""
    inputs, outputs, kernel, stride, padding, relu_input, relu_output, affine = chain
    x = images((6, inputs, 9, 7), torch.float32, device, layout)
    weight = images((outputs, inputs, kernel, kernel), torch.float32, device, layout)
    scales = [torch.randn(outputs, device=device) if affine else None for _ in range(2)]
    return (x, weight, *scales), (1e-5, stride, padding, relu_input, relu_output)


def chain_twin(x, weight, norm_weight, norm_bias, eps, stride, padding, relu_input, relu_output, total=None):
    with plain_arithmetic(x.device):
        return _conv_batch_norm_train(
            x, weight, norm_weight, norm_bias, total, eps, stride, padding, relu_input, relu_output
        )


@every_chain
@every_layout
@pytest.mark.parametrize("summed", [False, True])
def test_a_chain_equals_its_twin_forward_and_backward(device, chain, layout, summed):
    tensors, (eps, stride, padding, relu_input, relu_output) = chain_inputs(chain, device, layout)
    leaves = [t if t is None else t.requires_grad_() for t in tensors]
    how = (eps, stride, padding, relu_input, relu_output)
    total = torch.randn_like(chain_twin(*tensors, *how)).requires_grad_() if summed else None
    expected = chain_twin(*leaves, *how, total)
    with plain_arithmetic(device):
        y = ops.conv_batch_norm_train(
            *leaves,
            eps,
            stride=stride,
            padding=padding,
            relu_input=relu_input,
            relu_output=relu_output,
            total=total,
        )
    assert "conv_batch_norm_train" in type(y.grad_fn).__name__, "the op went to its twin"
    assert y.is_contiguous(memory_format=dense_format(tensors[0]))
    close(y.detach(), expected.detach())
    wanted = [t for t in (*leaves, total) if t is not None]
    cotangent = torch.randn_like(y)
    with plain_arithmetic(device):
        ours = torch.autograd.grad(y, wanted, cotangent, retain_graph=True)
        theirs = torch.autograd.grad(expected, wanted, cotangent, retain_graph=True)
        (of_x,), (alone,) = (torch.autograd.grad(t, leaves[:1], cotangent) for t in (y, expected))
    for a, b in zip((*ours, of_x), (*theirs, alone), strict=True):
        close(a, b)


@every_chain
@every_layout
def test_a_chain_and_its_gradients_are_added_where_sums_lie(device, chain, layout):
    tensors, how = chain_inputs(chain, device, layout)
    native = torch.ops.zcpipe
    with plain_arithmetic(device):
        y, z, mean, invstd = native.conv_batch_norm_train(*tensors, None, *how)
        total = torch.randn_like(y)
        expected = total + y
        repeated = native.conv_batch_norm_train_onto(*tensors, total, *how)
        close(total, expected)
        assert all(torch.equal(a, b) for a, b in zip(repeated, (z, mean, invstd), strict=True))
        x, weight, *norm_of = tensors
        arguments = (torch.randn_like(y), x, z, weight, *norm_of, mean, invstd)
        of_x, *others, products = native.conv_batch_norm_train_gradients(*arguments, *how[1:], True, True)
        first, second = torch.randn_like(x), torch.randn_like(x)
        sums = first + of_x, second + of_x
        native.conv_batch_norm_train_backward_onto(*arguments, first, *how[1:])
        found = native.conv_batch_norm_train_gradients_onto(*arguments, second, *how[1:], True)
        none, *alone, no_products = native.conv_batch_norm_train_gradients(*arguments, *how[1:], False, False)
        leaf = z.clone().requires_grad_()
        again = _batch_norm_train(leaf, *norm_of, None, how[0], how[-1])
        (of_z,) = torch.autograd.grad(again, leaf, arguments[0])
    for ours, theirs in zip((first, second, *found[:3]), (*sums, *others), strict=True):
        close(ours, theirs)
    for ours, theirs in zip(alone, others, strict=True):
        close(ours, theirs)
    for ours in (products, found[3]):
        close(ours.float(), (z.double() * of_z.double()).sum((2, 3)).float())
    assert none.numel() == no_products.numel() == 0


@every_chain
def test_a_chain_gives_the_same_bits_every_time(device, chain):
    tensors, how = chain_inputs(chain, device)
    with plain_arithmetic(device):
        first = torch.ops.zcpipe.conv_batch_norm_train(*tensors, None, *how)
        again = [torch.ops.zcpipe.conv_batch_norm_train(*tensors, None, *how) for _ in range(3)]
    assert all(torch.equal(a, b) for other in again for a, b in zip(first, other, strict=True))


@every_layout
@pytest.mark.parametrize("direction", ["avg_pool3x3", "avg_pool3x3_backward"])
@pytest.mark.parametrize("shape", [*SHAPES, *EMPTY], ids=str)
def test_pools_are_added_where_sums_lie(device, shape, layout, direction, dtype):
    x, total = (images(shape, dtype, device, layout) for _ in range(2))
    expected = total + getattr(torch.ops.zcpipe, direction)(x)
    getattr(torch.ops.zcpipe, f"{direction}_onto")(x, total)
    close(total, expected)


def test_sums_of_another_shape_or_layout_are_refused(device):
    tensors, how = chain_inputs(CHAINS[0], device)
    y = torch.ops.zcpipe.conv_batch_norm_train(*tensors, None, *how)[0]
    for total in (y[:, :2], y.to(memory_format=torch.channels_last), y.double(), y.cpu()):
        with pytest.raises(RuntimeError, match="total"):
            torch.ops.zcpipe.conv_batch_norm_train_onto(*tensors, total, *how)
        with pytest.raises(RuntimeError, match="total"):
            torch.ops.zcpipe.avg_pool3x3_onto(y, total[:, :2])
    for i, name in enumerate(("x", "weight", "norm_weight", "norm_bias")):
        elsewhere = [t.cpu() if i == j else t for j, t in enumerate(tensors)]
        with pytest.raises(RuntimeError, match="device" if name != "x" else ""):
            torch.ops.zcpipe.conv_batch_norm_train(*elsewhere, None, *how)


def test_a_relu_lets_no_gradient_pass_where_it_stops(device):
    x = torch.tensor([-1.0, 0.0, 1.0, float("nan")], device=device).repeat(6).view(2, 1, 3, 4).requires_grad_()
    weight = torch.randn(3, 1, 1, 1, device=device)
    ours = ops.conv_batch_norm_train(x, weight, relu_input=True)
    assert ours.isnan().all()  # as torch's: one value spoils its channel
    y, z, mean, invstd = torch.ops.zcpipe.conv_batch_norm_train(
        x.detach().nan_to_num(2.0), weight, None, None, None, 1e-5, 1, 0, True, False
    )
    grad = torch.ops.zcpipe.conv_batch_norm_train_backward(
        torch.randn_like(y), x.detach(), z, weight, None, None, mean, invstd, 1, 0, True, False
    ).flatten()
    assert not grad.view(-1, 4)[:, :2].any() and grad.view(-1, 4)[:, 2:].all()
