"""What statistics take and give: they may read what they are given, and owe a number for each node."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from zcpipe.proxies.base import ActivationStatistic, JacobianStatistic, MapStatistic, Statistic


class WrittenError(RuntimeError):
    """A statistic wrote to what it was given to read: what others read there, and the network itself, is lost."""


def moments_of(
    statistic: MapStatistic | JacobianStatistic | ActivationStatistic, *tensors: Tensor, total: tuple[Any, ...] = ()
) -> Any:  # noqa: ANN401 - a statistic's moments are its own
    """Return a statistic's moments of tensors that belong to the pass.

    Args:
        statistic: which.
        tensors: what it reads.
        total: what else it is given, which is its own.

    Raises:
        WrittenError: it changed one of the tensors.
    """
    versions = [tensor._version for tensor in tensors]
    try:
        return statistic.moments(*tensors, *total)
    finally:
        if [tensor._version for tensor in tensors] != versions:
            raise WrittenError(f"statistic {statistic.name} wrote to what it was given to read")


def values_of(statistic: Statistic, found: object, nodes: int) -> NDArray[np.float64]:  # [nodes]
    """Return what a statistic gave, as an array of float64.

    Numpy would spread a single number over all nodes, and take None for one that is not a number.

    Args:
        statistic: whose numbers they are.
        found: what its function returned.
        nodes: how many numbers it must give.

    Raises:
        ValueError: it gave another number of them, or something else; the statistic is named.
    """
    owed = "one number" if statistic.node == "network" else f"{nodes} numbers, one for each {statistic.node}"
    start = f"statistic {statistic.name} must give {owed}, but gave"
    if isinstance(found, (list, tuple)) and any(value is None for value in found):
        raise ValueError(f"{start} None")
    try:
        values = np.asarray(found, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{start} {type(found).__name__}: {error}") from error
    if values.shape != (nodes,):
        got = f"{len(values)} numbers" if values.ndim == 1 else f"{type(found).__name__} of shape {values.shape}"
        raise ValueError(f"{start} {got}")
    return values
