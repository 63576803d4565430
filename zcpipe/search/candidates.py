"""What a search may choose from: a table's architectures or a whole space, within limits of size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Generic, Protocol, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from zcpipe.errors import DataError, UsageError, asking
from zcpipe.ops.philox import Stream
from zcpipe.rank.ranking import Floats
from zcpipe.search.limits import ANY_SIZE, Limits
from zcpipe.search.scores import COUNTS, TableScores
from zcpipe.spaces.asked import key_of, length_of, member, size_of
from zcpipe.spaces.base import Architecture, DrawsByDataset, EnumerableSpace, Size, Space
from zcpipe.spaces.permutation import permutation

A = TypeVar("A", bound=Architecture)
Bools = NDArray[np.bool_]

TRIES = 10_000
"""Random architectures in a row that may break the limits before no further candidate is expected."""


class Candidates(Protocol[A]):
    """The architectures that a search may choose from."""

    space: Space[A]

    def models(self) -> int | None:
        """Return how many there are that differ by key, None where nobody counts them."""
        ...

    def draws(self, seed: int) -> Iterator[A]:
        """Yield random candidates under a seed; where they can be counted each comes once.

        They end where there are no more, or where none of the last `TRIES` was within the limits.

        Raises:
            DataError: none ever was.
        """
        ...

    def neighbours(self, arch: A) -> list[A]:
        """Return the candidates one elementary change away, in a fixed order."""
        ...

    def __contains__(self, arch: object) -> bool: ...

    def key(self, arch: A) -> str:
        """Return the key of an architecture."""
        ...


class TableCandidates(Generic[A]):
    """The architectures of a table that are within limits.

    Args:
        space: theirs.
        scores: the table, with its counts.
        dataset: for which what the table does not hold is counted.
        limits: of size.
        among: [n], the rows of the table that may be candidates at all; by default every one.

    Raises:
        UsageError: limits that the space cannot be held against.
        DataError: none is within the limits.
    """

    def __init__(
        self,
        space: Space[A],
        scores: TableScores,
        dataset: str,
        limits: Limits = ANY_SIZE,
        among: Bools | None = None,
    ) -> None:
        limits.check(space)
        self.space = space
        self._scores = scores
        allowed = np.ones(len(scores.texts), dtype=bool) if among is None else among.copy()
        if limits:
            params, macs = (scores.columns[name] for name in COUNTS)
            allowed &= ~np.isnan(params + macs)
            for row in np.flatnonzero(allowed).tolist():
                allowed[row] = limits.allow_size(Size(int(params[row]), int(macs[row])))
        if limits.of_space:
            for row in np.flatnonzero(allowed).tolist():
                allowed[row] = limits.allow_counts(space, self._parse(scores.texts[row]), dataset)
        first = [scores.row(text) == row for row, text in enumerate(scores.texts)]  # draws may repeat a text
        self._allowed = allowed
        self._rows = np.flatnonzero(allowed & np.array(first, dtype=bool))
        if not len(self._rows):
            raise DataError(self._none(limits, among))

    def _none(self, limits: Limits, among: Bools | None) -> str:
        texts, columns = self._scores.texts, self._scores.columns
        if not len(texts):
            return "the table has no rows; run zcpipe on it first"
        if among is not None and not among.any():
            return f"none of the table's {len(texts)} architectures has a truth; is the truth file of another space?"
        return f"none of all {len(texts)} architectures of the table has {limits}; they have {_spread(columns)}"

    def __len__(self) -> int:
        return len(self._rows)

    @cached_property
    def texts(self) -> list[str]:
        """The candidates' texts in the order of the table."""
        return [self._scores.texts[row] for row in self._rows.tolist()]

    def models(self) -> int:
        """Return how many candidates differ by key."""
        return len({self._scores.keys[row] for row in self._rows.tolist()})

    def draws(self, seed: int) -> Iterator[A]:
        """Yield all candidates in a random order."""
        order = permutation(len(self._rows), Stream.of(seed, self.space.name, "", 0, "search draws"))
        for place in order.tolist():
            yield self._parse(self.texts[place])

    def _parse(self, text: str) -> A:
        with asking(self.space.name, f"the architecture of {text}"):
            return self.space.parse(text)

    def neighbours(self, arch: A) -> list[A]:
        """Return the neighbours that are candidates; a table of few architectures may hold none."""
        return [one for one in neighbours_of(self.space, arch) if one in self]

    def __contains__(self, arch: object) -> bool:
        row = self._scores.row(arch)
        return row is not None and bool(self._allowed[row])

    def key(self, arch: A) -> str:
        """Return the key that the table holds."""
        row = self._scores.row(arch)
        return _key(self.space, arch) if row is None else self._scores.keys[row]


class SpaceCandidates(Generic[A]):
    """The architectures of a whole space that are within limits.

    Args:
        space: theirs.
        dataset: for which sizes are counted.
        limits: of size.

    Raises:
        UsageError: no such data set, or limits that the space cannot be held against.
    """

    def __init__(self, space: Space[A], dataset: str, limits: Limits = ANY_SIZE) -> None:
        limits.check(space)
        if dataset not in space.datasets:
            raise UsageError(f"{space.name} has no data set {dataset!r}; it has {', '.join(space.datasets)}")
        self.space = space
        self._dataset = dataset
        self._limits = limits
        self._keys: dict[A, str] = {}

    def models(self) -> int | None:
        """Return how many there are at most: the length of the space, where it has one."""
        return length_of(self.space) if isinstance(self.space, EnumerableSpace) else None

    def draws(self, seed: int) -> Iterator[A]:
        """Yield random architectures that are within the limits; see `Candidates.draws`."""
        beyond: list[Size] = []  # of what was drawn since the last candidate
        drawn, length, any_yet = 0, self.models(), False
        while (length is None or drawn < length) and len(beyond) < TRIES:
            arch = self._draw(seed, drawn)
            drawn += 1
            if self._limits.allow(self.space, arch, self._dataset):
                beyond, any_yet = [], True
                yield arch
            else:
                with asking(self.space.name, f"the size of {arch}"):
                    beyond.append(size_of(self.space, arch, self._dataset))
        if not any_yet:
            counts = {name: np.array([float(getattr(size, name)) for size in beyond]) for name in COUNTS}
            raise DataError(
                f"none of {drawn} random architectures of {self.space.name} in a row has {self._limits}; they had "
                f"{_spread(counts)}"
            )

    def _draw(self, seed: int, i: int) -> A:
        return random_member(self.space, self._dataset, seed, i)

    def neighbours(self, arch: A) -> list[A]:
        """Return the neighbours that are within the limits."""
        return [one for one in neighbours_of(self.space, arch) if one in self]

    def __contains__(self, arch: object) -> bool:
        return self._limits.allow(self.space, cast(A, arch), self._dataset)

    def key(self, arch: A) -> str:
        """Return the key that the space gives."""
        if arch not in self._keys:
            self._keys[arch] = _key(self.space, arch)
        return self._keys[arch]


def _spread(counts: Mapping[str, Floats]) -> str:
    """Say between what the counts of architectures are."""
    known = {name: counts[name][~np.isnan(counts[name])] for name in COUNTS}
    said = (f"{of.min():,.0f} to {of.max():,.0f} {name}" if len(of) else f"no {name}" for name, of in known.items())
    return ", ".join(said)


def random_member(space: Space[A], dataset: str, seed: int, i: int) -> A:
    """Return the random architecture of a number that the space draws for a data set.

    Raises:
        ZcpipeError: the space raises, or draws what is no member.
    """
    with asking(space.name, f"its random architecture {i}"):
        if isinstance(space, DrawsByDataset):
            drawn: A = member(space, space.sample_for(dataset, seed, i), "sample_for")
            return drawn
        return member(space, space.sample(seed, i), "sample")


def neighbours_of(space: Space[A], arch: A) -> list[A]:
    """Return the neighbours that the space gives.

    Raises:
        ZcpipeError: the space raises.
    """
    with asking(space.name, f"the neighbours of {arch}"):
        return list(space.neighbours(arch))


def _key(space: Space[A], arch: A) -> str:
    with asking(space.name, f"the key of {arch}"):
        return key_of(space, arch)


def random_neighbour(candidates: Candidates[A], arch: A, rng: np.random.Generator) -> A | None:
    """Return a random one of `Candidates.neighbours`, None where there is none; few of them are held to the limits."""
    neighbours = neighbours_of(candidates.space, arch)
    for place in map(int, rng.permutation(len(neighbours))):
        if neighbours[place] in candidates:
            return neighbours[place]
    return None


def drawn(candidates: Candidates[A], seed: int, n: int) -> Sequence[A]:
    """Return the first n random candidates under a seed.

    Raises:
        UsageError: there are fewer.
        DataError: as `Candidates.draws`.
    """
    found = []
    for arch in candidates.draws(seed):
        found.append(arch)
        if len(found) == n:
            break
    if len(found) < n:
        raise UsageError(f"{n} random architectures were asked for, but there are only {len(found)} candidates")
    return found
