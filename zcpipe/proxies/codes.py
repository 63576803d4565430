"""Activation codes: nwot (Mellor et al., 2021), swap (Peng et al., 2024) and TE-NAS's linear regions (2021).

All read which inputs of ReLUs are above zero over a batch, in train mode. A ReLU is a module of type ``nn.ReLU``:
functional ones and other activations are not seen. ReLUs that cannot influence the output count, too.

`linear_regions` cannot exceed the batch size, and networks of ordinary width reach it: on NAS-Bench-201 it tells only
networks without a live path from the others. TE-NAS counts on 3000 crops of 1 x 3 x 3 values through a network of one
channel and one cell, which is another network than the one that is scored; see `refine_regions`.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zcpipe.errors import UnsupportedError
from zcpipe.ops import hamming_distances, sign_codes
from zcpipe.proxies.aznas import RECIPE as _NOISE
from zcpipe.proxies.base import ActivationStatistic, Proxy, Recipe, only

_WORD = 64
# Halves, quarters, ... of 64 x 64 bits that change places: how far, and which bits of a word are the lower ones.
_SWAPS = (
    (32, 0x00000000FFFFFFFF),
    (16, 0x0000FFFF0000FFFF),
    (8, 0x00FF00FF00FF00FF),
    (4, 0x0F0F0F0F0F0F0F0F),
    (2, 0x3333333333333333),
    (1, 0x5555555555555555),
)


def add_agreements(x: Tensor, total: Tensor | None) -> Tensor:  # [N, ...] -> [N, N] int64
    """Count in how many activations each pair of samples agrees, on top of those of other ReLUs.

    Raises:
        UnsupportedError: other ReLUs had another number of samples.
    """
    _check_batch(x, None if total is None else len(total))
    agreements = math.prod(x.shape[1:]) - hamming_distances(_sample_codes(x))
    return agreements if total is None else total + agreements


def log_determinant(kernel: Tensor) -> float:  # [N, N]
    """Return ln abs(det K), in double precision; -inf where K is singular."""
    return float(np.linalg.slogdet(kernel.cpu().numpy().astype(np.float64))[1])


def refine_regions(x: Tensor, same: Tensor | None) -> Tensor:  # [N, ...] -> [N, N] bool
    """Tell which pairs of samples have one code in this ReLU and in those before it.

    Raises:
        UnsupportedError: other ReLUs had another number of samples.
    """
    _check_batch(x, None if same is None else len(same))
    if same is not None and int(same.sum()) == len(x):
        return same  # no two samples are left to tell apart
    equal = hamming_distances(_sample_codes(x)) == 0
    return equal if same is None else same & equal


def count_regions(same: Tensor) -> float:  # [N, N] bool
    """Return the number of distinct codes: each sample counts one over how many share its code."""
    shared = same.sum(1).cpu().numpy()
    return float(round((1.0 / shared).sum()))


def add_neuron_codes(x: Tensor, total: Tensor | None) -> Tensor:  # [N, C, H, W] -> [1 + ceil(N / 64), room] int64
    """Append the code over the batch of every neuron of a map; vectors and tokens have none.

    The first row of the total starts with the number of codes and the batch size, the others hold the codes' words. It
    grows by doubling, so that the codes of many maps are not copied with each.

    Raises:
        UnsupportedError: other ReLUs had another number of samples.
    """
    _check_batch(x, None if total is None else int(total[0, 1]))
    codes = neuron_codes(x) if x.ndim == 4 else x.new_empty(-(-len(x) // _WORD), 0, dtype=torch.int64)
    done = 0 if total is None else int(total[0, 0])
    count = done + codes.shape[1]
    if total is None or count > total.shape[1]:
        grown = codes.new_empty(1 + len(codes), max(2 * count, 2))
        if total is not None:
            grown[:, :done] = total[:, :done]
        total = grown
    total[1:, done:count] = codes
    total[0, 0], total[0, 1] = count, len(x)
    return total


def count_neuron_codes(total: Tensor) -> float:
    """Return how many of the codes that `add_neuron_codes` collected are distinct.

    Raises:
        UnsupportedError: there are none.
    """
    count = int(total[0, 0])
    if count == 0:
        raise UnsupportedError("the network has no ReLU modules on feature maps [N, C, H, W]")
    words: list[NDArray[np.int64]] = list(total[1:, :count].cpu().numpy())
    codes = words[0]
    for more in words[1:]:  # numbers of the distinct codes so far, and of the next words, make the codes of both
        low, high = (np.unique(part, return_inverse=True)[1] for part in (codes, more))
        codes = low * (high.max() + 1) + high
    ordered = np.sort(codes)
    return float(1 + np.count_nonzero(ordered[1:] != ordered[:-1]))


def neuron_codes(x: Tensor) -> Tensor:  # [N, ...] of F elements each -> [ceil(N / 64), F] int64
    """Write in which samples each neuron is above zero as bits: sample n is bit n % 64 of word n // 64.

    The neurons come in no particular order, the same for all words.
    """
    samples = _sample_codes(x)
    size = math.prod(x.shape[1:])
    whole, rest = divmod(size, _WORD)
    codes = samples.new_empty(-(-len(x) // _WORD), size)
    for word, part in zip(codes, samples.tensor_split(range(_WORD, len(x), _WORD)), strict=True):
        bits = part.new_zeros(_WORD, part.shape[1])
        bits[: len(part)] = part
        _transpose(bits)
        word[: _WORD * whole].view(_WORD, whole).copy_(bits[:, :whole])
        if rest:
            word[_WORD * whole :] = bits[:rest, -1]
    return codes


def _transpose(bits: Tensor) -> None:  # [64, W] int64
    """Transpose each column's 64 x 64 bits in place: bit f of row n becomes bit n of row f."""
    for far, lower in _SWAPS:
        low, high = bits.view(-1, 2, far, bits.shape[1]).unbind(1)
        change = (low >> far).bitwise_xor_(high).bitwise_and_(lower)
        high.bitwise_xor_(change)
        low.bitwise_xor_(change << far)


def _sample_codes(x: Tensor) -> Tensor:  # [N, ...] of F elements each -> [N, ceil(F / 64)] int64
    """Return the samples' codes, their bits in the order of memory, which is the same for all samples."""
    channels_last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return sign_codes(x.permute(0, 2, 3, 1) if channels_last else x)


def _check_batch(x: Tensor, samples: int | None) -> None:
    if samples is not None and len(x) != samples:
        raise UnsupportedError(
            f"activation codes need all of the batch in each ReLU: got {len(x)} rows after {samples}"
        )


def _proxy(
    statistic: ActivationStatistic,
    recipe: Recipe,
    formula: str,
    paper: str,
) -> Proxy:
    return Proxy(
        name=statistic.name,
        direction="higher",
        scope="full",
        cost="cheap",
        recipe=recipe,
        statistics=(statistic,),
        reduce=only(statistic.name),
        unit=statistic.unit,
        formula=formula,
        paper=paper,
    )


PROXIES = (
    _proxy(
        ActivationStatistic("nwot", "", add_agreements, log_determinant),
        Recipe(init="default", inputs="data", norm="batch"),
        "ln |det K|, K_ij the number of ReLU inputs that are above zero in both samples i and j or in neither",
        "Mellor et al., Neural Architecture Search without Training, ICML 2021",
    ),
    _proxy(
        # The published script draws standard normal weights 32 times; a run does so with its repeats.
        ActivationStatistic("swap", "", add_neuron_codes, count_neuron_codes),
        Recipe(init="normal", inputs="data", norm="batch"),
        "number of distinct codes of the neurons of all ReLU maps, a neuron's code being its signs over the batch",
        "Peng et al., SWAP-NAS: Sample-Wise Activation Patterns for Ultra-Fast NAS, ICLR 2024",
    ),
    _proxy(
        ActivationStatistic("linear_regions", "", refine_regions, count_regions),
        _NOISE,
        "number of distinct codes of the samples, a sample's code being the signs of all ReLU inputs",
        "Chen et al., Neural Architecture Search on ImageNet in Four GPU Hours, ICLR 2021",
    ),
)
