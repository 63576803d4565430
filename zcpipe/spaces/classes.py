"""Key classes of an enumerable space: which architectures share one function, and who stands for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from zcpipe.errors import asking
from zcpipe.spaces.asked import key_of, length_of, sound_key
from zcpipe.spaces.base import Architecture, EnumerableSpace, KeyedAtOnce


@dataclass(frozen=True)
class KeyClasses:
    """The partition of a space by key; classes are numbered in the order of their smallest member."""

    class_of: NDArray[np.int32]  # [architectures] number of the class of each index
    representative: NDArray[np.int32]  # [classes] smallest index of each class


@lru_cache(maxsize=4)
def key_classes(space: EnumerableSpace[Architecture]) -> KeyClasses:
    """Compute the key classes of the whole space, once in a process.

    Raises:
        ZcpipeError: the space raises for one of its architectures.
    """
    numbers: dict[str, int] = {}
    representative: list[int] = []
    length = length_of(space)
    class_of = np.empty(length, np.int32)
    for index, key in enumerate(_keys(space, length)):
        number = numbers.setdefault(key, len(numbers))
        if number == len(representative):
            representative.append(index)
        class_of[index] = number
    return KeyClasses(class_of, np.array(representative, np.int32))


def _keys(space: EnumerableSpace[Architecture], length: int) -> Iterator[str]:
    if isinstance(space, KeyedAtOnce):
        with asking(space.name, "all its keys"):
            keys = [sound_key(key) for key in space.all_keys()]
            if len(keys) != length:
                raise ValueError(f"all_keys returned {len(keys)} for {length} architectures")
        yield from keys
        return
    for index in range(length):
        with asking(space.name, f"the key of its architecture {index}"):
            key = key_of(space, space[index])
        yield key
