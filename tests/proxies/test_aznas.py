"""The statistics of AZ-NAS against their definitions, written out in numpy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zcpipe.errors import UnsupportedError, UsageError
from zcpipe.proxies import get_proxy, list_proxies, resolve
from zcpipe.proxies.aznas import local_jacobian, moments, pair_trainabilities, spectral_entropies


def spectral_entropy(rows):
    return spectral_entropies([moments(rows)])[0]


def pair_trainability(g_in, g_out):
    return pair_trainabilities([local_jacobian(g_in, g_out)])[0]


def entropy_by_definition(rows):
    eigenvalues = np.linalg.eigvalsh(np.cov(rows.astype(np.float64).T, bias=True))
    share = eigenvalues / eigenvalues.sum()
    return float(-(share * np.log(share + 1e-8)).sum())


@settings(max_examples=25)
@given(st.integers(2, 20), st.integers(3, 9000), st.floats(-100, 100), st.integers(0, 2**31))
def test_spectral_entropy_is_its_definition(channels, count, offset, seed):
    rows = np.random.default_rng(seed).standard_normal((count, channels)) * np.arange(1, channels + 1) + offset
    assert spectral_entropy(torch.from_numpy(rows)) == pytest.approx(entropy_by_definition(rows), rel=1e-9)


@settings(max_examples=25)
@given(st.integers(1, 4), st.integers(0, 2**31))
def test_rank_deficient_float32_maps_never_give_nan(rank, seed):
    """Rounding pushes the zero eigenvalues of a float32 covariance below zero; the reference returns -inf then."""
    random = np.random.default_rng(seed)
    rows = (random.standard_normal((2000, rank)) @ random.standard_normal((rank, 16))).astype(np.float32)
    entropy = spectral_entropy(torch.from_numpy(rows))
    assert -1e-7 <= entropy <= math.log(rank) + 1e-5  # one direction alone gives -ln(1 + 1e-8)


@pytest.mark.parametrize("constant", [0.0, 3.7, -1e6])
def test_constant_map_is_dead(constant):
    assert spectral_entropy(torch.full((5000, 8), constant)) == -math.inf


def test_non_finite_map_is_nan_not_dead():
    rows = torch.randn(100, 4)
    rows[3, 2] = math.inf
    assert math.isnan(spectral_entropy(rows))


def pair_by_definition(g_in, g_out):
    if g_in.shape == g_out.shape and (g_in == g_out).all():
        return -math.inf
    if g_in.shape[2] != g_out.shape[2]:
        g_in = torch.nn.functional.pixel_unshuffle(g_in, g_in.shape[2] // g_out.shape[2])
    left = g_in.permute(0, 2, 3, 1).flatten(0, 2).numpy()
    right = g_out.permute(0, 2, 3, 1).flatten(0, 2).numpy()
    sigma = np.linalg.svd(left.T @ right / len(left), compute_uv=False).max()
    return -sigma - 1 / (sigma + 1e-6) + 2


@settings(max_examples=25)
@given(
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(1, 4),
    st.sampled_from([1, 2, 3]),
    st.booleans(),
)
def test_pair_trainability_is_its_definition(batch, before, after, size, stride, channels_last):
    generator = torch.Generator().manual_seed(batch * 1000 + before * 100 + after * 10 + size)
    g_out = torch.randn(batch, after, size, size + 1, generator=generator, dtype=torch.float64).sign()
    g_in = torch.randn(batch, before, size * stride, (size + 1) * stride, generator=generator, dtype=torch.float64)
    expected = pair_by_definition(g_in, g_out)
    if channels_last:
        g_in, g_out = (g.contiguous(memory_format=torch.channels_last) for g in (g_in, g_out))
    assert pair_trainability(g_in, g_out) == pytest.approx(expected, rel=1e-9)


def test_identity_block_is_worst():
    g = torch.ones(2, 3, 4, 4)
    assert pair_trainability(g.clone(), g) == -math.inf
    g_in = g.clone()
    g_in[1, 2, 3, 3] = 2  # the first sample alone does not make an identity
    assert pair_trainability(g_in, g) > -math.inf


def test_dead_block_gets_what_zero_gain_gives():
    assert pair_trainability(torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)) == pytest.approx(-999_998)


def test_incommensurable_resolutions_are_refused():
    with pytest.raises(UnsupportedError, match="integer multiples"):
        pair_trainability(torch.zeros(1, 2, 7, 7), torch.ones(1, 2, 3, 3))


def test_reductions():
    entropy = {"expressivity": np.array([1.0, 3.0, 2.5, 4.0])}
    assert get_proxy("expressivity").reduce(entropy) == 10.5
    assert get_proxy("progressivity").reduce(entropy) == -0.5
    assert get_proxy("trainability").reduce({"trainability": np.array([-1.0, -3.0])}) == -2.0


@pytest.mark.parametrize("dead", [[-math.inf, 1.0, 2.0], [1.0, -math.inf, 2.0], [-math.inf] * 3])
def test_a_dead_map_is_worst_in_expressivity_and_progressivity(dead):
    for name in ("expressivity", "progressivity"):
        assert get_proxy(name).reduce({"expressivity": np.array(dead)}) == -math.inf


def test_group_resolves_to_the_four_each_once():
    names = [proxy.name for proxy in resolve("trainability,aznas")]
    assert names == ["trainability", "expressivity", "progressivity", "complexity"]
    assert set(names) <= set(list_proxies())
    assert list_proxies("*essivity") == ["expressivity", "progressivity", "stage_expressivity"]


def test_unknown_proxy_names_the_near_one():
    with pytest.raises(UsageError, match="did you mean trainability"):
        resolve("trainabilty")
    with pytest.raises(UsageError, match="no proxies"):
        resolve(",")
