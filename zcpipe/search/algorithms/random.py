"""Random search: train random candidates, or after a warm-up the best by a score first."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import ClassVar, Generic, TypeVar

from zcpipe.parzc.predictors.base import Parameters
from zcpipe.search.algorithms.base import Setting
from zcpipe.spaces.base import Architecture

A = TypeVar("A", bound=Architecture)


class RandomSearch(Parameters):
    """Train candidates in a random order.

    With a warm-up that keeps N of M the N best of the first M draws are trained first, best first, as in the published
    notebook of Abdelfattah et al. (ICLR 2021), which keeps all of them; then the draws go on behind those M, and where
    they end the rest of those M follow as they were drawn.
    """

    name: ClassVar[str] = "random"
    takes: ClassVar[frozenset[str]] = frozenset({"warmup"})
    paper: ClassVar[str] = "Li & Talwalkar, Random Search and Reproducibility for Neural Architecture Search, UAI 2019"

    def start(self, setting: Setting[A]) -> _Random[A]:
        """Begin a search.

        Raises:
            UsageError: fewer candidates than the warm-up scores.
            DataError: no candidate, or none of those that the warm-up draws has a score.
        """
        return _Random(setting)


class _Random(Generic[A]):
    def __init__(self, setting: Setting[A]) -> None:
        self._order = opening(setting)

    def ask(self) -> A | None:
        return next(self._order, None)

    def tell(self, arch: A, accuracy: float) -> None:
        """Learn nothing."""


def opening(setting: Setting[A]) -> Iterator[A]:
    """Return what a search begins with: the warm-up's best, if there is one, then all other candidates at random."""
    draws = setting.candidates.draws(setting.seed)
    if setting.warmup is None:
        yield from draws
        return
    scored = setting.warmup.draw(setting.candidates, setting.seed)
    best = setting.warmup.best(scored, setting.candidates)
    yield from best
    yield from islice(draws, len(scored), None)
    kept = set(best)
    yield from (arch for arch in scored if arch not in kept)


METHODS = (RandomSearch,)
