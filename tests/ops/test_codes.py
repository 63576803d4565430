"""sign_codes and hamming_distances: activation patterns as bits."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zcpipe.errors import UsageError
from zcpipe.ops import hamming_distances, sign_codes
from zcpipe.ops.codes import _hamming_distances, _sign_codes

SHAPES = [(2, 3, 5, 7), (1, 16, 8, 8), (3, 1, 4, 4), (2, 17, 1, 6), (4, 130, 3, 3), (2, 64, 9, 8), (3, 70, 1, 1)]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def normal(shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def random_codes(samples, words, seed=0):
    words64 = np.random.default_rng(seed).integers(-(2**63), 2**63, (samples, words), dtype=np.int64)
    return torch.from_numpy(words64)


def codes_by_definition(x):
    bits = (x.reshape(len(x), -1) > 0).numpy()
    padded = np.zeros((len(bits), -(-bits.shape[1] // 64) * 64), dtype=bool)
    padded[:, : bits.shape[1]] = bits
    return torch.from_numpy(np.packbits(padded, axis=1, bitorder="little").view("<i8").astype(np.int64))


def distances_by_definition(codes):
    bits = np.unpackbits(np.ascontiguousarray(codes.numpy()).view(np.uint8), axis=1).astype(bool)
    return torch.from_numpy((bits[:, None] != bits[None]).sum(2))


def assert_exact(got, expected):
    assert got.dtype == torch.int64 and torch.equal(got, expected)


def test_known_values():
    x = torch.tensor([[1.0, -1.0, 0.0, 2.0], [-0.0, 1e-45, float("nan"), float("inf")]])
    assert_exact(sign_codes(x), torch.tensor([[0b1001], [0b1010]]))
    ones = torch.ones(1, 65)
    assert_exact(sign_codes(ones), torch.tensor([[-1, 1]]))
    assert_exact(hamming_distances(torch.tensor([[0b1001, 0], [0b1010, -1]])), torch.tensor([[0, 66], [66, 0]]))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_codes_equal_the_twin_and_the_definition(native, shape, dtype, strided):
    x = strided(normal(shape, dtype))
    assert_exact(sign_codes(x), codes_by_definition(x))
    assert_exact(_sign_codes(x), codes_by_definition(x))


@pytest.mark.parametrize("shape", [(2, 197, 12), (5, 63), (5, 64), (3, 65), (1, 1), (2, 2, 3, 4, 5)], ids=str)
def test_codes_of_any_number_of_dimensions(native, shape, dtype):
    x = normal(shape, dtype)
    for a in (x, x.transpose(0, -1).contiguous().transpose(0, -1)):
        assert_exact(sign_codes(a), codes_by_definition(x))
    assert_exact(_sign_codes(x), codes_by_definition(x))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n=st.integers(1, 3),
    c=st.sampled_from([1, 2, 3, 4, 7, 8, 9, 16, 17, 31, 32, 33, 64, 65, 100, 129]),
    h=st.integers(1, 17),
    w=st.integers(1, 17),
    single=st.booleans(),
    seed=st.integers(0, 99),
)
def test_layouts_give_the_same_codes(native, n, c, h, w, single, seed):
    x = normal((n, c, h, w), torch.float32 if single else torch.float64, seed)
    for layout in LAYOUTS:
        assert_exact(sign_codes(x.contiguous(memory_format=layout)), codes_by_definition(x))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_nothing_is_read_beyond_a_map(layout):
    """Neighbours in memory that are positive do not reach a sample's padding."""
    x = torch.ones(4, 5, 3, 3).contiguous(memory_format=layout)
    x[1:3] = -1
    assert_exact(sign_codes(x[1:3]), torch.zeros(2, 1, dtype=torch.int64))
    assert_exact(sign_codes(x)[0], torch.tensor([2**45 - 1]))


@given(samples=st.integers(1, 20), words=st.sampled_from([1, 2, 7, 8, 9, 31, 64, 100, 511, 512, 513, 1100]))
def test_distances_of_any_codes(samples, words):
    codes = random_codes(samples, words)
    assert_exact(hamming_distances(codes), distances_by_definition(codes))
    assert_exact(_hamming_distances(codes), distances_by_definition(codes))


def test_distances_read_any_strides(native):
    codes = random_codes(6, 10)
    expected = distances_by_definition(codes)
    assert_exact(hamming_distances(codes.T.contiguous().T), expected)
    assert_exact(hamming_distances(torch.cat([codes, codes], 1)[:, :10]), expected)


def test_concatenated_codes_add_their_distances():
    a, b = sign_codes(normal((9, 3, 5, 5))), sign_codes(normal((9, 7), seed=1))
    together = hamming_distances(torch.cat([a, b], 1))
    assert_exact(together, hamming_distances(a) + hamming_distances(b))


def test_the_kernel_of_nwot_follows():
    """Of F signs, those that agree are F minus the distance."""
    x = normal((12, 3, 6, 6))
    on = (x > 0).flatten(1).double()
    kernel = on @ on.T + (1 - on) @ (1 - on).T
    assert torch.equal(108 - hamming_distances(sign_codes(x)).double(), kernel)


def test_the_distinct_neurons_of_swap_follow():
    """The code of a neuron over the batch is that of the transposed map."""
    x = normal((6, 3, 8, 8))
    distinct = torch.unique(sign_codes(x.flatten(1).T), dim=0).shape[0]
    assert distinct == np.unique((x > 0).flatten(1).numpy(), axis=1).shape[1]


@pytest.mark.parametrize(
    ("shape", "words"), [((0, 3, 4, 4), 1), ((0, 65), 2), ((2, 0, 4, 4), 0), ((2, 3, 0, 4), 0), ((2, 0), 0)], ids=str
)
def test_no_elements_give_empty_codes(shape, words):
    for codes in (sign_codes(torch.zeros(shape)), _sign_codes(torch.zeros(shape))):
        assert codes.shape == (shape[0], words)
        for distances in (hamming_distances(codes), _hamming_distances(codes)):
            assert_exact(distances, torch.zeros(shape[0], shape[0], dtype=torch.int64))


def test_gradients_are_not_asked_for(dtype):
    assert not sign_codes(normal((2, 3, 4, 4), dtype).requires_grad_()).requires_grad


def test_opcheck(native, strided, dtype):
    x = strided(normal((2, 3, 6, 5), dtype))
    torch.library.opcheck(torch.ops.zcpipe.sign_codes.default, (x,))
    torch.library.opcheck(torch.ops.zcpipe.hamming_distances.default, (random_codes(3, 5),))


def test_meta_tensors_give_meta_tensors():
    codes = sign_codes(torch.empty(6, 3, 5, 5, device="meta"))
    assert codes.is_meta and codes.shape == (6, 2) and codes.dtype == torch.int64
    assert hamming_distances(codes).is_meta and hamming_distances(codes).shape == (6, 6)


def test_the_number_of_threads_changes_nothing(native):
    x = normal((64, 16, 32, 32)).contiguous(memory_format=torch.channels_last)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            codes = sign_codes(x)
            results.append(torch.cat([codes, hamming_distances(codes)], 1))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


@pytest.mark.parametrize(
    ("op", "argument", "message"),
    [
        (sign_codes, torch.zeros(4, 3).half(), "^x: got torch.float16, expected "),
        (sign_codes, torch.zeros(4), r"^x: got shape \(4,\), expected two dimensions or more"),
        (sign_codes, [1.0], "^x: got list, expected a tensor"),
        (hamming_distances, [1], "^codes: got list, expected a tensor"),
        (hamming_distances, torch.zeros(4, 3), "^codes: got torch.float32 of layout torch.strided, expected torch.int"),
        (hamming_distances, torch.zeros(4).long(), r"^codes: got shape \(4,\), expected two dimensions"),
    ],
    ids=["dtype", "dimensions", "no tensor", "no codes", "dtype of codes", "dimensions of codes"],
)
def test_a_wrong_argument_is_named(op, argument, message):
    with pytest.raises(UsageError, match=message):
        op(argument)


def test_direct_calls_are_guarded_too(native):
    ops = torch.ops.zcpipe
    with pytest.raises(RuntimeError, match="x: got Half, expected float32 or float64"):
        ops.sign_codes(torch.zeros(3, 4).half())
    with pytest.raises(RuntimeError, match="x: got 1 dimensions, expected 2 or more"):
        ops.sign_codes(torch.zeros(3))
    with pytest.raises(RuntimeError, match="codes: got Float, expected int64"):
        ops.hamming_distances(torch.zeros(3, 4))
    with pytest.raises(RuntimeError, match="codes: got 1 dimensions, expected 2"):
        ops.hamming_distances(torch.zeros(3).long())
