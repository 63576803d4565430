"""The numbers that statistics return, held to one per node."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from zcpipe.proxies.base import Statistic


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
