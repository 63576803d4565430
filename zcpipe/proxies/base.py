"""What a proxy and a statistic are: declarations that the scoring plans from and the table keeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
    """One number per block from its feature map, in two steps, so that the second one serves all blocks at once.

    ``moments`` takes the map, images [N, C, H, W] as they are, tokens and vectors as rows [positions, C], and returns
    a small tensor. ``finish`` takes those of all blocks and returns their numbers: -inf where the definition calls a
    block degenerate, NaN where its map holds non-finite values.
    """

    name: str
    unit: str
    moments: Callable[[Tensor], Tensor]
    finish: Callable[[Sequence[Tensor]], Sequence[float]]


@dataclass(frozen=True)
class JacobianStatistic:
    """One number per block after the first, from one probe of its local Jacobian, in the same two steps.

    ``moments`` takes the gradient with respect to the previous map and the probe it was computed from, both in the
    layout of their maps, [N, C, H, W] or [N, T, C] or [N, C]; it may return None for a block that needs no numbers,
    such as the identity.
    """

    name: str
    unit: str
    moments: Callable[[Tensor, Tensor], Tensor | None]
    finish: Callable[[Sequence[Tensor | None]], Sequence[float]]


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


def positions_of(feature: Tensor) -> Tensor:  # [N, C, H, W] or [N, T, C] or [N, C]
    """Return what the moment operations read: images as they are, tokens and vectors as rows, [positions, C].

    Raises:
        UsageError: another number of dimensions.
    """
    if feature.ndim not in (2, 3, 4):
        raise UsageError(
            f"block maps must be [N, C, H, W], tokens [N, T, C] or vectors [N, C], got shape {tuple(feature.shape)}"
        )
    return feature.flatten(0, 1) if feature.ndim == 3 else feature
