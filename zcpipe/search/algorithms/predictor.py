"""Predictor-guided search (after BRP-NAS, Dudziak et al., NeurIPS 2020): train what a predictor ranks highest."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from itertools import islice
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from zcpipe.errors import DataError, UsageError
from zcpipe.parzc.predictors import Context, Fitted, Predictor, predictor
from zcpipe.parzc.predictors.base import Parameters, columns, part_of
from zcpipe.parzc.predictors.mabn import Mabn, PublishedMabn
from zcpipe.parzc.predictors.parzc import Parzc
from zcpipe.parzc.training import FEWEST
from zcpipe.rank import ranks, top
from zcpipe.run.rows import one_thread
from zcpipe.search.algorithms.base import Setting
from zcpipe.search.algorithms.random import opening
from zcpipe.search.features import Features
from zcpipe.search.warmup import WarmUp
from zcpipe.spaces.base import Architecture

A = TypeVar("A", bound=Architecture)


class PredictorSearch(Parameters):
    """Train models in rounds; before each but the first, fit a predictor to all models that are trained so far.

    Half a round are the candidates that are predicted best. The other half are drawn from the best 1/2^i of all
    candidates, i being the number of predictors fitted so far, or from as many as a round takes where that is more.
    Candidates are those that have features, one of each key: the first in the search's random order.

    The first round is random. A warm-up that keeps N of M begins with those N, and random candidates fill the round if
    it is larger. Networks may moreover be pre-trained on the ranking of some of those M by the score, as in Abdelfattah
    et al. (ICLR 2021): the networks of each round start from their weights.

    Attributes:
        predictor: a name of `zcpipe.parzc.predictors.PREDICTORS`.
        parameters: its parameters, as far as they differ from its defaults.
        features: what it sees: "all", "statistics", "proxies" or "both" (`zcpipe.parzc.predictors.base.PARTS`).
        round: models of a round.
        pretrain: of how many of those that the warm-up scores networks learn the ranking first, 10 at least; 0 for
            none.
    """

    name: ClassVar[str] = "predictor"
    takes: ClassVar[frozenset[str]] = frozenset({"warmup", "features"})
    paper: ClassVar[str] = "Dudziak et al., BRP-NAS: Prediction-based NAS using GCNs, NeurIPS 2020"

    predictor: str = "boosted-trees"
    parameters: Mapping[str, Any] = Field(default_factory=dict)
    features: Literal["all", "statistics", "proxies", "both"] = "all"
    round: int = Field(default=20, ge=1)
    pretrain: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _learns(self) -> Self:
        learner = self.learner()
        if self.pretrain and not isinstance(learner, Mabn | PublishedMabn | Parzc):
            raise UsageError(
                f"{self.predictor} learns in one go and cannot be pre-trained; leave pretrain out, or learn by mabn"
            )
        if 0 < self.pretrain < FEWEST:
            raise UsageError(
                f"a pretrain of {self.pretrain} is too few to learn a ranking from; give at least {FEWEST}, or leave "
                "pretrain out"
            )
        return self

    def learner(self) -> Predictor:
        """Make the predictor.

        Raises:
            UsageError: there is none of this name, or it has no such parameter.
        """
        return predictor(self.predictor, self.parameters)

    def start(self, setting: Setting[A]) -> _PredictorSearch[A]:
        """Begin a search.

        Raises:
            UsageError: there are no features or no table to choose from, the warm-up does not fit, or a member of the
                predictor does not.
            DataError: no candidate, none of those that the warm-up draws has a score, or too few to pre-train networks.
        """
        if setting.features is None:
            raise UsageError(f"{self.name} learns from features of the candidates; name the table that has them")
        setting.features.require(setting.candidates.space.name)
        own = part_of(setting.features.coordinates, self.features)
        if not len(own):
            raise UsageError(f"the table has no {self.features} to learn from; give another part of the features")
        if setting.candidates.models() is None:
            raise UsageError(
                f"{self.name} predicts all candidates, which {setting.candidates.space.name} has no end of; search the "
                "architectures of a table"
            )
        if self.pretrain and setting.warmup is None:
            raise UsageError("networks are pre-trained on the score of a warm-up; give one, or leave pretrain out")
        if setting.warmup is not None and self.pretrain > setting.warmup.scored:
            raise UsageError(
                f"networks are pre-trained on {self.pretrain} of those that the warm-up scores, which are only "
                f"{setting.warmup.scored}"
            )
        coordinates = tuple(setting.features.coordinates[at] for at in own)
        context = Context(coordinates, columns(setting.features.x, own))
        learner = self.learner()
        # Which of its members learn depends on the features; all are looked at before anything is trained.
        if isinstance(learner, Parzc) and not learner.has_network(context) and self.pretrain:
            raise UsageError(
                f"{self.predictor} has no network among its members that see the features, and cannot be pre-trained; "
                "leave pretrain out, or learn by mabn"
            )
        return _PredictorSearch(setting, setting.features, context, self)


class _PredictorSearch(Generic[A]):
    def __init__(self, setting: Setting[A], features: Features, context: Context, method: PredictorSearch) -> None:
        self._setting, self._features, self._method = setting, features, method
        self._learner = method.learner()
        self._x = context.population
        self._context = context
        self._rng = setting.rng("predictor")
        self._opening = (arch for arch in opening(setting) if features.row(arch) is not None)
        self._queue: deque[A] = deque()
        self._pool: dict[str, tuple[A, int]] = {}  # by key, the architecture and its row, in the order of the draws
        self._trained: dict[str, tuple[int, float]] = {}  # by key, the row and what it is learnt as
        self._fits = 0
        self._pretrained: Fitted | None = None
        self._lesson = None if setting.warmup is None or not method.pretrain else self._ranked(setting.warmup)

    def ask(self) -> A | None:
        if not self._queue:
            self._plan()
        return self._queue.popleft() if self._queue else None

    def tell(self, arch: A, accuracy: float) -> None:
        row = self._features.row(arch)
        if row is not None:
            self._trained.setdefault(self._setting.candidates.key(arch), (row, accuracy))

    def _plan(self) -> None:
        """Choose what a round trains."""
        known = [trained for trained in self._trained.values() if not math.isnan(trained[1])]
        targets = np.array([accuracy for _, accuracy in known])
        if not self._trained or len(known) < FEWEST or np.all(targets == targets[0]):
            self._queue.extend(self._random())
            return
        if not self._pool:
            self._fill()
        left = [one for key, one in self._pool.items() if key not in self._trained]
        if not left:
            return
        with one_thread():  # the process may have others when the search goes on
            fitted = self._fit(np.array([row for row, _ in known]), targets)
            predicted = fitted.predict(self._x[[row for _, row in left]]).mean
        self._queue.extend(left[place][0] for place in self._choose(predicted))

    def _random(self) -> list[A]:
        """Return what the warm-up or chance begins with, and random ones where that is not enough to learn from."""
        kept = 0 if self._trained or self._setting.warmup is None else self._setting.warmup.kept
        found: dict[str, A] = {}
        for arch in self._opening:
            key = self._setting.candidates.key(arch)
            if key not in self._trained:
                found.setdefault(key, arch)
            if len(found) == max(kept, self._method.round):
                break
        return list(found.values())

    def _fill(self) -> None:
        """List the candidates that are predicted."""
        candidates = self._setting.candidates
        for arch in candidates.draws(self._setting.seed):
            row = self._features.row(arch)
            if row is not None:
                self._pool.setdefault(candidates.key(arch), (arch, row))

    def _fit(self, rows: NDArray[np.int64], targets: NDArray[np.float64]) -> Fitted:
        """Fit a predictor of its own seed to what is trained."""
        context = self._context
        if self._lesson is not None:
            if self._pretrained is None:
                of_lesson, ranking = self._lesson
                seed = int(self._rng.integers(2**31))
                self._pretrained = self._learner.fit(self._x[of_lesson], ranking, context, seed)
            context = Context(context.coordinates, context.population, self._pretrained)
        self._fits += 1
        return self._learner.fit(self._x[rows], targets, context, int(self._rng.integers(2**31)))

    def _ranked(self, warmup: WarmUp) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return what networks are pre-trained on: rows of random candidates that the warm-up scores, and their ranks.

        Raises:
            DataError: too few of them have a score and features.
        """
        scored = islice(warmup.draw(self._setting.candidates, self._setting.seed), self._method.pretrain)
        archs = [arch for arch in scored if self._features.row(arch) is not None]
        place = ranks(warmup.guide.goodness(archs))
        rows = np.array([self._features.row(arch) for arch in archs], np.int64)
        there = ~np.isnan(place)
        if there.sum() < FEWEST:
            raise DataError(
                f"of the first {self._method.pretrain} that the warm-up scores {there.sum()} have a score and "
                f"features, and networks are pre-trained on at least {FEWEST}; give a larger pretrain, or leave it out"
            )
        return rows[there], place[there]

    def _choose(self, predicted: NDArray[np.float64]) -> list[int]:
        """Choose a round by predictions of the candidates that are left, best first."""
        order = top(predicted, len(predicted)).tolist()
        size = min(self._method.round, len(order))
        best = -(-size // 2)
        among = order[best : max(len(self._pool) >> self._fits, size)]
        drawn = self._rng.choice(len(among), size - best, replace=False) if size > best else ()
        return [*order[:best], *(among[place] for place in sorted(int(place) for place in drawn))]


METHODS = (PredictorSearch,)
