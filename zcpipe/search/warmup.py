"""Zero-cost warm-up: what a search begins with is the best of many by a score that needs no training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from zcpipe.errors import DataError, UsageError
from zcpipe.rank import top
from zcpipe.search.candidates import Candidates, drawn
from zcpipe.search.scores import Guide
from zcpipe.spaces.base import Architecture

A = TypeVar("A", bound=Architecture)


@dataclass(frozen=True)
class WarmUp:
    """Score so many random candidates, and train the best of them first (Abdelfattah et al., ICLR 2021).

    Attributes:
        scored: how many.
        kept: how many are trained first, best first.
        guide: what orders them, among one another alone.

    Raises:
        UsageError: nothing is kept, or more than is scored.
    """

    scored: int
    kept: int
    guide: Guide

    def __post_init__(self) -> None:
        if not 1 <= self.kept <= self.scored:
            raise UsageError(
                f"a warm-up keeps some of those that it scores: got {self.kept} of {self.scored}; "
                "for example --warmup 3000:64"
            )

    def draw(self, candidates: Candidates[A], seed: int) -> Sequence[A]:
        """Return the random candidates that are scored, the first of `Candidates.draws`."""
        return drawn(candidates, seed, self.scored)

    def best(self, archs: Sequence[A], candidates: Candidates[A]) -> list[A]:
        """Return the best, one of each key, best first; fewer than asked where scores failed or keys are few.

        Raises:
            DataError: no architecture has a score.
        """
        goodness = self.guide.goodness(archs)
        if np.isnan(goodness).all():
            raise DataError(
                f"{self.guide.name} has no score for any of {len(archs)} architectures; {self.guide.reason(archs)}"
            )
        by_key: dict[str, A] = {}
        for position in top(goodness, len(archs)).tolist():
            by_key.setdefault(candidates.key(archs[position]), archs[position])
            if len(by_key) == self.kept:
                break
        return list(by_key.values())
