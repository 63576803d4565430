"""ZiCo (Li et al., ICLR 2023): gradients that are large and agree between mini-batches.

The paper takes two mini-batches of 64. A network is scored on one batch, whose halves are these mini-batches: a run
with a batch of 128 has the paper's. Each half goes through the network by itself, with its own batch statistics.

As in the published code, the deviation is that of the signed g, not of |g|, the population's (divided by 2, not 1), and
weights whose deviation is zero are left out. Of two values a and b, mean|g| / std(g) is (|a| + |b|) / |a - b|.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from zcpipe.errors import UnsupportedError
from zcpipe.proxies.base import CustomStatistic, Network, Proxy, Recipe, Values, total
from zcpipe.proxies.samples import part, weights_of

PAPER = "Li et al., ZiCo: Zero-shot NAS via Inverse Coefficient of Variation on Gradients, ICLR 2023"
RECIPE = Recipe(init="default", inputs="data", norm="batch")


def zico(network: Network) -> Values:  # [layers]
    """ln(sum over a layer's weights of mean|g| / std(g)) per layer, over the gradients g of the loss on two halves.

    A layer all of whose weights are left out, such as one that the loss does not depend on, has 0. The first half is
    the smaller one of an odd batch. Two forwards and two backwards of half a batch each.

    Returns:
        One number per layer, NaN where a gradient is not finite.

    Raises:
        UsageError: no targets.
        UnsupportedError: fewer than two samples, or the network has no layers.
    """
    samples = network.inputs[0].shape[0]
    if samples < 2:
        raise UnsupportedError(f"zico needs two samples or more, one for each half of the batch, got {samples}")
    half = samples // 2
    weights = weights_of(network)
    first, second = (_gradients(network, weights, samples) for samples in (slice(None, half), slice(half, None)))
    sums = torch.stack([_inverse_variation(a, b) for a, b in zip(first, second, strict=True)]).cpu().numpy()
    values: Values = np.log(np.where(sums == 0, 1.0, sums))
    return values


def _gradients(network: Network, weights: Sequence[Tensor], samples: slice) -> list[Tensor]:
    targets = None if network.targets is None else network.targets[samples]
    return network.loss_gradients(weights, part(network.inputs, samples), targets)


def _inverse_variation(a: Tensor, b: Tensor) -> Tensor:  # gradients of one weight -> scalar, float64
    spread = (a - b).abs_()
    ratio = a.abs().add_(b.abs()).div_(spread)
    return ratio.masked_fill_(spread == 0, 0).sum(dtype=torch.float64)


PROXIES = (
    Proxy(
        name="zico",
        direction="higher",
        scope="function",
        cost="cheap",
        recipe=RECIPE,
        statistics=(CustomStatistic("zico", "", "layer", zico, blind=True),),
        reduce=total("zico"),
        unit="",
        formula="sum over layers of ln(sum of mean|g| / std(g)), g the loss's gradients on the two halves of the batch",
        paper=PAPER,
        targets=True,
    ),
)
