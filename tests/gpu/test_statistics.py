"""Every statistic's CUDA kernels on a device, against the reference twins."""

import pytest
import torch

from zcpipe import ops
from zcpipe.ops.moments import _covariance, _cross_moment

SHAPES = [(2, 3, 6, 8), (1, 16, 8, 8), (64, 16, 32, 32), (3, 17, 10, 4), (4, 5, 2, 2), (2, 70, 8, 6), (40, 200, 2, 2)]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def every_other_column(x):
    return torch.stack([x, x], 4).flatten(3)[:, :, :, ::2]


def halved(x):
    return x.roll(1, 1)[:, :, ::2, ::2]


# name: (public function, twin, its tensors from images)
STATISTICS = {
    "covariance": (ops.covariance, _covariance, lambda x: (x,)),
    "covariance of rows": (ops.covariance, _covariance, lambda x: (x.flatten(1),)),
    "covariance of slices": (ops.covariance, _covariance, lambda x: (every_other_column(x),)),
    "cross_moment": (ops.cross_moment, _cross_moment, lambda x: (x, x[:, : 1 + x.shape[1] // 2])),
    "cross_moment of another resolution": (ops.cross_moment, _cross_moment, lambda x: (x, halved(x))),
}
every_statistic = pytest.mark.parametrize("name", STATISTICS)


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


def images(shape, dtype, device, layout=torch.contiguous_format):
    return torch.randn(shape, dtype=dtype, device=device).to(memory_format=layout)


def table(result):
    return torch.stack([column.double() for column in result]) if isinstance(result, tuple | list) else result


def close(ours, twin, dtype):
    """Sums may cancel: compare with the size of the largest."""
    ours, twin = table(ours), table(twin)
    assert ours.dtype == twin.dtype and ours.is_cuda
    atol = (2e-6 if dtype == torch.float32 else 1e-12) * max(1.0, float(twin.abs().max()))
    torch.testing.assert_close(ours, twin, atol=atol, rtol=0)


def test_no_statistic_goes_to_its_twin(device):
    for op in {public.__name__ for public, _, _ in STATISTICS.values()}:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"zcpipe::{op}", "CUDA"), op


@every_statistic
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_twin(device, name, shape, layout, dtype):
    op, twin, inputs_of = STATISTICS[name]
    inputs = inputs_of(images(shape, dtype, device, layout))
    close(op(*inputs), twin(*inputs), dtype)


@every_statistic
def test_vectors_may_start_anywhere(device, name, dtype):
    op, twin, inputs_of = STATISTICS[name]
    storage = torch.randn(2 * 4 * 8 * 8 + 1, dtype=dtype, device=device)
    inputs = inputs_of(storage[1:].view(2, 4, 8, 8))
    close(op(*inputs), twin(*inputs), dtype)


@every_statistic
def test_gives_the_same_bits_every_time(device, name, dtype):
    op, _, inputs_of = STATISTICS[name]
    inputs = inputs_of(images((64, 16, 32, 32), dtype, device))
    first = table(op(*inputs))
    assert all(torch.equal(first, table(op(*inputs))) for _ in range(3))


@every_statistic
def test_neither_waits_for_the_device_nor_breaks_a_capture(device, name):
    op, twin, inputs_of = STATISTICS[name]
    x = images((4, 8, 16, 16), torch.float32, device)
    inputs = tuple(t.clone() for t in inputs_of(x))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        op(*inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = op(*inputs)
    for _ in range(2):
        for t in inputs:
            t.copy_(torch.randn_like(t))
        graph.replay()
        close(y, twin(*inputs), torch.float32)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_constant_map_has_no_covariance(device, layout, dtype):
    x = torch.randn(1, 20, 1, 1, dtype=dtype, device=device).expand(3, 20, 9, 9).contiguous(memory_format=layout)
    assert not ops.covariance(x).any()
