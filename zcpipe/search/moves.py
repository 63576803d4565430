"""Zero-cost moves: of a parent's neighbours the best by a score that needs no training becomes its child."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from zcpipe.errors import UsageError
from zcpipe.rank import top
from zcpipe.search.scores import Guide
from zcpipe.spaces.base import Architecture

A = TypeVar("A", bound=Architecture)


@dataclass(frozen=True)
class Moves:
    """Take the best neighbour, and now and then any (Abdelfattah et al., ICLR 2021).

    Attributes:
        guide: what orders neighbours, among one another alone.
        random: how probable it is to take a random neighbour instead, which keeps a population diverse.

    Raises:
        UsageError: that is no probability.
    """

    guide: Guide
    random: float = 0.25

    def __post_init__(self) -> None:
        if not 0 <= self.random <= 1:
            raise UsageError(f"the probability of a random move must be from 0 to 1, got {self.random:g}")

    def choose(self, neighbours: Sequence[A], rng: np.random.Generator) -> A:
        """Choose one of some neighbours; a random one where none has a score."""
        if rng.random() >= self.random:
            best = top(self.guide.goodness(neighbours), 1)
            if len(best):
                return neighbours[int(best[0])]
        return neighbours[int(rng.integers(len(neighbours)))]
