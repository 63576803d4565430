"""What a space is asked, which may be anybody's, held to what it promises.

Each function but `length_of` raises what the space does, and where it breaks a promise an error that says which method
returned what. It is to be called inside `zcpipe.errors.asking`, or where whatever is raised ends as a row.
"""

from __future__ import annotations

import operator
import reprlib
from typing import TypeVar

from zcpipe.errors import UsageError, asking
from zcpipe.spaces.base import Architecture, EnumerableSpace, Size, Space

A = TypeVar("A", bound=Architecture)


def key_of(space: Space[A], arch: A) -> str:
    """Return the key of an architecture: a text."""
    return sound_key(space.key(arch))


def length_of(space: EnumerableSpace[A]) -> int:
    """Return how many architectures a space has: at least one.

    Raises:
        ZcpipeError: the space raises, or has none.
    """
    with asking(space.name, "its length"):
        length = len(space)
        if not length:
            raise ValueError("__len__ returned 0")
        return length


def sound_key(key: object) -> str:
    """Return what a space gave for a key, if it is a text."""
    if not isinstance(key, str):
        raise TypeError(f"key returned {reprlib.repr(key)}, which is no text")
    return key


def index_of(space: EnumerableSpace[A], arch: A) -> int:
    """Return the index of an architecture: a whole number within the space."""
    given = space.index(arch)
    try:
        index = operator.index(given)
    except TypeError:
        raise TypeError(f"index returned {reprlib.repr(given)}, which is no whole number") from None
    if not 0 <= index < len(space):
        raise ValueError(f"index returned {index}, but the space has {len(space)} architectures")
    return index


def size_of(space: Space[A], arch: A, dataset: str) -> Size:
    """Return the size of an architecture: whole numbers."""
    size = space.size(arch, dataset)
    try:
        return Size(operator.index(size.params), operator.index(size.macs))
    except (AttributeError, TypeError):
        raise TypeError(f"size returned {reprlib.repr(size)}, which is no Size of whole numbers") from None


def member(space: Space[A], arch: A, method: str) -> A:
    """Return what a method gave for an architecture, if ``parse`` knows it by its text."""
    text = str(arch)
    try:
        back = str(space.parse(text))
    except UsageError as error:
        raise ValueError(f"{method} returned {reprlib.repr(arch)}, which is no member: {error}") from error
    if back != text:
        raise ValueError(f"{method} returned {text}, which parse reads as {back}")
    return arch


def parsed(space: Space[A], text: str) -> A:
    """Return the architecture of a text that is known to be canonical."""
    arch = space.parse(text)
    if str(arch) != text:
        raise ValueError(f"parse returned {arch}, another architecture")
    return arch
