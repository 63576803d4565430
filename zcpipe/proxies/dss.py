"""DSS, the proxy of TF-TAS (Zhou et al., CVPR 2022), for transformers.

Weights, buffers and the input are those of synflow_bn: absolute values, one image of ones, layer norms kept, float64.
A linear layer of an attention counts by its synaptic diversity, the product of the nuclear norms of its weight and of
the weight's gradient of the sum of all outputs; any other linear layer by its synaptic saliency, the sum of abs(w
dR/dw). The published score is the sum over layers; like those of the synflow family ours is its natural logarithm.

Layers of an attention are those inside a module whose class is called so: ``Attention``, ``MultiheadAttention``,
``WindowAttention``. Convolutions, such as that of patches, do not count, as in the published code. That adds a
classifier of 1,000 classes twice, and in its first form all zeros (gradients of slices are not kept); here every linear
layer counts once.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import logsumexp
from torch import Tensor, nn

from zcpipe.errors import UnsupportedError
from zcpipe.proxies.base import CustomStatistic, Network, Proxy, Recipe, Values


def dss(network: Network) -> Values:
    """Return ln of what each layer adds, -inf for convolutions.

    Raises:
        UnsupportedError: the network has no attention.
    """
    modules = dict(network.model.named_modules())
    attentions = [f"{name}." for name, module in modules.items() if type(module).__name__.endswith("Attention")]
    if not attentions:
        raise UnsupportedError("dss is of transformers: no module's class has a name that ends in Attention")
    found = network.absolute_gradients("batch")
    values = np.full(len(network.layers), -np.inf)
    for i, (name, weight, gradient) in enumerate(zip(network.layers, found.weights, found.gradients, strict=True)):
        if isinstance(modules.get(name), nn.modules.conv._ConvNd):
            continue
        attends = any(name.startswith(attention) for attention in attentions)
        sum_of = _diversity(weight, gradient) if attends else float((weight * gradient).abs().sum())
        with np.errstate(divide="ignore"):
            values[i] = np.log(sum_of) + found.log_scale
    return values


def _diversity(weight: Tensor, gradient: Tensor) -> float:
    """Product of the nuclear norms, the sums of singular values."""
    return float(torch.linalg.svdvals(weight).sum() * torch.linalg.svdvals(gradient).sum())


PROXIES = (
    Proxy(
        name="dss",
        direction="higher",
        scope="function",
        cost="cheap",
        recipe=Recipe("default", "ones", "batch", absolute=True),
        statistics=(CustomStatistic("dss", "ln", "layer", dss, blind=True),),
        reduce=lambda statistics: float(logsumexp(statistics["dss"])),
        unit="ln",
        formula="ln of the sum of |w|_* |dR/dw|_* over attentions' linear layers and of |w dR/dw| over the others', R "
        "the sum of outputs for ones, weights absolute",
        paper="Zhou et al., Training-free Transformer Architecture Search (TF-TAS), CVPR 2022",
    ),
)
