"""GradSign (Zhang & Jia, ICLR 2022): how far the signs of single samples' gradients agree.

The scripts that the authors' instructions run sum over all weights of convolutions and linear layers; two others of
theirs, and AZ-NAS's copy, take the mean. With the mean a network's value depends on which unused layers somebody left
in it, since their zeros are averaged in (AZ-NAS measures both). Ours is the sum: unused layers add nothing to it, and
divided by the number of weights it is the mean. The published code takes the cross-entropy, AZ-NAS's 64 samples.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zcpipe.proxies.base import CustomStatistic, Network, Proxy, Recipe, asking, total
from zcpipe.proxies.samples import gradients_of, loss_of, weights_of
from zcpipe.proxies.signs import NotSeparableError, signs_of_batch

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
        UnsupportedError: the network has no layers, or its output or loss does not depend on them.
    """
    try:
        signs = signs_of_batch(network)
    except NotSeparableError:
        signs = signs_one_by_one(network)
    values: list[float] = torch.stack([sign.abs().sum(dtype=torch.float64) for sign in signs]).tolist()
    return values


def signs_one_by_one(network: Network) -> list[Tensor]:  # of each weight's shape
    """Return for each layer the sum over samples of sign(g), each sample going through by itself."""
    weights = weights_of(network)
    signs = [torch.zeros_like(weight, requires_grad=False) for weight in weights]
    largest: list[Tensor] = []
    with asking(weights):
        for i in range(network.inputs[0].shape[0]):
            gradients = gradients_of(loss_of(network, slice(i, i + 1)), weights)
            # The sign of NaN is 0 in torch; a norm keeps it.
            largest.append(torch.stack(torch._foreach_norm(gradients, math.inf)))
            torch._foreach_add_(signs, torch._foreach_sign(gradients))
    finite = torch.stack(largest).isfinite().all(0)
    return [sign if good else torch.full_like(sign, math.nan) for sign, good in zip(signs, finite, strict=True)]


PROXIES = (
    Proxy(
        name="gradsign",
        direction="higher",
        scope="function",
        cost="per-sample",
        recipe=RECIPE,
        statistics=(CustomStatistic("gradsign", "", "layer", gradsign, blind=True),),
        reduce=total("gradsign"),
        unit="",
        formula="sum over weights of |sum over samples of sign(g)|, g the gradient of one sample's loss, alone",
        paper=PAPER,
        targets=True,
    ),
)
