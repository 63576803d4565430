"""Which rows a run computes, in which shards: from a selection to key classes.

The unit of work is a key class. Its representative, whose network is scored, is its smallest member over the whole
space whatever was selected, and a shard is a fixed range of classes; so rows do not depend on how a table grew.

Where a space cannot be enumerated an index is a digest of the architecture's text, whether it was drawn or listed, and
an architecture that comes twice has one row. Random draws share keys within a shard, which is a fixed range of draws.
Listed architectures stand for themselves: what they could share would depend on what else is in the list.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from zcpipe.errors import UsageError, asking, unknown_name
from zcpipe.run.spec import All, Archs, Range, RunSpec, Sample
from zcpipe.spaces import asked, get_space
from zcpipe.spaces.base import Architecture, DrawsByDataset, EnumerableSpace, LimitsResolution, Space
from zcpipe.spaces.classes import key_classes

Indices = NDArray[np.int64]
Progress = Callable[[int, int], None]  # told (draws done, draws in all)

_SHARDS = 1024  # of which a large table consists, more or less
_CLASSES = (64, 4096)  # the fewest and the most that a shard has unless it is told: what a death can cost, and files


_TOLD = 1000  # after how many draws the progress is told


def silent(done: int, total: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Unit:
    """One key class of a shard: the indices of its representative and of the members whose rows are wanted.

    ``texts`` are those of the representative and of the members, in a space that cannot find them by their indices.
    """

    shard: int
    representative: int
    members: tuple[int, ...]
    texts: tuple[str, ...] = ()


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
    """Random draws of a space that has no enumeration.

    An architecture belongs to the shard of the draw that first met it. The representative of a key is the smallest text
    among ALL draws of the shard, selected or not, so that rows are the same however far the sample goes.
    """

    def __init__(
        self,
        space: Space[Architecture],
        seed: int,
        n: int,
        draws_per_shard: int,
        dataset: str | None = None,
        progress: Progress = silent,
    ) -> None:
        self._space = space
        self._sample = _sampler(space, seed, dataset)
        self._per_shard = draws_per_shard
        digests = np.empty(n, np.int64)
        for draw in range(n):
            if draw and draw % _TOLD == 0:
                progress(draw, n)
            digests[draw] = index_of(self._draw(draw)[1])
        if n:
            self._key(*self._draw(0))  # a space whose keys are none says so before there is a table
        self.indices, self._draws = np.unique(digests, return_index=True)  # the latter: which draw first met each

    def shards(self, present: Indices) -> Iterator[Shard]:
        """Yield what is missing, shard by shard."""
        missing = self._missing(present)
        numbers = missing // self._per_shard
        for shard in np.unique(numbers).tolist():
            yield self._shard(shard, missing[numbers == shard].tolist())

    def size(self, present: Indices) -> Size:
        """Count what is missing; the classes are known only as shards are made."""
        missing = self._missing(present)
        return Size(len(missing), None, len(np.unique(missing // self._per_shard)))

    def _missing(self, present: Indices) -> Indices:
        """Return the draws that first met the architectures without a row, in order."""
        missing: Indices = np.sort(self._draws[~np.isin(self.indices, present)]).astype(np.int64)
        return missing

    def _shard(self, shard: int, wanted: list[int]) -> Shard:
        start = shard * self._per_shard
        archs, texts = zip(*map(self._draw, range(start, start + self._per_shard)), strict=True)
        keys = [self._key(arch, text) for arch, text in zip(archs, texts, strict=True)]
        representatives = dict(sorted(zip(keys, texts, strict=True), reverse=True))  # of each key the smallest stays
        members: dict[str, list[str]] = {}
        for draw in wanted:
            members.setdefault(keys[draw - start], []).append(texts[draw - start])
        return Shard(shard, tuple(_unit(shard, representatives[key], its) for key, its in members.items()))

    def _draw(self, draw: int) -> tuple[Architecture, str]:
        with asking(self._space.name, f"its random architecture {draw}"):
            arch = self._sample(draw)
            return arch, str(arch)

    def _key(self, arch: Architecture, text: str) -> str:
        with asking(self._space.name, f"the key of {text}"):
            return asked.key_of(self._space, arch)


class TextList:
    """Listed architectures of a space that has no enumeration, in order of index, each a class of its own."""

    def __init__(self, texts: Iterable[str], per_shard: int) -> None:
        self._texts = {index_of(text): text for text in texts}
        self.indices = np.sort(np.fromiter(self._texts, np.int64))
        self._per_shard = per_shard

    def shards(self, present: Indices) -> Iterator[Shard]:
        """Yield what is missing, shard by shard."""
        missing = self._missing(present)
        numbers = missing // self._per_shard
        for shard in np.unique(numbers).tolist():
            texts = [self._texts[index] for index in self.indices[missing[numbers == shard]].tolist()]
            yield Shard(shard, tuple(_unit(shard, text, [text]) for text in texts))

    def size(self, present: Indices) -> Size:
        """Count what is missing."""
        missing = self._missing(present)
        return Size(len(missing), len(missing), len(np.unique(missing // self._per_shard)))

    def _missing(self, present: Indices) -> Indices:
        """Return where in the list the architectures without a row are."""
        return np.flatnonzero(~np.isin(self.indices, present))


def index_of(text: str) -> int:
    """Number an architecture of a space that has no enumeration: 63 bits of a digest of its canonical text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def architectures(space: Space[Architecture], unit: Unit) -> tuple[Architecture, list[Architecture]]:
    """Return the representative of a unit and the members whose rows are wanted.

    Raises:
        ZcpipeError: the space raises.
    """
    with asking(space.name, f"its architectures {', '.join(map(str, (unit.texts or unit.members)[:9]))}"):
        if isinstance(space, EnumerableSpace):
            return space[unit.representative], [space[index] for index in unit.members]
        representative, *members = (asked.parsed(space, text) for text in unit.texts)
        return representative, members


def text_of(space: Space[Architecture], arch: Architecture) -> str:
    """Return the canonical text of an architecture.

    Raises:
        ZcpipeError: the space raises.
    """
    with asking(space.name, "the text of one of its architectures"):
        return str(arch)


def key_of(space: Space[Architecture], arch: Architecture) -> str:
    """Return the key of an architecture of which there is to be a row in any case; without a key it is its text.

    For those that were not scored, or whose scoring asked for the key before, and failed if there is none.

    Raises:
        ZcpipeError: the space raises for the text, too.
    """
    try:
        return asked.key_of(space, arch)
    except KeyboardInterrupt:
        raise
    except BaseException:  # what was asked for the key before has said why
        return text_of(space, arch)


def sized(spec: RunSpec) -> RunSpec:
    """Return a spec that says how many classes a shard has: a power of two, larger for large spaces and samples."""
    if spec.classes_per_shard is not None:
        return spec
    space = get_space(spec.space)
    match spec.selection:
        case Sample(n=n) if not isinstance(space, EnumerableSpace):
            most = n
        case Archs(texts=texts) if not isinstance(space, EnumerableSpace):
            most = len(texts)
        case _:
            most = asked.length_of(space) if isinstance(space, EnumerableSpace) else 0
    fewest, largest = _CLASSES
    size = 1 << max(0, -(-most // _SHARDS) - 1).bit_length()
    return spec.model_copy(update={"classes_per_shard": min(max(size, fewest), largest)})


def plan(spec: RunSpec, progress: Progress = silent) -> WorkList:
    """Turn the selection of a spec into its rows, in shards of the size that the spec says.

    Args:
        spec: the run.
        progress: told how many architectures of a sample are drawn, where that can take its time.

    Raises:
        UsageError: unknown space or dataset, a resolution that its networks do not take, a selection that is empty or
            does not fit the space, malformed texts.
        ZcpipeError: the space raises for one of its architectures.
    """
    space, per_shard = get_space(spec.space), sized(spec).classes_per_shard
    assert per_shard is not None  # noqa: S101 - states a type
    if spec.dataset not in space.datasets:
        raise unknown_name("dataset", spec.dataset, space.datasets)
    if spec.resolution is not None and isinstance(space, LimitsResolution):
        with asking(spec.space, "the sides of images that it takes"):
            space.check_resolution(spec.resolution)
    if isinstance(space, EnumerableSpace):
        listed = ClassList(space, _members(space, spec), per_shard)
        first = int(listed.indices[0])
        text_of(space, architectures(space, Unit(0, first, (first,)))[0])  # without it there is to be no table
        return listed
    return _unindexed(space, spec, per_shard, progress)


def _members(space: EnumerableSpace[Architecture], spec: RunSpec) -> Indices:
    selection, length = spec.selection, asked.length_of(space)
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
            return np.fromiter((_drawn_index(space, spec.seed, i) for i in range(n)), np.int64, n)
        case Archs():
            parsed = _parse(space, selection)
            return np.array([_index(space, arch) for arch in parsed], np.int64)


def _drawn_index(space: EnumerableSpace[Architecture], seed: int, draw: int) -> int:
    with asking(space.name, f"the index of its random architecture {draw}"):
        return asked.index_of(space, space.sample(seed, draw))


def _index(space: EnumerableSpace[Architecture], arch: Architecture) -> int:
    text = text_of(space, arch)
    with asking(space.name, f"the index of {text}"):
        return asked.index_of(space, arch)


def _unindexed(space: Space[Architecture], spec: RunSpec, per_shard: int, progress: Progress) -> WorkList:
    match spec.selection:
        case Sample(n=n):
            _check_sample(n)
            return DrawList(space, spec.seed, n, per_shard, spec.dataset, progress)
        case Archs() as archs:
            return TextList((text_of(space, arch) for arch in _parse(space, archs)), per_shard)
        case _:
            raise UsageError(f"{spec.space} cannot be enumerated; select with --sample N or --archs FILE")


def _sampler(space: Space[Architecture], seed: int, dataset: str | None) -> Callable[[int], Architecture]:
    """Return the draws of a seed: those for the data set, where the space has others for each."""
    if dataset is not None and isinstance(space, DrawsByDataset):
        return partial(space.sample_for, dataset, seed)
    return partial(space.sample, seed)


def _unit(shard: int, representative: str, members: list[str]) -> Unit:
    numbered = {index_of(text): text for text in members}
    indices = sorted(numbered)
    texts = (representative, *(numbered[index] for index in indices))
    return Unit(shard, index_of(representative), tuple(indices), texts)


def _check_sample(n: int) -> None:
    if n < 1:
        raise UsageError(f"sample of {n} is empty; ask for at least 1")


def _parse(space: Space[Architecture], archs: Archs) -> list[Architecture]:
    """Parse each text once, in the order given."""
    parsed: dict[Architecture, None] = {}
    origin = f"{archs.source}, " if archs.source else ""
    for line, text in enumerate(archs.texts, start=1):
        if text.strip():
            try:
                with asking(space.name, f"the architecture of {origin}line {line}"):
                    parsed.setdefault(space.parse(text.strip()))
            except UsageError as error:
                raise UsageError(f"{origin}line {line}: {error}") from error
    if not parsed:
        raise UsageError(f"{archs.source or 'the list'} has no architectures; give one per line")
    return list(parsed)
