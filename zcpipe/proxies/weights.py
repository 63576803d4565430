"""Proxies of the weights alone: their norms (l2_norm, as in NASLib) and the number of layers. They need no pass.

Whether the output depends on a layer, a space knows; of any other network `zcpipe.score` asks autograd.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zcpipe.proxies.base import Proxy, Recipe, Values, WeightStatistic

RECIPE = Recipe(init="default", inputs="none", norm="batch")


def norms(weights: Sequence[Tensor]) -> Values | list[float]:
    """Return the Euclidean norm of each weight."""
    found = [torch.linalg.vector_norm(weight) for weight in weights]
    return torch.stack(found).double().cpu().numpy() if found else []


def _ones(weights: Sequence[Tensor]) -> list[float]:
    return [1.0] * len(weights)


PROXIES = (
    Proxy.of(
        WeightStatistic("l2_norm", "", norms),
        recipe=RECIPE,
        scope="full",
        formula="sum over layers of |w|_2, dead layers included",
        paper="Abdelfattah et al., Zero-Cost Proxies for Lightweight NAS, ICLR 2021; as in NASLib",
    ),
    Proxy.of(
        WeightStatistic("num_layers", "", _ones),
        recipe=RECIPE,
        formula="number of convolutions and linear layers that the output depends on",
        paper="zcpipe",
    ),
)
