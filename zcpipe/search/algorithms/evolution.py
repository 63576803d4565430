"""Aging evolution (Real et al., AAAI 2019): children of the fittest enter a population, the oldest leave it."""

from __future__ import annotations

import math
from collections import deque
from typing import ClassVar, Generic, TypeVar

from pydantic import Field

from zcpipe.errors import UsageError
from zcpipe.parzc.predictors.base import Parameters
from zcpipe.search.algorithms.base import Setting
from zcpipe.search.algorithms.random import opening
from zcpipe.search.candidates import random_neighbour
from zcpipe.spaces.base import Architecture

A = TypeVar("A", bound=Architecture)


class Evolution(Parameters):
    """Fill a pool, then let the most accurate of some random members have a child, which replaces the oldest member.

    A child is a neighbour of its parent: a random one, or the one that `Moves` chooses. Where none of a parent's
    neighbours is a candidate, as in tables of few architectures, a random candidate takes the child's place. A warm-up
    fills the pool with the best that it scored; random candidates fill what is left.

    Attributes:
        pool: members of the population.
        tournament: members of which the most accurate becomes a parent.
    """

    name: ClassVar[str] = "evolution"
    takes: ClassVar[frozenset[str]] = frozenset({"warmup", "moves"})
    paper: ClassVar[str] = "Real et al., Regularized Evolution for Image Classifier Architecture Search, AAAI 2019"

    pool: int = Field(default=64, ge=1, le=2**31)
    tournament: int = Field(default=10, ge=1)

    def start(self, setting: Setting[A]) -> _Evolution[A]:
        """Begin a search.

        Raises:
            UsageError: the tournament or what the warm-up keeps does not fit in the pool, or there are fewer candidates
                than the warm-up scores.
            DataError: no candidate, or none of those that the warm-up draws has a score.
        """
        if self.tournament > self.pool:
            raise UsageError(f"a tournament of {self.tournament} needs as large a pool, got {self.pool}")
        if setting.warmup is not None and setting.warmup.kept > self.pool:
            raise UsageError(
                f"the warm-up keeps {setting.warmup.kept} architectures, the pool holds {self.pool}: keep no more, or "
                f"make the pool larger (--set pool={setting.warmup.kept})"
            )
        return _Evolution(setting, self.pool, self.tournament)


class _Evolution(Generic[A]):
    def __init__(self, setting: Setting[A], pool: int, tournament: int) -> None:
        self._candidates, self._moves = setting.candidates, setting.moves
        self._rng = setting.rng("evolution")
        self._opening = opening(setting)
        self._pool: deque[tuple[A, float]] = deque(maxlen=pool)
        self._size, self._tournament = pool, tournament

    def ask(self) -> A | None:
        if len(self._pool) < self._size and (first := next(self._opening, None)) is not None:
            return first
        if not self._pool:
            return None
        return self._child(self._parent())

    def tell(self, arch: A, accuracy: float) -> None:
        self._pool.append((arch, -math.inf if math.isnan(accuracy) else accuracy))

    def _parent(self) -> A:
        members = self._rng.choice(len(self._pool), min(self._tournament, len(self._pool)), replace=False)
        return max((self._pool[member] for member in members.tolist()), key=lambda member: member[1])[0]

    def _child(self, parent: A) -> A | None:
        if self._moves is not None:
            child = self._moves.choose(parent, self._rng)
        else:
            child = random_neighbour(self._candidates, parent, self._rng)
        return next(self._opening, None) if child is None else child


METHODS = (Evolution,)
