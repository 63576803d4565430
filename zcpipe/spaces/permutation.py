"""Random order of an enumerable space: draws without replacement that need no earlier draw."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from zcpipe.errors import UsageError
from zcpipe.ops.philox import Stream


def permuted(length: int, seed: int, space: str, i: int) -> int:
    """Return element ``i`` of the permutation of ``range(length)`` that belongs to ``seed`` and ``space``.

    Raises:
        UsageError: ``i`` is outside the space.
    """
    if not 0 <= i < length:
        raise UsageError(f"{space} has {length} architectures; there is no draw {i} without replacement")
    return int(_permutation(length, seed, space)[i])


def permutation(length: int, stream: Stream) -> NDArray[np.int64]:
    """Return the permutation of ``range(length)`` that belongs to a stream: the order of 64 random bits each."""
    words = stream.bits(2 * length).numpy().astype(np.uint64) & 0xFFFFFFFF
    order: NDArray[np.int64] = np.argsort(words[0::2] << np.uint64(32) | words[1::2], kind="stable")
    return order


@lru_cache(maxsize=4)
def _permutation(length: int, seed: int, space: str) -> NDArray[np.int64]:
    return permutation(length, Stream.of(seed, space, "", 0, "permutation"))
