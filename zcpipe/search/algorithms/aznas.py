"""The searches of AZ-NAS: evolution and random sampling of architectures whose scores are ranked over all so far.

Evolution starts at one network (Lee & Ham, CVPR 2024, and the code that they published): that which a space says, or
else the first random one that may be a candidate. Up to the eleventh, candidates are the start changed in one place;
then any candidate so far changed in two, until there are as many as a population has; from then on one of the best of
the whole history, changed in two. A start of which hardly any change may be a candidate is left once many proposals in
a row gave nothing new. Random sampling draws from the space. Nothing is ever discarded, and a candidate beyond the
limits is none.

Proposals come in batches. Only parents among the best depend on scores, and they are taken from the best when the batch
begins; with batches of one this is the published loop. One thing differs: an architecture is a candidate once, while
there it would be scored and ranked again.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Generic, Literal, TypeVar

from zcpipe.errors import DataError, asking
from zcpipe.ops.philox import Stream
from zcpipe.rank.ranking import Floats
from zcpipe.rank.selection import Positions
from zcpipe.search.candidates import TableCandidates, random_member
from zcpipe.search.incremental import History
from zcpipe.search.limits import ANY_SIZE, Limits
from zcpipe.spaces.asked import member
from zcpipe.spaces.base import Architecture, EnumerableSpace, MovesFromNetwork, Space

A = TypeVar("A", bound=Architecture)

Proposals = Literal["evolution", "random"]

TRIES = 10_000
"""Proposals in a row that may be no new candidate before a search ends."""

_FIRST = 10  # after so many candidates and one more the start is left
_VAIN = 1_000  # and after so many proposals in a row that were no new candidates


class AzNas(Generic[A]):
    """One search: `propose` and `tell` alternate, and what it proposes depends on what it was told alone.

    Args:
        space: what to search.
        dataset: for which sizes are counted.
        directions: the proxies that are aggregated, and for each "higher" or "lower".
        seed: of all that is drawn.
        proposals: "evolution" or "random".
        population: evolution takes parents among the best ``population - 1``.
        aggregate: "logrank" or "linear".
        limits: what candidates must be within.
        among: the table's architectures, which alone can be candidates, and which random sampling draws from; None for
            the whole space.

    Raises:
        UsageError: limits that the space cannot be held against, or as `History`.
    """

    def __init__(
        self,
        space: Space[A],
        dataset: str,
        directions: Mapping[str, str],
        *,
        seed: int = 0,
        proposals: Proposals = "evolution",
        population: int = 1024,
        aggregate: str = "logrank",
        limits: Limits = ANY_SIZE,
        among: TableCandidates[A] | None = None,
    ) -> None:
        limits.check(space)
        self.history = History(directions, aggregate)
        self.archs: list[A] = []  # all candidates: those of the history, and those proposed since
        self.tries = 0
        self._space, self._dataset, self._seed = space, dataset, seed
        self._moves: MovesFromNetwork[A] | None = space if isinstance(space, MovesFromNetwork) else None
        counted = space if among is None else among
        self._length = len(counted) if isinstance(counted, EnumerableSpace | TableCandidates) else None
        self._draws = None if among is None else among.draws(seed)
        self._evolution = proposals == "evolution"
        self._population = population
        self._limits = limits
        self._among = among
        self._seen: set[A] = set()
        self._start: A | None = None
        self._left = False  # whether the start is
        self._best: Positions = self.history.best(0)

    def propose(self, n: int) -> list[A]:
        """Return the next candidates.

        Args:
            n: how many; fewer are returned only where the search has come to its end: the space has no more, or
                `TRIES` proposals in a row were no new candidates.

        Raises:
            DataError: no proposal was ever within the limits.
            ZcpipeError: the space raises.
        """
        self._best = self.history.best(self._population - 1) if self._evolution else self._best
        batch: list[A] = []
        vain = 0
        while len(batch) < n and vain < TRIES and not self._exhausted():
            self._left = self._left or vain >= _VAIN or len(self.archs) > _FIRST
            arch = self._random() if not self._evolution else self._mutant()
            self.tries += 1
            vain += 1
            if arch not in self._seen and self._allows(arch):
                self._seen.add(arch)
                self.archs.append(arch)
                batch.append(arch)
                vain = 0
        if not self.archs:
            demands = str(self._limits) or "scores"
            said = f"none of {self.tries:,} proposals in {self._space.name} has {demands}"
            if self._evolution:
                why = (
                    "one start has few changes" if self._among is None else "scores of a few hold hardly any mutations"
                )
                said += f": {why}; propose at random (--proposals random)"
            raise DataError(said)
        return batch

    def tell(self, scores: Mapping[str, Floats]) -> None:
        """Take the scores of the candidates proposed since the last time, in their order."""
        self.history.append(scores)

    def _allows(self, arch: A) -> bool:
        if self._among is not None and arch not in self._among:
            return False
        return self._limits.allow(self._space, arch, self._dataset)

    def _exhausted(self) -> bool:
        """Whether a table or an enumerable space has no more."""
        drawn = len(self.archs) if self._evolution else self.tries
        return self._length is not None and drawn >= self._length

    def _random(self) -> A:
        if self._draws is not None:
            return next(self._draws)  # of as many as there are
        return random_member(self._space, self._dataset, self._seed, self.tries)

    def _mutant(self) -> A:
        if self._start is None:
            self._start = self._found_start()
        if not self._left:
            return self._mutated(self._start, 1)
        count = len(self.archs)
        if not count:
            return self._mutated(self._start, 2)
        if count < self._population - 1 or not len(self._best):
            return self._mutated(self.archs[self._pick(count)], 2)
        return self._mutated(self.archs[int(self._best[self._pick(len(self._best))])], 2)

    def _found_start(self) -> A:
        if self._moves is not None:
            with asking(self._space.name, "the network that a search starts with"):
                return self._moves.initial()
        drawn = (random_member(self._space, self._dataset, self._seed, i) for i in range(_VAIN))
        listed = () if self._among is None else self._among.draws(self._seed)
        allowed = (arch for arch in chain(drawn, listed) if self._allows(arch))
        found = next(allowed, None)
        return random_member(self._space, self._dataset, self._seed, 0) if found is None else found

    def _mutated(self, arch: A, places: int) -> A:
        with asking(self._space.name, f"a mutation of {arch}"):
            if self._moves is not None:
                return member(self._space, self._moves.mutate(arch, self._seed, self.tries, places), "mutate")
            for place in range(places):
                arch = self._space.mutate(arch, self._seed, 2 * self.tries + place)
            return member(self._space, arch, "mutate")

    def _pick(self, n: int) -> int:
        return int(Stream.of(self._seed, self._space.name, "", self.tries, "parent").integers(1, n)[0])
