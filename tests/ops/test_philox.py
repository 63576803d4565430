"""Streams: random numbers as functions of (key, nonce, logical element index)."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from zcpipe.errors import UsageError
from zcpipe.ops import Stream, _philox_twin
from zcpipe.ops.philox import fill_all

STREAM = Stream.of(0, "nasbench201", "run", 0, "test")
SHAPES = [
    (),
    (1,),
    (7,),
    (129,),
    (3, 5),
    (2, 3, 5, 7),
    (3, 16, 8, 8),
    (5, 3, 1, 9),
    (4, 1, 3, 3),
    (2, 33, 6, 6),
    (1, 1, 40, 40),
]
FILLS = ["normal_", "uniform_", "rademacher_"]
# (first block, nonce, key, words) of Random123's known-answer tests, as 32-bit words from the low one up.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.fixture(params=["native", "twin"])
def either(request):
    """The test runs with the library and without."""
    request.getfixturevalue("native" if request.param == "native" else "no_native")


def words64(text):
    words = [int(word, 16) for word in text.split()]
    return [low | high << 32 for low, high in zip(words[::2], words[1::2], strict=True)]


def filled(fill, shape, dtype=torch.float32, layout=torch.contiguous_format, stream=STREAM):
    return getattr(stream, fill)(torch.empty(shape, dtype=dtype).to(memory_format=layout))


class TestBits:
    @pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
    def test_known_answers(self, either, counter, key, expected):
        (first, nonce), (key,) = words64(counter), words64(key)
        got = Stream(key, nonce)._words(first, 4)
        assert got.tolist() == [int(word, 16) for word in expected.split()]

    @pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 5, 130])
    def test_fewer_bits_are_the_beginning_of_more(self, either, n):
        assert STREAM.bits(n).shape == (n,)
        assert torch.equal(STREAM.bits(n), STREAM.bits(200)[:n])

    def test_are_words_of_32_bits_in_int64(self, either):
        bits = STREAM.bits(10_000)
        assert bits.dtype == torch.int64
        assert bits.min() >= 0 and 2**31 < bits.max() < 2**32

    @given(key=st.integers(0, 2**64 - 1), nonce=st.integers(0, 2**64 - 1), first=st.integers(0, 2**64 - 1))
    def test_native_equals_twin(self, key, nonce, first):
        twin = _philox_twin._bits(key, nonce, first, 70)
        assert np.array_equal(Stream(key, nonce)._words(first, 70).numpy(), twin)


class TestFills:
    @pytest.mark.parametrize("fill", FILLS)
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_native_equals_twin_bit_for_bit(self, native, monkeypatch, fill, shape, dtype):
        ours = filled(fill, shape, dtype)
        monkeypatch.setenv("ZCPIPE_NO_NATIVE", "1")
        assert torch.equal(ours, filled(fill, shape, dtype))

    @pytest.mark.parametrize("fill", FILLS)
    @pytest.mark.parametrize("shape", [shape for shape in SHAPES if len(shape) == 4], ids=str)
    def test_the_layout_does_not_matter(self, either, fill, shape, dtype):
        plain = filled(fill, shape, dtype)
        assert torch.equal(plain, filled(fill, shape, dtype, torch.channels_last))
        wide = torch.zeros(*shape[:3], 2 * shape[3], dtype=dtype)
        getattr(STREAM, fill)(wide[..., ::2])
        assert torch.equal(plain, wide[..., ::2])
        assert not wide[..., 1::2].any()
        turned = torch.empty(shape[::-1], dtype=dtype).permute(3, 2, 1, 0)
        assert torch.equal(plain, getattr(STREAM, fill)(turned))

    @pytest.mark.parametrize("fill", FILLS)
    @given(n=st.integers(0, 3), c=st.integers(0, 40), h=st.integers(0, 9), w=st.integers(0, 9))
    def test_any_images(self, fill, n, c, h, w):
        plain, last = filled(fill, (n, c, h, w)), filled(fill, (n, c, h, w), layout=torch.channels_last)
        long = filled(fill, (5000 + plain.numel(),))
        assert torch.equal(plain, last)
        assert torch.equal(plain.reshape(-1), long[: plain.numel()])

    @pytest.mark.parametrize("fill", FILLS)
    def test_the_number_of_threads_does_not_matter(self, native, fill):
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(1)
            one = filled(fill, (6, 5, 33, 101))
            torch.set_num_threads(3)
            assert torch.equal(one, filled(fill, (6, 5, 33, 101)))
            assert torch.equal(one, filled(fill, (6, 5, 33, 101), layout=torch.channels_last))
        finally:
            torch.set_num_threads(before)

    @pytest.mark.parametrize("fill", FILLS)
    def test_fill_in_place_and_return_the_tensor(self, either, fill):
        t = torch.zeros(3, 4)
        version = t._version
        assert getattr(STREAM, fill)(t) is t
        assert t.all() and t._version > version

    @pytest.mark.parametrize("fill", FILLS)
    def test_fill_a_parameter_unrecorded(self, either, fill):
        weight = torch.nn.Parameter(torch.zeros(4, 3))
        getattr(STREAM, fill)(weight)
        assert weight.is_leaf and weight.requires_grad and weight.grad_fn is None

    @pytest.mark.parametrize("fill", FILLS)
    def test_leave_the_global_generator_alone(self, either, fill):
        before = torch.get_rng_state()
        filled(fill, (100,))
        assert torch.equal(before, torch.get_rng_state())

    @pytest.mark.parametrize("fill", FILLS)
    def test_meta_tensors_pass_through(self, fill):
        t = torch.empty(3, device="meta")
        assert getattr(STREAM, fill)(t) is t

    @pytest.mark.parametrize("fill", FILLS)
    @pytest.mark.parametrize("wrong", [torch.float16, torch.int32], ids=str)
    def test_a_wrong_dtype_is_named(self, fill, wrong):
        with pytest.raises(UsageError, match=rf"^t: got {wrong}, expected torch.float32 or torch.float64"):
            filled(fill, (3,), wrong)

    @pytest.mark.parametrize("fill", FILLS)
    def test_opcheck(self, native, fill, dtype):
        op = getattr(torch.ops.zcpipe, f"philox_{fill}").default
        torch.library.opcheck(op, (torch.empty(2, 3, 4, 4, dtype=dtype), 1, -2))

    @pytest.mark.parametrize("fill", FILLS)
    def test_direct_calls_are_guarded_too(self, native, fill):
        op = getattr(torch.ops.zcpipe, f"philox_{fill}")
        with pytest.raises(RuntimeError, match="out: got other strides"):
            op(torch.empty(4, 6)[:, ::2], 0, 0)
        with pytest.raises(RuntimeError, match="out: got Long, expected float32 or float64"):
            op(torch.empty(4, dtype=torch.int64), 0, 0)


@pytest.mark.parametrize("distribution", ["normal", "uniform"])
class TestFillAll:
    """Many tensors at once: the same as one after the other."""

    STREAMS = tuple(Stream.of(0, "nasbench201", "run", 0, str(i)) for i in range(6))
    SCALES = (0.3, 1.0, 2.0, -1 / 3, 0.0, 1e-3)

    def test_equals_single_fills_bit_for_bit(self, either, distribution):
        def tensors():
            return [
                torch.empty(16, 3, 3, 3),
                torch.empty(7, dtype=torch.float64),
                torch.empty(0, 4),
                torch.empty(2, 3, 5, 7).to(memory_format=torch.channels_last),
                torch.empty(4, 6)[:, ::2],
                torch.empty(()),
            ]

        ours, single = tensors(), tensors()
        fill_all(list(zip(ours, self.STREAMS, self.SCALES, strict=True)), distribution)
        for one, stream, scale in zip(single, self.STREAMS, self.SCALES, strict=True):
            getattr(stream, f"{distribution}_")(one).mul_(scale)
        assert all(torch.equal(a, b) for a, b in zip(ours, single, strict=True))

    def test_any_number_of_large_tensors_on_any_number_of_threads(self, native, distribution):
        before = torch.get_num_threads()
        found = []
        try:
            for threads in (1, 3):
                torch.set_num_threads(threads)
                found.append([torch.empty(70_001) for _ in range(6)])
                fill_all(list(zip(found[-1], self.STREAMS, self.SCALES, strict=True)), distribution)
        finally:
            torch.set_num_threads(before)
        assert all(map(torch.equal, *found))
        fill_all([], distribution)

    def test_fills_parameters_unrecorded_and_says_that_they_changed(self, either, distribution):
        weights = [torch.nn.Parameter(torch.zeros(4, 3)) for _ in range(6)]
        versions = [weight._version for weight in weights]
        fill_all([(weight, stream, 1.0) for weight, stream in zip(weights, self.STREAMS, strict=True)], distribution)
        assert all(weight.all() and weight.is_leaf and weight.grad_fn is None for weight in weights)
        assert all(weight._version > version for weight, version in zip(weights, versions, strict=True))

    def test_meta_tensors_pass_through(self, either, distribution):
        fill_all([(torch.empty(3, device="meta"), STREAM, 1.0)], distribution)

    def test_a_wrong_dtype_is_named_and_nothing_is_filled(self, either, distribution):
        first = torch.zeros(3)
        with pytest.raises(UsageError, match=r"^tensors\[1\]: got torch.int32, expected"):
            fill_all([(first, STREAM, 1.0), (first.int(), STREAM, 1.0)], distribution)
        assert not first.any()

    def test_opcheck(self, native, distribution, dtype):
        outs = [torch.empty(2, 3, 4, 4, dtype=dtype), torch.empty(5, dtype=dtype)]
        op = torch.ops.zcpipe.philox_fills_.default
        torch.library.opcheck(op, (outs, [1, 2], [-3, 4], [0.5, 2.0], distribution == "normal"))

    def test_direct_calls_are_guarded_too(self, native, distribution):
        def op(outs, keys=(0,)):
            torch.ops.zcpipe.philox_fills_(outs, list(keys), [0], [1.0], distribution == "normal")

        with pytest.raises(RuntimeError, match="outs: got other strides, expected contiguous"):
            op([torch.empty(4, 6)[:, ::2]])
        first = torch.zeros(4)
        with pytest.raises(RuntimeError, match="outs: got Long, expected float32 or float64"):
            torch.ops.zcpipe.philox_fills_([first, first.long()], [0, 1], [0, 1], [1.0, 1.0], distribution == "normal")
        assert not first.any()
        with pytest.raises(RuntimeError, match="outs: expected as many tensors as keys, nonces and scales"):
            op([torch.empty(4)], keys=(0, 1))


class TestNormal:
    @pytest.fixture
    def sample(self):
        return STREAM.normal_(torch.empty(1 << 18, dtype=torch.float64)).numpy()

    def test_moments(self, sample):
        n = len(sample)
        assert abs(sample.mean()) < 4 / math.sqrt(n)
        assert abs(sample.var() - 1) < 4 * math.sqrt(2 / n)
        assert abs(stats.skew(sample)) < 4 * math.sqrt(6 / n)
        assert abs(stats.kurtosis(sample)) < 4 * math.sqrt(24 / n)

    def test_distribution(self, sample):
        assert stats.kstest(sample, "norm").pvalue > 1e-3

    def test_neighbours_are_uncorrelated(self, sample):
        for lag in (1, 2, 3, 64):
            assert abs(np.corrcoef(sample[lag:], sample[:-lag])[0, 1]) < 4 / math.sqrt(len(sample))

    def test_float32_is_the_rounded_float64(self, either):
        assert torch.equal(filled("normal_", (999,)), filled("normal_", (999,), torch.float64).float())

    def test_logarithm_is_accurate_to_a_few_ulp(self):
        u = np.concatenate(
            [np.random.default_rng(0).random(100_000), 2.0 ** -np.arange(0, 53), 1 - 2.0 ** -np.arange(1, 54)]
        )
        u = u[u > 0]
        np.testing.assert_allclose(_philox_twin._log_unit(u), np.log(u), rtol=1e-15, atol=0)

    def test_cosine_and_sine_are_accurate_to_a_few_ulp(self):
        k = np.random.default_rng(0).integers(0, 2**53, 100_000, dtype=np.uint64)
        cos, sin = _philox_twin._cos_sin_turn(k * 2.0**-53, k >> np.uint64(50))
        angle = (
            k.astype(np.longdouble)
            * np.longdouble(2.0**-53)
            * 2
            * np.longdouble("3.14159265358979323846264338327950288")
        )
        np.testing.assert_allclose(cos, np.cos(angle).astype(np.float64), rtol=1e-14, atol=2e-16)
        np.testing.assert_allclose(sin, np.sin(angle).astype(np.float64), rtol=1e-14, atol=2e-16)

    def test_the_smallest_and_largest_words_give_finite_numbers(self):
        edges = np.array([2.0**-53, 1.0])
        assert np.isfinite(np.sqrt(-2 * _philox_twin._log_unit(edges))).all()


class TestUniform:
    def test_is_the_words_as_signed_integers(self, either):
        words = STREAM.bits(37).tolist()
        expected = [(word - 2**32 if word >= 2**31 else word) / 2**31 for word in words]
        assert filled("uniform_", (37,), torch.float64).tolist() == expected

    def test_distribution(self):
        sample = filled("uniform_", (1 << 18,), torch.float64).numpy()
        assert -1 <= sample.min() < -0.9999 and 0.9999 < sample.max() < 1
        assert stats.kstest(sample, "uniform", args=(-1, 2)).pvalue > 1e-3
        for lag in (1, 2, 3, 64):
            assert abs(np.corrcoef(sample[lag:], sample[:-lag])[0, 1]) < 4 / math.sqrt(len(sample))

    def test_float32_is_the_rounded_float64(self, either):
        assert torch.equal(filled("uniform_", (999,)), filled("uniform_", (999,), torch.float64).float())


class TestRademacher:
    def test_is_the_bits_in_order(self, either):
        words = STREAM.bits(8).tolist()
        expected = [1.0 if word >> bit & 1 else -1.0 for word in words for bit in range(32)]
        assert filled("rademacher_", (256,)).tolist() == expected

    def test_both_signs_are_equally_likely(self):
        n = 1 << 18
        assert abs(filled("rademacher_", (n,)).mean()) < 4 / math.sqrt(n)


class TestIntegers:
    @pytest.mark.parametrize("high", [1, 2, 10, 100, 2**31])
    def test_are_in_range_and_uniform(self, either, high):
        n = 20_000
        drawn = STREAM.integers(n, high)
        assert drawn.dtype == torch.int64 and drawn.shape == (n,)
        assert drawn.min() >= 0 and drawn.max() < high
        if high <= 100:
            counts = torch.bincount(drawn, minlength=high).numpy()
            assert np.all(abs(counts - n / high) <= 5 * math.sqrt(n / high))

    @given(high=st.integers(1, 2**31))
    def test_are_the_high_part_of_a_product_of_64_bits(self, high):
        words = STREAM.bits(20).tolist()
        expected = [(low + (top << 32)) * high >> 64 for low, top in zip(words[::2], words[1::2], strict=True)]
        assert STREAM.integers(10, high).tolist() == expected

    @pytest.mark.parametrize("high", [0, -1, 2**31 + 1])
    def test_a_wrong_high_is_named(self, high):
        with pytest.raises(UsageError, match=f"^high: got {high}, expected "):
            STREAM.integers(3, high)

    def test_a_negative_count_is_named(self):
        with pytest.raises(UsageError, match=r"^n: got -2, expected 0 or more"):
            STREAM.integers(-1, 3)


class TestNames:
    def test_same_parts_same_stream(self):
        assert Stream.of(1, "a", "b", 2, "c") == Stream.of(1, "a", "b", 2, "c")

    def test_known_stream(self):
        """Tables of earlier versions depend on this."""
        assert Stream(key=13772957330535830861, nonce=13646432788417770619) == STREAM

    @pytest.mark.parametrize(
        "other",
        [
            (2, "a", "b", 2, "c"),
            (1, "ab", "", 2, "c"),
            (1, "", "ab", 2, "c"),
            (12, "a", "b", 0, "c"),
            (1, "a", "b", 2, "d"),
        ],
    )
    def test_other_parts_other_stream(self, other):
        assert Stream.of(*other) != Stream.of(1, "a", "b", 2, "c")

    @given(seeds=st.lists(st.integers(-5, 2**70), min_size=2, max_size=2, unique=True))
    def test_seeds_of_any_size_are_told_apart(self, seeds):
        first, second = (Stream.of(seed, "a", "b", 0, "c") for seed in seeds)
        assert first != second

    @pytest.mark.parametrize("word", [-1, 2**64])
    def test_a_wrong_key_is_named(self, word):
        with pytest.raises(UsageError, match=f"^key: got {word}, expected an integer in 0 .. 2"):
            Stream(word, 0)
