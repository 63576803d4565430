"""covariance and cross_moment: second moments over positions, in double precision."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zcpipe.errors import UsageError
from zcpipe.ops import covariance, cross_moment, position_gram
from zcpipe.ops.moments import _covariance, _cross_moment

SHAPES = [
    (2, 3, 5, 7),
    (1, 16, 8, 8),
    (3, 1, 4, 4),
    (2, 17, 1, 6),
    (40, 9, 1, 1),
    (1, 2, 1, 1),
    (2, 70, 3, 5),
    (5, 8, 33, 31),
    (64, 64, 8, 8),
]
CHANNELS = st.sampled_from([1, 2, 3, 7, 8, 9, 16, 17, 24, 33])
ROWS = st.one_of(st.integers(1, 40), st.integers(200, 3000))
LAYOUTS = [torch.contiguous_format, torch.channels_last]
FORMS = {
    "contiguous": lambda rows: rows,
    "columns": lambda rows: torch.cat([rows, rows], 1)[:, : rows.shape[1]],
    "every other": lambda rows: rows.repeat_interleave(2, 0)[::2],
    "transposed": lambda rows: rows.T.contiguous().T,
}


def normal(shape, dtype=torch.float64, seed=0, mean=0.0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)) + mean


def rows_of(x):
    return x if x.ndim == 2 else x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def covariance_by_definition(x):
    rows = rows_of(x).double().numpy()
    deviation = rows - rows.mean(0)
    return torch.from_numpy(deviation.T @ deviation / len(rows))


def moment_by_definition(a, b):
    return torch.from_numpy(a.double().numpy().T @ b.double().numpy() / len(a))


def assert_near(got, expected, scale, tolerance):
    """Compare with the channels' own sizes: entries may cancel."""
    assert got.dtype == torch.float64
    assert ((got - expected).abs() <= tolerance * scale + 1e-300).all()


def deviations(x):
    s = covariance_by_definition(x).diagonal().sqrt()
    return torch.outer(s, s)


def sizes(a, b):
    return torch.outer(a.double().square().mean(0).sqrt(), b.double().square().mean(0).sqrt())


def entropy(c):
    share = torch.linalg.eigvalsh(c).clamp_min(0)
    share /= share.sum()
    return float(-(share * torch.log(share + 1e-8)).sum())


def test_known_values():
    rows = torch.tensor([[1.0, 2.0], [3.0, -2.0], [5.0, 0.0], [7.0, 0.0]])
    assert torch.equal(covariance(rows), torch.tensor([[5.0, -1.0], [-1.0, 2.0]]).double())
    moment = torch.tensor([[21.0, -1.0], [-1.0, 2.0]]).double()
    assert torch.equal(cross_moment(rows, rows), moment)
    assert torch.equal(cross_moment(rows, rows[:, 1:]), moment[:, 1:])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_covariance_equals_the_twin_and_the_definition(native, shape, dtype, strided):
    x = strided(normal(shape, dtype, mean=1.0))
    got, exact, scale = covariance(x), covariance_by_definition(x), deviations(x)
    assert torch.equal(got, got.T)
    assert_near(got, exact, scale, 1e-7 if dtype == torch.float32 else 1e-12)
    assert_near(_covariance(x), exact, scale, 1e-12)


@given(r=ROWS, c=CHANNELS, form=st.sampled_from(sorted(FORMS)), single=st.booleans(), seed=st.integers(0, 99))
def test_covariance_of_any_rows(r, c, form, single, seed):
    x = FORMS[form](normal((r, c), torch.float32 if single else torch.float64, seed))
    assert_near(covariance(x), covariance_by_definition(x), deviations(x), 1e-7 if single else 1e-11)


@given(r=ROWS, ca=CHANNELS, cb=CHANNELS, form=st.sampled_from(sorted(FORMS)), single=st.booleans())
def test_cross_moment_of_any_rows(r, ca, cb, form, single):
    dtype = torch.float32 if single else torch.float64
    a, b = FORMS[form](normal((r, ca), dtype, 1)), FORMS[form](normal((r, cb), dtype, 2))
    exact, scale = moment_by_definition(a, b), sizes(a, b)
    assert_near(cross_moment(a, b), exact, scale, 1e-6 if single else 1e-13)
    assert_near(_cross_moment(a, b), exact, scale, 1e-13)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(n=st.integers(1, 5), c=CHANNELS, h=st.integers(1, 20), w=st.integers(1, 20), single=st.booleans())
def test_layouts_give_the_same_bits(native, n, c, h, w, single):
    x = normal((n, c, h, w), torch.float32 if single else torch.float64)
    nchw, nhwc = (covariance(x.contiguous(memory_format=layout)) for layout in LAYOUTS)
    assert torch.equal(nchw, nhwc)
    assert torch.equal(nchw, covariance(rows_of(x)))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("value", [0.0, 3.7, -1e6, 1e-30, 3e38])
@pytest.mark.parametrize("twin", [False, True], ids=["native", "twin"])
def test_a_constant_map_gives_exactly_zero(layout, value, dtype, twin):
    x = torch.full((5, 11, 30, 7), value, dtype=dtype).contiguous(memory_format=layout)
    x *= torch.linspace(-1, 1, 11, dtype=dtype).view(1, 11, 1, 1)
    assert not (_covariance if twin else covariance)(x).any()
    assert not (_covariance if twin else covariance)(x[:1, :, :1, :1]).any()


@pytest.mark.parametrize("mean", [0.0, 1.0, 1e4, -1e6])
@pytest.mark.parametrize("channels", [5, 16, 64])
def test_float32_far_from_zero_loses_nothing(mean, channels):
    x = normal((20_000, channels), torch.float32, mean=mean)
    exact = covariance_by_definition(x)
    got = covariance(x)
    assert_near(got, exact, deviations(x), 1e-7)
    assert entropy(got) == pytest.approx(entropy(exact), rel=1e-7)


@pytest.mark.parametrize("rank", [1, 3, 12])
def test_entropy_of_a_steep_spectrum(rank):
    """Eigenvalues over seven decades, down to what float32 data resolve."""
    latent = normal((9000, rank), seed=1) @ normal((rank, 16), seed=2)
    x = (latent + normal((9000, 16), seed=3) * torch.logspace(0, -3.5, 16)).float()
    exact, got = covariance_by_definition(x), covariance(x)
    assert entropy(got) == pytest.approx(entropy(exact), rel=1e-7)
    torch.testing.assert_close(torch.linalg.eigvalsh(got), torch.linalg.eigvalsh(exact), rtol=1e-6, atol=0)


def test_one_far_first_position_does_not_spoil_the_rest():
    x = normal((4000, 6))
    x[0] = 1e6
    assert_near(covariance(x), covariance_by_definition(x), deviations(x), 1e-9)
    assert_near(covariance(x.float()), covariance_by_definition(x.float()), deviations(x), 1e-7)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("position", [0, 1, 1500, 2999])
@pytest.mark.parametrize("twin", [False, True], ids=["native", "twin"])
def test_no_value_that_is_not_finite_is_lost(bad, position, dtype, twin):
    x = normal((3000, 9), dtype)
    x[position, 8] = bad
    finite = torch.isfinite((_covariance if twin else covariance)(x))
    assert not finite[8].any() and not finite[:, 8].any() and finite[:8, :8].all()
    finite = torch.isfinite((_cross_moment if twin else cross_moment)(x, x[:, :8]))
    assert not finite[8].any() and finite[:8].all()


def test_the_whole_range_of_float32_is_finite():
    x = torch.tensor([[3e38, 1e-45], [-3e38, 0.0]])
    assert_near(covariance(x), covariance_by_definition(x), deviations(x), 1e-7)


def test_gradients_are_not_asked_for(dtype):
    x = normal((20, 3), dtype).requires_grad_()
    assert not covariance(x).requires_grad
    assert not cross_moment(x, x).requires_grad


def test_no_channels_give_no_moments():
    assert covariance(torch.zeros(5, 0)).shape == (0, 0)
    assert cross_moment(torch.zeros(5, 0), torch.zeros(5, 3)).shape == (0, 3)
    assert cross_moment(torch.zeros(5, 3), torch.zeros(5, 0)).shape == (3, 0)


def test_opcheck(native, strided, dtype):
    x = strided(normal((2, 3, 4, 5), dtype))
    torch.library.opcheck(torch.ops.zcpipe.covariance.default, (x,))
    torch.library.opcheck(torch.ops.zcpipe.covariance.default, (rows_of(x),))
    torch.library.opcheck(torch.ops.zcpipe.cross_moment.default, (rows_of(x), rows_of(x)[:, :2]))
    torch.library.opcheck(torch.ops.zcpipe.cross_moment.default, (x[:, :, :, :4], normal((2, 5, 2, 2), dtype)))


def test_meta_tensors_give_meta_tensors():
    x = torch.empty(6, 3, device="meta")
    for moment, shape in ((covariance(x), (3, 3)), (cross_moment(x, x[:, :2]), (3, 2))):
        assert moment.is_meta and moment.shape == shape and moment.dtype == torch.float64


def test_the_number_of_threads_changes_nothing(native):
    x = normal((64, 16, 32, 32), torch.float32).contiguous(memory_format=torch.channels_last)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(torch.stack([covariance(x), cross_moment(rows_of(x), rows_of(x))]))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


def test_sums_of_small_integers_lose_nothing(native):
    """128 products of float32 below 2^16 are exact, and so is what double precision makes of them."""
    x = torch.from_numpy(np.random.default_rng(0).integers(-(2**8), 2**8, (5000, 17)).astype(np.float32))
    exact = x.numpy().astype(np.int64).T @ x.numpy().astype(np.int64)
    assert np.array_equal((cross_moment(x, x) * 5000).round().numpy(), exact)
    wide = x.double() * 2**16  # products below 2^48
    assert np.array_equal((cross_moment(wide, wide) * 5000 / 2**32).round().numpy(), exact)


def test_float32_cross_moments_are_more_accurate_than_torchs(native):
    a, b = normal((60_000, 16), torch.float32, 1), normal((60_000, 16), torch.float32, 2)
    exact = moment_by_definition(a, b)
    ours, theirs = cross_moment(a, b) - exact, (a.T @ b / len(a)).double() - exact
    assert float(ours.square().mean()) <= float(theirs.square().mean())


@pytest.mark.parametrize("fold", [1, 2, 3])
@pytest.mark.parametrize("shape", [(2, 16, 32, 8, 8), (3, 5, 7, 3, 4), (1, 8, 9, 1, 2), (2, 32, 16, 5, 130)], ids=str)
def test_a_finer_map_is_folded(shape, fold, dtype, strided):
    n, ca, cb, h, w = shape
    a, b = strided(normal((n, ca, fold * h, fold * w), dtype, 1)), normal((n, cb, h, w), dtype, 2)
    folded = torch.nn.functional.pixel_unshuffle(a, fold)
    order = torch.arange(ca * fold * fold).view(ca, fold * fold).T.reshape(-1)  # pixel_unshuffle's is channel first
    exact = moment_by_definition(rows_of(folded)[:, order], rows_of(b))
    scale = sizes(rows_of(folded)[:, order], rows_of(b))
    assert_near(cross_moment(a, b), exact, scale, 1e-6 if dtype == torch.float32 else 1e-13)
    assert_near(_cross_moment(a, b), exact, scale, 1e-13)


@given(st.integers(1, 3), st.integers(1, 20), st.integers(1, 3), st.integers(1, 3), st.booleans())
def test_positions_and_channels_have_the_same_spectrum(n, channels, height, width, single):
    """But for zeros, of which the larger matrix has more."""
    x = torch.randn(n, channels, height, width, generator=torch.Generator().manual_seed(channels)) + 3
    x = x if single else x.double()
    small, large = sorted((torch.linalg.eigvalsh(m) for m in (position_gram(x), covariance(x))), key=len)
    more = len(large) - len(small)
    torch.testing.assert_close(small, large[more:], atol=1e-12, rtol=0)
    assert not large[:more].abs().gt(1e-12).any()


@pytest.mark.parametrize("value", [0.0, 0.1, -3e8])
def test_the_positions_of_a_constant_map_give_exactly_zero(value):
    assert not position_gram(torch.full((2, 5, 1, 3), value)).any()


def test_positions_that_are_not_finite_spoil_the_products():
    x = torch.zeros(2, 5, 1, 2)
    x[1, 3] = float("nan")
    assert position_gram(x).isnan().any()


def test_a_wrong_argument_of_position_gram_is_named():
    with pytest.raises(UsageError, match=r"^x: got torch.float16"):
        position_gram(torch.zeros(4, 3).half())


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(4, 3).half(), "got torch.float16, expected "),
        (torch.zeros(3), r"got shape \(3,\), expected rows \(R, C\) or a feature map \(N, C, H, W\)"),
        (torch.zeros(2, 3, 4), r"got shape \(2, 3, 4\), expected rows"),
        (torch.zeros(0, 3), r"got shape \(0, 3\), expected at least one position"),
        (torch.zeros(2, 3, 0, 4), r"got shape \(2, 3, 0, 4\), expected at least one position"),
        ([1.0], "got list, expected "),
    ],
    ids=["half", "one dimension", "three dimensions", "no rows", "no pixels", "no tensor"],
)
def test_a_wrong_argument_of_covariance_is_named(x, message):
    with pytest.raises(UsageError, match=f"^x: {message}"):
        covariance(x)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.zeros(4, 3).half(), torch.zeros(4, 3), "^a: got torch.float16, expected "),
        (torch.zeros(4, 3), torch.zeros(4), r"^b: got shape \(4,\), expected rows"),
        (torch.zeros(0, 3), torch.zeros(0, 3), r"^a: got shape \(0, 3\), expected at least one position"),
        (torch.zeros(4, 3), torch.zeros(5, 3), r"^b: got shape \(5, 3\), expected 4 rows or samples as in a"),
        (torch.zeros(4, 3), torch.zeros(4, 3, 1, 1), r"^b: got shape \(4, 3, 1, 1\), expected 4 rows"),
        (torch.zeros(1, 2, 5, 4), torch.zeros(1, 2, 2, 2), r"^a: got resolution \(5, 4\), expected an integer"),
        (torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 4, 4), r"^a: got resolution \(2, 2\), expected an integer"),
        (torch.zeros(4, 3), torch.zeros(4, 3).double(), "^b: got torch.float64 on cpu, expected a's torch.float32"),
        (torch.zeros(4, 3), torch.zeros(4, 3, device="meta"), "^b: got torch.float32 on meta, expected a's"),
    ],
    ids=["dtype", "dimensions", "no rows", "other rows", "map", "odd", "finer", "other dtype", "other device"],
)
def test_a_wrong_argument_of_cross_moment_is_named(a, b, message):
    with pytest.raises(UsageError, match=message):
        cross_moment(a, b)


def test_direct_calls_are_guarded_too(native):
    ops = torch.ops.zcpipe
    with pytest.raises(RuntimeError, match="x: got 3 dimensions, expected 2 or 4"):
        ops.covariance(torch.zeros(3, 4, 4))
    with pytest.raises(RuntimeError, match="x: expected at least one position"):
        ops.covariance(torch.zeros(0, 4))
    with pytest.raises(RuntimeError, match="x: got Half, expected float32 or float64"):
        ops.covariance(torch.zeros(3, 4).half())
    with pytest.raises(RuntimeError, match="b: expected the rows of a"):
        ops.cross_moment(torch.zeros(3, 4), torch.zeros(4, 4))
    with pytest.raises(RuntimeError, match="expected at least one row"):
        ops.cross_moment(torch.zeros(0, 4), torch.zeros(0, 4))
