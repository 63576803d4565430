"""GradSign (Zhang & Jia, ICLR 2022): how far the signs of single samples' gradients agree.

The paper's score and the benchmark scripts of its authors sum over all weights of convolutions and linear layers; two
other scripts of theirs, and AZ-NAS's copy, take the mean instead. With the mean a network's value depends on which
unused layers somebody left in it (their gradients are zeros that are averaged in). Ours is the sum: unused layers add
nothing to it, and divided by the number of weights it is the mean.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zcpipe.proxies.base import CustomStatistic, Network, Proxy, Recipe, total
from zcpipe.proxies.samples import asking, gradients_of, loss_of, weights_of

PAPER = "Zhang & Jia, GradSign: Model Performance Inference with Theoretical Insights, ICLR 2022"
RECIPE = Recipe(init="default", inputs="data", norm="sample")


def gradsign(network: Network) -> list[float]:  # [layers]
    """Sum over a layer's weights of |sum over samples of sign(g)|, g the gradient of one sample's loss.

    Each sample is alone in the network: batch norm normalises it by its own statistics. The sign of 0 is 0.

    Returns:
        One number per layer, between 0 and samples * weights; NaN where a gradient is not finite (the published code
        skips these).

    Raises:
        UsageError: no targets.
        UnsupportedError: the network has no layers.
    """
    samples = network.inputs[0].shape[0]
    weights = weights_of(network)
    signs = [torch.zeros_like(weight, requires_grad=False) for weight in weights]
    largest: list[Tensor] = []
    with asking(weights):
        for i in range(samples):
            gradients = gradients_of(loss_of(network, slice(i, i + 1)), weights)
            # The sign of NaN is 0 in torch; a norm keeps it.
            largest.append(torch.stack(torch._foreach_norm(gradients, math.inf)))
            torch._foreach_add_(signs, torch._foreach_sign(gradients))
    finite = torch.stack(largest).isfinite().all(0)
    agreed = torch.stack([sign.abs_().sum(dtype=torch.float64) for sign in signs])
    values: list[float] = agreed.where(finite, math.nan).tolist()
    return values


PROXIES = (
    Proxy(
        name="gradsign",
        direction="higher",
        scope="function",
        cost="per-sample",
        recipe=RECIPE,
        statistics=(CustomStatistic("gradsign", "", "layer", gradsign),),
        reduce=total("gradsign"),
        unit="",
        formula="sum over weights of |sum over samples of sign(g)|, g the gradient of one sample's loss, alone",
        paper=PAPER,
        targets=True,
    ),
)
