"""SynFlow as a zero-cost proxy (Tanaka et al., NeurIPS 2020; Abdelfattah et al., ICLR 2021; NASLib).

All parameters and buffers are replaced by their absolute values and one image of ones goes through the network in
float64; R is the sum of the outputs. Of each layer the statistic is ln(sum of |w dR/dw|) over its weights, of the
network ln of the sum over all. That is NASLib's score; the ICLR paper's is its exponential, which does not fit a float
for deep networks. A layer, or a network, without any flow has -inf.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.special import logsumexp

from zcpipe.proxies.base import Gradients, GradientStatistic, Proxy, Recipe, Values
from zcpipe.proxies.saliency import PAPER


def log_flows(gradients: Gradients) -> Values:
    """Return ln(sum of |w dR/dw|) of each layer; NaN where that is too large for a float even so."""
    flows = gradients.sums.magnitudes.cpu().numpy()
    with np.errstate(divide="ignore"):
        return np.where(np.isfinite(flows), np.log(flows) + gradients.log_scale, np.nan)


def _proxy(name: str, recipe: Recipe, norms: str) -> Proxy:
    def reduce(statistics: Mapping[str, Values]) -> float:
        return float(logsumexp(statistics[name]))

    return Proxy(
        name=name,
        direction="higher",
        scope="function",
        cost="cheap",
        recipe=recipe,
        statistics=(GradientStatistic(name, "ln", log_flows),),
        reduce=reduce,
        unit="ln",
        formula=f"ln sum of |w dR/dw| over all weights, R the sum of outputs for ones, weights absolute, {norms}",
        paper="Tanaka et al., Pruning neural networks without any data by iteratively conserving synaptic flow, "
        "NeurIPS 2020; as a proxy: " + PAPER,
    )


PROXIES = (
    _proxy("synflow", Recipe("default", "ones", "drop", absolute=True), "norm layers left out"),
    _proxy("synflow_bn", Recipe("default", "ones", "batch", absolute=True), "norm layers in train mode"),
)
