"""Expressivity of whole stages: the information that the narrowest resolution passes on.

Reads the covariances that AZ-NAS's expressivity reads, off the same pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from zcpipe.proxies.aznas import ENTROPY, RECIPE
from zcpipe.proxies.base import MapStatistic, Proxy, Values


def positions(feature: Tensor) -> Tensor:  # [N, C, H, W] or [positions, C] -> one number
    """Return the number of positions: of a sample of images, of all of tokens and vectors, which come as rows."""
    return torch.tensor(math.prod(feature.shape[2:]) if feature.ndim == 4 else len(feature))


def _numbers(found: Sequence[Tensor]) -> list[float]:
    return [float(number) for number in found]


def smallest_stage_entropy(statistics: Mapping[str, Values]) -> float:
    """Return the smallest entropy among the last maps of the stages, -inf where one of these is dead.

    A stage is a run of successive maps of one resolution.
    """
    entropy, resolution = statistics["expressivity"], statistics["resolution"]
    last = np.append(resolution[1:] != resolution[:-1], True)
    return float(np.min(entropy[last]))


PROXIES = (
    Proxy(
        name="stage_expressivity",
        direction="higher",
        scope="function",
        cost="cheap",
        recipe=RECIPE,
        statistics=(ENTROPY, MapStatistic("resolution", "", positions, _numbers)),
        reduce=smallest_stage_entropy,
        unit="nat",
        formula="smallest spectral entropy among the last maps of the stages, runs of maps of one resolution",
        paper="zcpipe; the entropy: Lee & Ham, AZ-NAS, CVPR 2024",
    ),
)
