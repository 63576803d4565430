"""Zero-Cost Proxies for Lightweight NAS (Abdelfattah et al., ICLR 2021): what weights and the loss's gradient give.

All come from one forward on a batch of images with labels, train mode, torch's default weights, and one backward pass
of the mean loss; layers are all convolutions and linear layers, biases and norm layers left out. The sums are over
layers: `grad_norm` is the sum of the layers' norms, not the norm of all gradients (AZ-NAS's copy takes that one).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from zcpipe.errors import UnsupportedError
from zcpipe.proxies.base import (
    CustomStatistic,
    Gradients,
    GradientStatistic,
    LayerOutputs,
    Network,
    OutputStatistic,
    Proxy,
    Recipe,
    Values,
    only,
)
from zcpipe.proxies.samples import require_real

PAPER = "Abdelfattah et al., Zero-Cost Proxies for Lightweight NAS, ICLR 2021"
RECIPE = Recipe(init="default", inputs="data", norm="batch")


def _norms(gradients: Gradients) -> Values:
    norms: Values = np.sqrt(gradients.sums.squared_gradients.cpu().numpy())
    return norms


def _products(gradients: Gradients) -> Values:
    values: Values = gradients.sums.products.cpu().numpy()
    return values


def _magnitudes(gradients: Gradients) -> Values:
    values: Values = gradients.sums.magnitudes.cpu().numpy()
    return values


def _squares(products: Tensor) -> Tensor:  # [N, C] -> [C]
    """Sum over samples of the squared sum over positions of z * dL/dz."""
    return products.square().sum(0)


def _fan_in_weighted(layer: LayerOutputs) -> float:
    """Half the mean over samples, each channel counted once per weight that makes it, as the published code does."""
    if not layer.moments:
        return 0.0
    channels = torch.stack(list(layer.moments)).sum(0)
    return float(channels.sum()) / (2 * layer.samples) * (layer.weight.numel() // len(channels))


def _norm_of_all(network: Network) -> list[float]:
    """The norm of the loss's gradients of all parameters, biases and norm layers included, as one vector."""
    everything = list(network.model.parameters())
    require_real(everything)
    parameters = [p for p in everything if p.is_floating_point()]
    if not parameters:
        raise UnsupportedError("the network has no parameters")
    found = network.loss_gradients(parameters, network.inputs, network.targets)
    return [math.sqrt(sum(float(gradient.double().square().sum()) for gradient in found))]


def _proxy(statistic: GradientStatistic | OutputStatistic, formula: str, paper: str = PAPER) -> Proxy:
    return Proxy.of(statistic, recipe=RECIPE, formula=formula, paper=paper, targets=True)


PROXIES = (
    _proxy(GradientStatistic("grad_norm", "", _norms), "sum over layers of |g|_2, g the loss's gradient of the weight"),
    _proxy(
        GradientStatistic("snip", "", _magnitudes),
        "sum of |g w| over all weights",
        "Lee et al., SNIP, ICLR 2019; as a proxy: " + PAPER,
    ),
    _proxy(GradientStatistic("plain", "", _products), "sum of g w over all weights, signed"),
    _proxy(
        OutputStatistic("fisher", "", _squares, _fan_in_weighted),
        "sum over layers and channels of fan-in * 1/2 mean_n (sum_hw z dL/dz)^2, z the layer's output",
        "Turner et al., BlockSwap, ICLR 2020; as a proxy: " + PAPER,
    ),
    Proxy(
        name="grad_norm_global",
        direction="higher",
        scope="function",
        cost="cheap",
        recipe=Recipe(init="kaiming_normal", inputs="noise", norm="batch"),
        statistics=(CustomStatistic("grad_norm_global", "", "network", _norm_of_all, blind=True),),
        reduce=only("grad_norm_global"),
        unit="",
        formula="|g|_2, g the loss's gradients of all parameters together",
        paper="Lin et al., Zen-NAS, ICCV 2021 (its grad_norm); also in the code of AZ-NAS",
        targets=True,
    ),
)

_SIX = ("grad_norm", "snip", "grasp", "fisher", "synflow", "jacob_cov")
GROUPS = {
    "zero_cost_nas": _SIX,  # the six of the paper
    "nasbench_suite_zero": (*_SIX, "plain", "epe_nas", "l2_norm", "nwot", "zen", "params", "macs"),  # Krishnakumar 2022
}
