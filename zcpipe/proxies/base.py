"""What a proxy and a statistic are: declarations that the scoring plans from and the table keeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from zcpipe.errors import UsageError

Direction = Literal["higher", "lower", "none"]
Scope = Literal["function", "full"]
Cost = Literal["static", "cheap", "second-order", "per-sample"]


@dataclass(frozen=True)
class Recipe:
    """The conditions of a pass. Proxies of equal recipe share one pass."""

    init: Literal["kaiming_normal"]  # how `run` draws the weights; see zcpipe.scoring.init
    inputs: Literal["noise"]  # i.i.d. standard normal images
    norm: Literal["batch"]  # batch norm uses the statistics of the batch (train mode)


@dataclass(frozen=True)
class MapStatistic:
    """One number per block from its feature map.

    ``measure`` takes the map as rows of positions, [positions, channels], and returns the number: -inf where the
    definition calls the block degenerate, NaN where the map holds non-finite values.
    """

    name: str
    unit: str
    measure: Callable[[Tensor], float]


@dataclass(frozen=True)
class JacobianStatistic:
    """One number per block after the first, from one probe of its local Jacobian.

    ``measure`` takes the gradient with respect to the previous map and the probe it was computed from, both in the
    layout of their maps, [N, C, H, W] or [N, T, C] or [N, C].
    """

    name: str
    unit: str
    measure: Callable[[Tensor, Tensor], float]


Statistic = MapStatistic | JacobianStatistic


@dataclass(frozen=True)
class Proxy:
    """One number per architecture: a reduction of statistics, or a count of the full architecture.

    ``reduce`` receives the declared statistics by name as float64 arrays over the nodes; static proxies declare none
    and receive ``params`` and ``macs``. It returns the raw value, -inf where the definition says so.
    """

    name: str
    direction: Direction
    scope: Scope
    cost: Cost
    recipe: Recipe | None  # None for static proxies
    statistics: tuple[Statistic, ...]
    reduce: Callable[[Mapping[str, NDArray[np.float64]]], float]
    unit: str
    formula: str
    paper: str


def as_rows(feature: Tensor) -> Tensor:  # [N, C, H, W] or [N, T, C] or [N, C] -> [positions, C]
    """View a map as positions x channels (a copy only where the memory layout forces one).

    Raises:
        UsageError: another number of dimensions.
    """
    if feature.ndim not in (2, 3, 4):
        raise UsageError(
            f"block maps must be [N, C, H, W], tokens [N, T, C] or vectors [N, C], got shape {tuple(feature.shape)}"
        )
    if feature.ndim == 4:
        feature = feature.permute(0, 2, 3, 1)
    return feature.reshape(-1, feature.shape[-1])
