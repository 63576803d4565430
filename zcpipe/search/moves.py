"""Zero-cost moves: of a parent's neighbours the best by a score that needs no training becomes its child."""

from __future__ import annotations

from typing import Generic, TypeVar

import numpy as np

from zcpipe.errors import UsageError
from zcpipe.rank import top
from zcpipe.search.candidates import Candidates, random_neighbour
from zcpipe.search.scores import Guide
from zcpipe.spaces.base import Architecture

A = TypeVar("A", bound=Architecture)

RANDOM = 0.25


class Moves(Generic[A]):
    """Take the best neighbour, and now and then any (Abdelfattah et al., ICLR 2021).

    Args:
        guide: what orders neighbours, among one another alone.
        candidates: what neighbours are chosen from.
        random: how probable it is to take a random neighbour instead, which keeps a population diverse.

    Raises:
        UsageError: that is no probability.
    """

    def __init__(self, guide: Guide, candidates: Candidates[A], random: float = RANDOM) -> None:
        if not 0 <= random <= 1:
            raise UsageError(f"the probability of a random move must be from 0 to 1, got {random:g}")
        self._guide, self._candidates, self._random = guide, candidates, random
        self._best: dict[A, A | None] = {}

    def choose(self, parent: A, rng: np.random.Generator) -> A | None:
        """Choose a neighbour: a random one where none has a score, None where there is none."""
        if rng.random() >= self._random and (best := self._best_of(parent)) is not None:
            return best
        return random_neighbour(self._candidates, parent, rng)

    def _best_of(self, parent: A) -> A | None:
        """Return the best neighbour; it is always the same, whatever was trained meanwhile."""
        if parent not in self._best:
            neighbours = self._candidates.neighbours(parent)
            first = top(self._guide.goodness(neighbours), 1).tolist() if neighbours else []
            self._best[parent] = neighbours[first[0]] if first else None
        return self._best[parent]
