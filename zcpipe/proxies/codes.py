"""Activation codes: nwot (Mellor et al., 2021), swap (Peng et al., 2024) and TE-NAS's linear regions (2021).

All read which inputs of ReLUs are above zero over a batch, in train mode. A ReLU is a module of type ``nn.ReLU``:
functional ones and other activations are not seen. ReLUs that cannot influence the output count, too.

`swap` reads the first 16 samples, as many as the published code takes, and so is at most 65,536: over many more samples
codes hardly repeat by chance, and the score does little but count neurons.

`linear_regions` is at most the batch size, and on a network of ordinary width it is the batch size: on NAS-Bench-201 it
tells cells without a path from input to output from all others, and nothing else. TE-NAS counts the regions of
another network, of one cell and one channel, on 3000 images of 3 x 3 pixels; AZ-NAS's comparison counts as here.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from zcpipe.errors import UnsupportedError
from zcpipe.ops import hamming_distances, sign_codes
from zcpipe.proxies.aznas import RECIPE as _NOISE
from zcpipe.proxies.base import ActivationStatistic, Proxy, Recipe

_SAMPLES = 16  # whose signs are a neuron's code
# Halves, quarters, ... of 16 x 16 bits that change places: how far, and which bits of a word are the lower ones.
_SWAPS = ((8, 0x00FF00FF00FF00FF), (4, 0x0F0F0F0F0F0F0F0F), (2, 0x3333333333333333), (1, 0x5555555555555555))


def add_agreements(x: Tensor, total: Tensor | None) -> Tensor:  # [N, ...] -> [N, N] int64
    """Count in how many activations each pair of samples agrees, on top of those of other ReLUs."""
    agreements = math.prod(x.shape[1:]) - hamming_distances(_sample_codes(x))
    return agreements if total is None else total + agreements


def log_determinant(kernel: Tensor) -> float:  # [N, N]
    """Return ln abs(det K), in double precision; -inf where K is singular."""
    return float(np.linalg.slogdet(kernel.cpu().numpy().astype(np.float64))[1])


def refine_regions(x: Tensor, same: Tensor | None) -> Tensor:  # [N, ...] -> [N, N] bool
    """Tell which pairs of samples have one code in this ReLU and in those before it."""
    if same is not None and int(same.sum()) == len(x):
        return same  # no two samples are left to tell apart
    equal = hamming_distances(_sample_codes(x)) == 0
    return equal if same is None else same & equal


def count_regions(same: Tensor) -> float:  # [N, N] bool
    """Return the number of distinct codes: each sample counts one over how many share its code."""
    shared = same.sum(1).cpu().numpy()
    return float(round((1.0 / shared).sum()))


def mark_neuron_codes(x: Tensor, seen: Tensor | None) -> Tensor:  # [N, C, H, W] -> [65536] bool
    """Mark the code of every neuron of a map; vectors and tokens have none, as published.

    A neuron's code says in which of the first 16 samples it is above zero.
    """
    if seen is None:
        seen = x.new_zeros(1 << _SAMPLES, dtype=torch.bool)
    if x.ndim == 4:
        seen[neuron_codes(x[:_SAMPLES])] = True
    return seen


def count_neuron_codes(seen: Tensor) -> float:  # [65536] bool
    """Return the number of codes marked.

    Raises:
        UnsupportedError: there are none.
    """
    distinct = int(seen.count_nonzero())
    if distinct == 0:
        raise UnsupportedError("the network has no ReLU modules on feature maps [N, C, H, W]")
    return float(distinct)


def neuron_codes(x: Tensor) -> Tensor:  # [N, ...] of F elements each, N <= 16 -> [F] int64
    """Write as bits in which samples each neuron is above zero: bit n is for sample n.

    The neurons come in no particular order.
    """
    samples = _sample_codes(x)
    bits = samples.new_zeros(_SAMPLES, samples.shape[1])
    bits[: len(samples)] = samples
    for far, lower in _SWAPS:  # bit f of row n becomes bit n of row f
        low, high = bits.view(-1, 2, far, bits.shape[1]).unbind(1)
        change = (low >> far).bitwise_xor_(high).bitwise_and_(lower)
        high.bitwise_xor_(change)
        low.bitwise_xor_(change << far)
    squares = bits.view(torch.int16)  # the words' lowest 16 bits first
    whole, rest = divmod(math.prod(x.shape[1:]), _SAMPLES)
    codes = torch.cat([squares[:, :whole].flatten(), squares[:rest, whole : whole + 1].flatten()])
    return codes.long() & (1 << _SAMPLES) - 1


def _sample_codes(x: Tensor) -> Tensor:  # [N, ...] of F elements each -> [N, ceil(F / 64)] int64
    """Return the samples' codes, their bits in the order of memory, which is the same for all samples."""
    channels_last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return sign_codes(x.permute(0, 2, 3, 1) if channels_last else x)


PROXIES = (
    Proxy.of(
        ActivationStatistic("nwot", "", add_agreements, log_determinant),
        recipe=Recipe(init="default", inputs="data", norm="batch"),
        scope="full",
        formula="ln |det K|, K_ij the number of ReLU inputs that are above zero in both samples i and j or in neither",
        paper="Mellor et al., Neural Architecture Search without Training, ICML 2021",
    ),
    Proxy.of(
        # The published script takes the mean over 32 draws of the weights; a run takes that over its repeats.
        ActivationStatistic("swap", "", mark_neuron_codes, count_neuron_codes),
        recipe=Recipe(init="normal", inputs="data", norm="batch"),
        scope="full",
        formula="number of distinct codes of the neurons of all ReLU maps, a code being the signs over 16 samples",
        paper="Peng et al., SWAP-NAS: Sample-Wise Activation Patterns for Ultra-Fast NAS, ICLR 2024",
    ),
    Proxy.of(
        ActivationStatistic("linear_regions", "", refine_regions, count_regions),
        recipe=_NOISE,
        scope="full",
        formula="number of distinct codes of the samples, a sample's code being the signs of all ReLU inputs",
        paper="Chen et al., Neural Architecture Search on ImageNet in Four GPU Hours, ICLR 2021",
    ),
)
