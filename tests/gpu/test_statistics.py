"""Every statistic's CUDA kernels on a device, against the reference twins."""

import pytest
import torch

from zcpipe import ops
from zcpipe.ops.codes import _hamming_distances, _sign_codes
from zcpipe.ops.moments import _covariance, _cross_moment
from zcpipe.ops.parameters import _parameter_statistics
from zcpipe.ops.products import _product_sums
from zcpipe.ops.spectra import _by_shape, _eigenvalues, _largest

SHAPES = [(2, 3, 6, 8), (1, 16, 8, 8), (64, 16, 32, 32), (3, 17, 10, 4), (4, 5, 2, 2), (2, 70, 8, 6), (40, 200, 2, 2)]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def every_other_column(x):
    return torch.stack([x, x], 4).flatten(3)[:, :, :, ::2]


def halved(x):
    return x.roll(1, 1)[:, :, ::2, ::2]


# name: (public function, twin, its tensors from images)
STATISTICS = {
    "covariance": (ops.covariance, _covariance, lambda x: (x,)),
    "covariance of rows": (ops.covariance, _covariance, lambda x: (x.flatten(1)[:, :90],)),
    "covariance of slices": (ops.covariance, _covariance, lambda x: (every_other_column(x),)),
    "cross_moment": (ops.cross_moment, _cross_moment, lambda x: (x, x[:, : 1 + x.shape[1] // 2])),
    "cross_moment of another resolution": (ops.cross_moment, _cross_moment, lambda x: (x, halved(x))),
    "product_sums": (ops.product_sums, _product_sums, lambda x: (x, x.roll(1, 0))),
    "product_sums of tokens": (ops.product_sums, _product_sums, lambda x: (x.flatten(2), x.sin().flatten(2))),
    "product_sums of rows": (ops.product_sums, _product_sums, lambda x: (x.flatten(1), x.sin().flatten(1))),
    "sign_codes": (ops.sign_codes, _sign_codes, lambda x: (x,)),
    "sign_codes of neurons": (ops.sign_codes, _sign_codes, lambda x: (x.flatten(1).T,)),
    "hamming_distances": (ops.hamming_distances, _hamming_distances, lambda x: (_sign_codes(x),)),
    "hamming_distances of pixels": (
        ops.hamming_distances,
        _hamming_distances,
        lambda x: (_sign_codes(x.flatten(2).mT[0]),),
    ),
}
every_statistic = pytest.mark.parametrize("name", STATISTICS)


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


def images(shape, dtype, device, layout=torch.contiguous_format):
    return torch.randn(shape, dtype=dtype, device=device).to(memory_format=layout)


def close(ours, twin, dtype):
    """Sums may cancel: compare with the size of the largest."""
    assert ours.dtype == twin.dtype and ours.is_cuda
    if ours.dtype == torch.int64:
        assert torch.equal(ours, twin)
        return
    atol = (2e-6 if dtype == torch.float32 else 1e-12) * max(1.0, float(twin.abs().max()))
    torch.testing.assert_close(ours, twin, atol=atol, rtol=0)


def test_no_statistic_goes_to_its_twin(device):
    names = {public.__name__ for public, _, _ in STATISTICS.values()}
    for op in names | {"parameter_statistics", "symmetric_eigenvalues", "largest_singular_values"}:
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
    first = op(*inputs)
    assert all(torch.equal(first, op(*inputs)) for _ in range(3))


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
            t.copy_(t.flip(0))
        graph.replay()
        close(y, twin(*inputs), torch.float32)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_constant_map_has_no_covariance(device, layout, dtype):
    x = torch.randn(1, 20, 1, 1, dtype=dtype, device=device).expand(3, 20, 9, 9).contiguous(memory_format=layout)
    assert not ops.covariance(x).any()


class TestParameterStatistics:
    SHAPES = ((16, 3, 3, 3), (64, 64, 3, 3), (10, 64), (5,), (0, 3), (512, 512, 3, 3))

    def equals_the_twin(self, weights, grads):
        ours = torch.stack(tuple(ops.parameter_statistics(weights, grads)), 1)
        twin = _parameter_statistics(weights, grads)
        scale = twin.abs().amax(1, keepdim=True).clamp_min(1.0)
        torch.testing.assert_close(ours / scale, twin / scale, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("layout", LAYOUTS, ids=str)
    def test_equal_the_twin(self, device, dtype, layout):
        def tensors(layout):
            drawn = [torch.randn(shape, dtype=dtype, device=device) for shape in self.SHAPES]
            return [t.contiguous(memory_format=layout) if t.ndim == 4 else t for t in drawn]

        self.equals_the_twin(tensors(layout), tensors(layout))
        self.equals_the_twin(tensors(layout), tensors(torch.contiguous_format))

    def test_of_many_layers_of_two_dtypes(self, device):
        dtypes = (torch.float32, torch.float64)
        pairs = [torch.randn(2, 7 * k, dtype=dtypes[k % 2], device=device) for k in range(300)]
        self.equals_the_twin([pair[0] for pair in pairs], [pair[1] for pair in pairs])


class TestSpectra:
    SIZES = (1, 2, 3, 16, 17, 32, 63, 64, 65, 100)  # the last two go to torch.linalg

    def matrices(self, device, dtype):
        return [torch.randn(n, n + 3, dtype=dtype, device=device) for n in self.SIZES]

    def test_eigenvalues_are_lapacks(self, device, dtype):
        grams = [m @ m.T for m in self.matrices(device, dtype)]
        expected = _by_shape(grams, _eigenvalues)
        for ours, theirs in zip(ops.symmetric_eigenvalues(grams), expected, strict=True):
            assert ours.dtype == dtype
            close(ours, theirs, dtype)

    def test_largest_singular_values_are_lapacks(self, device, dtype):
        matrices = self.matrices(device, dtype)
        matrices += [m.T for m in matrices] + [1e30 * m for m in matrices]
        expected = _by_shape(matrices, _largest)
        for ours, theirs in zip(ops.largest_singular_values(matrices), expected, strict=True):
            assert ours.dtype == dtype and ours.shape == ()
            torch.testing.assert_close(ours, theirs, rtol=1e-5 if dtype == torch.float32 else 1e-11, atol=0)

    def test_a_matrix_that_is_not_finite_spoils_no_other(self, device, dtype):
        one = torch.eye(3, dtype=dtype, device=device)
        first, second = ops.symmetric_eigenvalues([one, one / 0])
        assert torch.equal(first, torch.ones_like(first)) and second.isnan().all()

    def test_mixed_dtypes_and_gradients_find_their_way(self, device):
        a, b = torch.eye(3, device=device), torch.eye(4, dtype=torch.float64, device=device).requires_grad_()
        first, second = ops.symmetric_eigenvalues([a, b])
        assert first.dtype == torch.float32 and second.dtype == torch.float64
        second.sum().backward()
        assert torch.equal(b.grad, torch.eye(4, dtype=torch.float64, device=device))

    def test_a_launch_can_be_captured(self, device):
        matrices = self.matrices(device, torch.float64)[:7]
        ops.largest_singular_values(matrices)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            values = ops.largest_singular_values(matrices)
        matrices[3].mul_(3)
        graph.replay()
        for ours, theirs in zip(values, _by_shape(matrices, _largest), strict=True):
            close(ours, theirs, torch.float64)
