"""Every op's CUDA kernels on a device, against the reference twins."""

import pytest
import torch

from zcpipe import ops
from zcpipe.ops import Stream
from zcpipe.ops._check import dense_format
from zcpipe.ops.batchnorm import _batch_norm_train
from zcpipe.ops.null import _null
from zcpipe.ops.pool import _avg_pool3x3

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
    atol = (2e-5 if ours.dtype == torch.float32 else 1e-11) * max(1.0, float(twin.abs().max()))
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
