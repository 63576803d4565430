"""product_sums: z dz summed over pixels, in double precision."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zcpipe.errors import UsageError
from zcpipe.ops import product_sums
from zcpipe.ops.products import _product_sums

SHAPES = [
    (2, 3, 5, 7),
    (1, 16, 8, 8),
    (3, 1, 40, 4),
    (2, 17, 1, 6),
    (4, 130, 7, 7),
    (2, 5, 31, 1),
    (2, 5, 32, 1),
    (1, 1, 1, 1),
    (9, 8, 33, 31),
]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def normal(shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def pair(shape, dtype=torch.float32):
    return normal(shape, dtype, 1), normal(shape, dtype, 2)


def assert_near(got, z, dz):
    """Compare each sum with that of its terms' magnitudes: products may cancel."""
    terms = z.double().numpy() * dz.double().numpy()
    pixels = {2: (), 3: 1, 4: (2, 3)}[z.ndim]
    exact, scale = (torch.from_numpy(np.asarray(np.sum(t, axis=pixels))) for t in (terms, np.abs(terms)))
    assert got.dtype == torch.float64 and got.shape == exact.shape
    assert ((got - exact).abs() <= 1e-14 * scale).all()


def test_known_values():
    z = torch.arange(8.0).view(1, 2, 2, 2)
    dz = torch.tensor([1.0, -1.0, 2.0, 0.0]).repeat(2).view(1, 2, 2, 2)
    assert torch.equal(product_sums(z, dz), torch.tensor([[3.0, 11.0]]).double())
    assert torch.equal(product_sums(z.view(1, 4, 2), dz.view(1, 4, 2)), torch.tensor([[20.0, -6.0]]).double())
    assert torch.equal(product_sums(z.view(2, 4), dz.view(2, 4)), (z * dz).double().view(2, 4))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_twin_and_the_definition(native, shape, dtype, strided):
    z, dz = (strided(t) for t in pair(shape, dtype))
    assert_near(product_sums(z, dz), z, dz)
    assert_near(_product_sums(z, dz), z, dz)


@pytest.mark.parametrize("shape", [(2, 197, 12), (1, 5, 3), (3, 32, 1), (4, 7), (3, 600), (1, 1)], ids=str)
def test_tokens_and_rows(native, shape, dtype):
    z, dz = pair(shape, dtype)
    for a in (z, z.transpose(0, -1).contiguous().transpose(0, -1), torch.cat([z, z], -1)[..., : shape[-1]]):
        assert_near(product_sums(a, dz), z, dz)
    assert_near(_product_sums(z, dz), z, dz)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n=st.integers(1, 4),
    c=st.sampled_from([1, 2, 3, 7, 8, 9, 16, 17, 64, 70]),
    h=st.integers(1, 20),
    w=st.integers(1, 20),
    single=st.booleans(),
)
def test_layouts_give_the_same_bits(native, n, c, h, w, single):
    z, dz = pair((n, c, h, w), torch.float32 if single else torch.float64)
    results = [
        product_sums(z.contiguous(memory_format=a), dz.contiguous(memory_format=b)) for a in LAYOUTS for b in LAYOUTS
    ]
    assert all(torch.equal(result, results[0]) for result in results)
    tokens = product_sums(z.flatten(2).transpose(1, 2), dz.flatten(2).transpose(1, 2))
    assert torch.equal(tokens, results[0])
    assert_near(results[0], z, dz)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_sample_does_not_depend_on_the_batch(layout):
    z, dz = (t.contiguous(memory_format=layout) for t in pair((8, 16, 32, 32)))
    assert torch.equal(product_sums(z, dz)[3:4], product_sums(z[3:4], dz[3:4]))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("position", [0, 31, 98])
def test_no_value_that_is_not_finite_is_lost(layout, bad, position):
    z, dz = (t.contiguous(memory_format=layout) for t in pair((2, 5, 9, 11)))
    z[1, 2, position // 11, position % 11] = bad
    finite = product_sums(z, dz).isfinite()
    assert not finite[1, 2] and finite.sum() == 9


def test_nothing_overflows_float32():
    z = torch.full((1, 2, 8, 8), 3e38)
    assert product_sums(z, z).tolist() == [[pytest.approx(64 * 9e76, rel=1e-6)] * 2]


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4), (2, 0, 3), (0, 5)], ids=str)
def test_no_elements_give_zeros(shape):
    z = torch.zeros(shape)
    got = product_sums(z, z)
    assert got.shape == _product_sums(z, z).shape and not got.any()


def test_gradients_are_not_asked_for(dtype):
    z, dz = (t.requires_grad_() for t in pair((2, 3, 4, 4), dtype))
    assert not product_sums(z, dz).requires_grad


def test_opcheck(native, strided, dtype):
    z, dz = pair((2, 3, 4, 5), dtype)
    op = torch.ops.zcpipe.product_sums.default
    torch.library.opcheck(op, (strided(z), dz))
    torch.library.opcheck(op, (z.flatten(2), dz.flatten(2)))
    torch.library.opcheck(op, (z.flatten(1), dz.flatten(1)))


@pytest.mark.parametrize("shape", [(2, 6, 4, 5), (2, 9, 6), (2, 6)], ids=str)
def test_meta_tensors_give_meta_tensors(shape):
    z = torch.empty(shape, device="meta")
    got = product_sums(z, z)
    assert got.is_meta and got.shape == (2, 6) and got.dtype == torch.float64


def test_the_number_of_threads_changes_nothing(native):
    z, dz = (t.contiguous(memory_format=torch.channels_last) for t in pair((64, 16, 32, 32)))
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(product_sums(z, dz))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


Z = torch.zeros(4, 3)


@pytest.mark.parametrize(
    ("z", "dz", "message"),
    [
        (Z.half(), Z, "^z: got torch.float16, expected "),
        (Z, [1.0], "^dz: got list, expected a tensor"),
        (Z[0], Z[0], r"^z: got shape \(3,\), expected \(N, C, H, W\), \(N, T, C\) or \(N, C\)"),
        (Z, Z.T, r"^dz: got shape \(3, 4\), expected \(4, 3\) as z"),
        (Z, Z.double(), "^dz: got torch.float64 on cpu, expected z's torch.float32"),
        (Z, Z.to("meta"), "^dz: got torch.float32 on meta, expected z's torch.float32 on cpu"),
    ],
    ids=["dtype", "no tensor", "dimensions", "shape", "other dtype", "other device"],
)
def test_a_wrong_argument_is_named(z, dz, message):
    with pytest.raises(UsageError, match=message):
        product_sums(z, dz)


def test_direct_calls_are_guarded_too(native):
    op = torch.ops.zcpipe.product_sums
    with pytest.raises(RuntimeError, match="z: got Half, expected float32 or float64"):
        op(Z.half(), Z.half())
    with pytest.raises(RuntimeError, match="z: got 1 dimensions, expected 2, 3 or 4"):
        op(Z[0], Z[0])
    with pytest.raises(RuntimeError, match="dz: expected the dtype of z"):
        op(Z, Z.double())
    with pytest.raises(RuntimeError, match="dz: expected the shape of z"):
        op(Z, Z.T)
