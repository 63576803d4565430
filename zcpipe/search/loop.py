"""One search under one seed: the algorithm asks, models are trained within the budget, the algorithm is told."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar

from zcpipe.errors import UsageError
from zcpipe.search.accuracy import Accuracy, Trained, TrainingError
from zcpipe.search.algorithms.base import Method, Setting
from zcpipe.search.budget import Budget
from zcpipe.search.candidates import Candidates
from zcpipe.search.features import Features
from zcpipe.search.journal import Record
from zcpipe.search.moves import Moves
from zcpipe.search.warmup import WarmUp
from zcpipe.spaces.base import Architecture

A = TypeVar("A", bound=Architecture)

REPEATS = 1000
"""Architectures of trained keys that an algorithm may ask for in a row before the search ends: it goes in circles."""


@dataclass(frozen=True)
class Search(Generic[A]):
    """All that decides what a search finds, but for its seed and what is measured.

    Attributes:
        method: the algorithm.
        candidates: what it chooses from.
        accuracy: where accuracies come from.
        budget: how much it may spend.
        warmup: how it begins.
        moves: how it chooses among neighbours.
        pass_over: go on where a training fails: it counts as a trained model that is worse than all others.
        features: what it learns from.

    Raises:
        UsageError: the algorithm does not take the warm-up or the moves, has or lacks features that it cannot or must
            have, the budget is beyond the candidates, or is in seconds that nobody knows.
    """

    method: Method
    candidates: Candidates[A]
    accuracy: Accuracy[A]
    budget: Budget
    warmup: WarmUp | None = None
    moves: Moves[A] | None = None
    pass_over: bool = False
    features: Features | None = None

    def __post_init__(self) -> None:
        for name in ("warmup", "moves"):
            if getattr(self, name) is not None and name not in self.method.takes:
                raise UsageError(f"{self.method.name} has no {name}; leave --{name} out, or search by evolution")
        if (self.features is not None) != ("features" in self.method.takes):
            has = "learns nothing from" if self.features is not None else "learns from"
            raise UsageError(f"{self.method.name} {has} features of a table's architectures")
        models = self.candidates.models()
        if models is not None and self.budget.trained > models:
            raise UsageError(
                f"a budget of {self.budget.trained} trained models is beyond the candidates, which are {models} "
                "different models; architectures of one key count once"
            )
        if self.budget.seconds is not None and not self.accuracy.timed:
            raise UsageError("nobody knows how many seconds a training takes; name the truth's column of them")


@dataclass(frozen=True)
class Trial:
    """A model that was trained: its architecture and key, what came of it, and why nothing did if it failed."""

    arch: str
    key: str
    accuracy: float
    report: float = math.nan
    seconds: float = 0.0
    failure: str = ""

    def record(self, seed: int) -> Record:
        """Return what the journal holds of it."""
        return {"kind": "trained", "seed": seed, **asdict(self)}


@dataclass(frozen=True)
class Outcome:
    """What one search came to.

    Attributes:
        seed: of the search.
        trials: in the order of training.
        ended: why it ended: of the "budget", for its "seconds", because "nothing" was left to ask for, or because of
            "repeats": it asked for what is trained, again and again.
    """

    seed: int
    trials: tuple[Trial, ...]
    ended: str


def run(
    search: Search[A],
    seed: int,
    known: Mapping[str, Trial] | None = None,
    record: Callable[[Trial], None] = lambda trial: None,
    progress: Callable[[int], None] = lambda trained: None,
) -> Outcome:
    """Search once.

    Args:
        search: what, among what, how.
        seed: of all that is drawn.
        known: trials of earlier processes by the text of their architecture: they are not trained again.
        record: called with each trial before anything is made of it.
        progress: told how many models are trained.

    Raises:
        TrainingError: a training failed and is not to be passed over; it is recorded.
        ZcpipeError: what the algorithm raises.
    """
    setting = Setting(search.candidates, seed, search.budget.trained, search.warmup, search.moves, search.features)
    algorithm = search.method.start(setting)
    sign = 1 if search.accuracy.direction == "higher" else -1
    trials: list[Trial] = []
    by_key: dict[str, Trial] = {}
    seconds = 0.0
    repeats = 0
    while search.budget.allows(len(trials), seconds):
        arch = algorithm.ask()
        if arch is None:
            return Outcome(seed, tuple(trials), "nothing")
        key = search.candidates.key(arch)
        trial = by_key.get(key)
        if trial is None:
            trial = (known or {}).get(str(arch))
            if trial is None or (trial.failure and not search.pass_over):
                trial = train(search, arch, record)
            trials.append(trial)
            by_key[key] = trial
            seconds += trial.seconds
            repeats = 0
            progress(len(trials))
        else:
            repeats += 1
            if repeats == REPEATS:
                return Outcome(seed, tuple(trials), "repeats")
        algorithm.tell(arch, sign * trial.accuracy)
    return Outcome(seed, tuple(trials), "budget" if len(trials) == search.budget.trained else "seconds")


def train(search: Search[A], arch: A, record: Callable[[Trial], None] = lambda trial: None) -> Trial:
    """Train an architecture.

    Raises:
        TrainingError: it failed, and is not to be passed over; it is recorded.
    """
    text, key = str(arch), search.candidates.key(arch)
    try:
        found: Trained = search.accuracy.train(arch)
    except TrainingError as error:
        trial = Trial(text, key, math.nan, seconds=error.seconds, failure=str(error))
        record(trial)
        if search.pass_over:
            return trial
        raise
    trial = Trial(text, key, found.accuracy, found.report, found.seconds or 0.0)
    record(trial)
    return trial


def trial_of(record: Record) -> Trial:
    """Return the trial that a journal's record holds."""
    fields: dict[str, Any] = {name: value for name, value in record.items() if name not in ("kind", "seed")}
    return Trial(**fields)
