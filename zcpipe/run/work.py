"""Which rows a run computes, in which shards: from a selection to key classes.

The unit of work is a key class. Its representative, whose network is scored, is its smallest member over the whole
space whatever was selected, and a shard is a fixed range of classes; so rows do not depend on how a table grew.
Spaces that cannot be enumerated share keys within blocks of draws only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from zcpipe.errors import UsageError, unknown_name
from zcpipe.run.spec import All, Archs, Range, RunSpec, Sample
from zcpipe.spaces import get_space
from zcpipe.spaces.base import Architecture, EnumerableSpace, Space
from zcpipe.spaces.classes import key_classes

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Unit:
    """One key class of a shard: the indices of its representative and of the members whose rows are wanted."""

    shard: int
    representative: int
    members: tuple[int, ...]


@dataclass(frozen=True)
class Shard:
    """The rows of a shard that are still to be computed."""

    id: int
    units: tuple[Unit, ...]

    @property
    def rows(self) -> int:
        """How many rows the shard will add."""
        return sum(len(unit.members) for unit in self.units)


@dataclass(frozen=True)
class Size:
    """How much work there is; ``classes`` is None where only the scoring itself finds out."""

    rows: int
    classes: int | None
    shards: int


class WorkList(Protocol):
    """The rows of a selection."""

    indices: Indices  # [rows] row indices, sorted

    def shards(self, present: Indices) -> Iterator[Shard]:
        """Yield what is missing, shard by shard in ascending order."""
        ...

    def size(self, present: Indices) -> Size:
        """Count what is missing."""
        ...


class ClassList:
    """Members of an enumerable space, grouped by the key classes of the whole space."""

    def __init__(self, space: EnumerableSpace[Architecture], indices: Indices, classes_per_shard: int) -> None:
        self.indices = np.unique(indices)
        self._classes = key_classes(space)
        self._per_shard = classes_per_shard

    def shards(self, present: Indices) -> Iterator[Shard]:
        """Yield what is missing, shard by shard."""
        members, classes = self._missing(present)
        starts = np.flatnonzero(np.diff(classes, prepend=-1))  # where each class begins
        stops = np.append(starts[1:], len(classes))
        numbers = classes[starts] // self._per_shard
        for shard in np.unique(numbers):
            first, last = np.searchsorted(numbers, [shard, shard + 1])
            units = [
                Unit(int(shard), int(self._classes.representative[classes[a]]), tuple(members[a:b].tolist()))
                for a, b in zip(starts[first:last], stops[first:last], strict=True)
            ]
            yield Shard(int(shard), tuple(units))

    def size(self, present: Indices) -> Size:
        """Count what is missing."""
        members, classes = self._missing(present)
        distinct = np.unique(classes)
        return Size(len(members), len(distinct), len(np.unique(distinct // self._per_shard)))

    def _missing(self, present: Indices) -> tuple[Indices, Indices]:
        """Return the members without a row and their classes, in order of class and then index."""
        members = np.setdiff1d(self.indices, present, assume_unique=True)
        classes = self._classes.class_of[members].astype(np.int64)
        order = np.lexsort((members, classes))
        return members[order], classes[order]


class DrawList:
    """Architectures of a space that has no enumeration, in blocks within which equal keys are computed once."""

    def __init__(self, ids: Indices, key_of: Callable[[int], str], block: int) -> None:
        self._ids = ids  # [rows] in order of drawing
        self.indices = np.sort(ids)
        self._key_of = key_of
        self._block = block

    def shards(self, present: Indices) -> Iterator[Shard]:
        """Yield what is missing, block by block."""
        for shard, start in enumerate(range(0, len(self._ids), self._block)):
            block = self._ids[start : start + self._block]
            missing = set(np.setdiff1d(block, present).tolist())
            if not missing:
                continue
            classes: dict[str, list[int]] = {}
            for number in block.tolist():
                classes.setdefault(self._key_of(number), []).append(number)
            wanted = [(members[0], [m for m in members if m in missing]) for members in classes.values()]
            yield Shard(shard, tuple(Unit(shard, first, tuple(members)) for first, members in wanted if members))

    def size(self, present: Indices) -> Size:
        """Count what is missing; the classes are not known before the architectures are drawn."""
        missing = np.flatnonzero(~np.isin(self._ids, present))
        return Size(len(missing), None, len(np.unique(missing // self._block)))


def plan(spec: RunSpec) -> WorkList:
    """Turn the selection of a spec into its rows.

    Raises:
        UsageError: unknown space or dataset, a selection that is empty or does not fit the space, malformed texts.
    """
    space = get_space(spec.space)
    if spec.dataset not in space.datasets:
        raise unknown_name("dataset", spec.dataset, space.datasets)
    if isinstance(space, EnumerableSpace):
        return ClassList(space, _members(space, spec), spec.classes_per_shard)
    return _draws(space, spec)


class Locator:
    """Finds the architecture of a row index."""

    def __init__(self, spec: RunSpec) -> None:
        self._seed = spec.seed
        self._space = get_space(spec.space)
        self._listed: Mapping[int, Architecture] = {}
        if isinstance(spec.selection, Archs) and not isinstance(self._space, EnumerableSpace):
            self._listed = _by_digest(self._space, spec.selection)

    def __call__(self, index: int) -> Architecture:
        """Return the architecture that a row of this run is about."""
        if isinstance(self._space, EnumerableSpace):
            member: Architecture = self._space[index]
            return member
        return self._listed[index] if self._listed else self._space.sample(self._seed, index)


def _members(space: EnumerableSpace[Architecture], spec: RunSpec) -> Indices:
    selection, length = spec.selection, len(space)
    match selection:
        case All():
            return np.arange(length)
        case Range(start=start, stop=stop):
            if not 0 <= start < stop <= length:
                raise UsageError(f"range {start}:{stop} does not fit {spec.space}; take 0 <= A < B <= {length}")
            return np.arange(start, stop)
        case Sample(n=n):
            _check_sample(n)
            if n > length:
                raise UsageError(f"sample of {n} is larger than {spec.space}, which has {length}; leave --sample out")
            return np.fromiter((space.index(space.sample(spec.seed, i)) for i in range(n)), np.int64, n)
        case Archs():
            return np.array([space.index(arch) for arch in _parse(space, selection)], np.int64)


def _draws(space: Space[Architecture], spec: RunSpec) -> DrawList:
    locate = Locator(spec)

    def key_of(index: int) -> str:
        return space.key(locate(index))

    match spec.selection:
        case Sample(n=n):
            _check_sample(n)
            return DrawList(np.arange(n), key_of, spec.classes_per_shard)
        case Archs() as archs:
            ids = np.fromiter(_by_digest(space, archs), np.int64)
            return DrawList(ids, key_of, spec.classes_per_shard)
        case _:
            raise UsageError(f"{spec.space} cannot be enumerated; select with --sample N or --archs FILE")


def _check_sample(n: int) -> None:
    if n < 1:
        raise UsageError(f"sample of {n} is empty; ask for at least 1")


def _parse(space: Space[Architecture], archs: Archs) -> list[Architecture]:
    """Parse each text once, in the order given."""
    parsed: dict[Architecture, None] = {}
    for line, text in enumerate(archs.texts, start=1):
        if text.strip():
            try:
                parsed.setdefault(space.parse(text.strip()))
            except UsageError as error:
                raise UsageError(f"line {line}: {error}") from error
    if not parsed:
        raise UsageError("no architectures given; list one per line")
    return list(parsed)


def _by_digest(space: Space[Architecture], archs: Archs) -> dict[int, Architecture]:
    """Number architectures that have no index by 63 bits of a digest of their texts."""
    parsed = _parse(space, archs)
    digests = [hashlib.blake2b(str(arch).encode(), digest_size=8).digest() for arch in parsed]
    return {int.from_bytes(digest, "big") >> 1: arch for digest, arch in zip(digests, parsed, strict=True)}
