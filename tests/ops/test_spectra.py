"""symmetric_eigenvalues and largest_singular_values: spectra of many small matrices at once."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zcpipe.errors import UsageError
from zcpipe.ops import largest_singular_values, symmetric_eigenvalues

SIZES = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), max_size=8)


def matrices(sizes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(len(sizes))
    return [torch.randn(size, generator=generator, dtype=dtype) for size in sizes]


@given(sizes=SIZES, single=st.booleans())
def test_eigenvalues_are_numpys_in_order(sizes, single):
    dtype, tolerance = (torch.float32, 1e-4) if single else (torch.float64, 1e-10)
    grams = [a @ a.T for a in matrices(sizes, dtype)]
    for gram, found in zip(grams, symmetric_eigenvalues(grams), strict=True):
        expected = np.linalg.eigvalsh(gram.double().numpy())
        assert found.dtype == dtype
        np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=tolerance * max(1.0, expected[-1]))


@given(sizes=SIZES, single=st.booleans(), exponent=st.integers(-18, 18))
def test_the_largest_singular_values_are_numpys_at_any_scale(sizes, single, exponent):
    dtype, tolerance = (torch.float32, 1e-5) if single else (torch.float64, 1e-12)
    given_ = [a * 10.0**exponent for a in matrices(sizes, dtype)]
    for matrix, found in zip(given_, largest_singular_values(given_), strict=True):
        expected = np.linalg.svd(matrix.double().numpy(), compute_uv=False)[0]
        assert found.dtype == dtype and found.shape == ()
        assert float(found) == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize(("rows", "columns", "rank"), [(128, 128, 128), (150, 400, 150), (400, 150, 1), (200, 200, 3)])
@pytest.mark.parametrize("spread", [1e-9, 1.0])
def test_large_matrices_are_as_exact(rows, columns, rank, spread):
    """Also where the largest singular values lie so close together that telling them apart is slow."""
    generator = torch.Generator().manual_seed(rank)
    left, right = (torch.linalg.qr(torch.randn(n, rank, generator=generator).double())[0] for n in (rows, columns))
    matrix = left * (1 + spread * torch.rand(rank, generator=generator).double()) @ right.T
    expected = np.linalg.svd(matrix.numpy(), compute_uv=False)[0]
    (found,), (again,) = (largest_singular_values([matrix]) for _ in range(2))
    assert float(found) == pytest.approx(expected, rel=1e-12)
    assert torch.equal(found, again), "the same bits, whatever the global random state"
    assert float(largest_singular_values([matrix.float()])[0]) == pytest.approx(expected, rel=1e-5)


def test_large_matrices_have_gradients():
    matrix = matrices([(130, 130)])[0].requires_grad_()
    (gradient,) = torch.autograd.grad(largest_singular_values([matrix])[0], matrix)
    left, _, right = torch.linalg.svd(matrix.detach())
    torch.testing.assert_close(gradient, torch.outer(left[:, 0], right[0]))


@pytest.mark.parametrize("size", [3, 200])
def test_zero_has_no_gain(size):
    assert float(largest_singular_values([torch.zeros(size, size + 1)])[0]) == 0.0
    assert not symmetric_eigenvalues([torch.zeros(3, 3)])[0].any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_matrix_that_is_not_finite_spoils_no_other(bad):
    one = torch.eye(3)
    spoilt = one.clone()
    spoilt[2, 1] = bad
    first, second = symmetric_eigenvalues([one, spoilt])
    assert torch.equal(first, torch.ones(3)) and second.isnan().all()
    first, second = largest_singular_values([one, spoilt])
    assert float(first) == 1.0 and second.isnan()


@pytest.mark.parametrize("op", [symmetric_eigenvalues, largest_singular_values])
def test_a_wrong_matrix_is_named(op):
    with pytest.raises(UsageError, match=r"^matrices\[1\]: got torch.float16"):
        op([torch.eye(2), torch.eye(2).half()])
    with pytest.raises(UsageError, match=r"^matrices\[0\]: got shape \(3,\), expected a matrix"):
        op([torch.zeros(3)])
    with pytest.raises(UsageError, match=r"^matrices\[0\]: got shape \(0, 0\), expected a matrix"):
        op([torch.zeros(0, 0)])
    with pytest.raises(UsageError, match=r"expected a square matrix"):
        symmetric_eigenvalues([torch.zeros(2, 3)])


def test_meta_matrices_have_the_shapes_of_spectra(native):
    """The kernels are for CUDA alone, so their fake kernels are asked by themselves."""
    matrices = [torch.empty(size, device="meta") for size in [(3, 3), (5, 5)]]
    values = torch.ops.zcpipe.symmetric_eigenvalues(matrices)
    assert values.shape == (8,) and values.dtype == torch.float64
    values = torch.ops.zcpipe.largest_singular_values([*matrices, torch.empty(2, 7, device="meta")])
    assert values.shape == (3,) and values.dtype == torch.float64
