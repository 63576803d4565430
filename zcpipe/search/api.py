"""`search`: the whole of it in one call."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from zcpipe.errors import UsageError, asking
from zcpipe.parzc.labels import require_seeds
from zcpipe.parzc.parallel import HERE, Pool, Progress
from zcpipe.search.accuracy import Accuracy, Evaluated, Trained, TruthAccuracy, require_known
from zcpipe.search.algorithms import Method, method
from zcpipe.search.budget import Budget
from zcpipe.search.candidates import Candidates, SpaceCandidates, TableCandidates
from zcpipe.search.costs import Costs
from zcpipe.search.features import Features
from zcpipe.search.journal import Journal, Record, opened
from zcpipe.search.limits import ANY_SIZE, Limits
from zcpipe.search.loop import Outcome, Search
from zcpipe.search.moves import RANDOM, Moves
from zcpipe.search.recorded import RecordedScores
from zcpipe.search.result import Found, Pick, incumbents
from zcpipe.search.scores import PREDICTED, Guide, Scores, TableScores, columns_of, require_space
from zcpipe.search.simulate import search_seeds
from zcpipe.search.warmup import WarmUp
from zcpipe.spaces import get_space
from zcpipe.spaces.asked import size_of
from zcpipe.spaces.base import Architecture, Size, Space
from zcpipe.table import Table

A = TypeVar("A", bound=Architecture)


@dataclass(frozen=True)
class Guidance:
    """What scores that need no training do for a search.

    Attributes:
        scored: how many random candidates a warm-up scores; 0 for none.
        kept: how many of them, the best, are trained first.
        warmup: the proxy or named aggregate that orders them.
        moves: the proxy or named aggregate that proposes evolution's moves, None for random ones.

    Raises:
        UsageError: a warm-up without a score, or a score without a warm-up.
    """

    scored: int = 0
    kept: int = 0
    warmup: str | None = None
    moves: str | None = None

    def __post_init__(self) -> None:
        if (self.scored > 0 or self.kept > 0) != (self.warmup is not None):
            raise UsageError(
                "a warm-up needs how many to score and keep, and by what; for example --warmup 3000:64 --warmup-by "
                "synflow"
            )

    def names(self) -> tuple[str, ...]:
        """Return the proxies and aggregates, each once."""
        return tuple(dict.fromkeys(name for name in (self.warmup, self.moves) if name is not None))


UNGUIDED = Guidance()


@runtime_checkable
class Identified(Protocol):
    """Scores that can say what decides them."""

    def identity(self) -> Mapping[str, Any]:
        """Return it as what JSON can hold."""
        ...


@runtime_checkable
class Keeping(Protocol):
    """Scores that record what they measure themselves."""

    def keep(self, journal: Journal) -> None:
        """Record in a journal from now on, and measure nothing again that it holds."""
        ...


def search(
    space: Space[A] | str,
    algorithm: Method | str,
    evaluate: Accuracy[A] | Callable[[A], float | Trained],
    budget: Budget | int,
    *,
    scores: Scores | Table | None = None,
    guidance: Guidance = UNGUIDED,
    limits: Limits = ANY_SIZE,
    features: Features | Table | None = None,
    dataset: str | None = None,
    known_only: bool = False,
    pass_over: bool = False,
    seeds: int = 1,
    seed: int = 0,
    out: Path | str | None = None,
    costs: Sequence[str] = ("macs",),
    latency: tuple[Path | str, str] | None = None,
    pool: Pool = HERE,
    progress: Progress | None = None,
) -> Found:
    """Search a space for its most accurate architecture.

    With the scores of a table its architectures are the candidates, otherwise those of the whole space. The same call
    again goes on where one was ended, and does nothing again that was measured.

    Args:
        space: a space or its name.
        algorithm: a name of `zcpipe.search.algorithms.methods`, or one of them with its parameters.
        evaluate: a function that trains an architecture and returns its accuracy (or `Trained`, with what is to be
            reported), of which higher is better; or a `TruthAccuracy`.
        budget: how many models to train, of which those of one key count once; or a `Budget`.
        scores: of candidates that cost no training.
        guidance: what the scores do.
        limits: of size.
        features: of the candidates, or a table that has them, for an algorithm that learns from features; by default
            those of the table of scores.
        dataset: for which sizes are counted; by default that of the table, or the space's first.
        known_only: leave candidates out that the truth does not know.
        pass_over: go on where a training fails: it counts as a trained model that is worse than all others.
        seeds: how many searches.
        seed: of the first; the others follow it.
        out: a directory for what was measured, `CURVES`, `PICKS` and `FRONT`; None to keep nothing.
        costs: what the front of each seed holds the target against: some of `zcpipe.search.costs.COSTS`.
        latency: a Parquet file of latencies, which has architectures in a column ``arch``, and its column. Models that
            it does not know are not on the front.
        pool: where to search under several seeds at once; for a truth file and a table's scores only.
        progress: told (models trained so far, models in all).

    Returns:
        Curves, picks and fronts.

    Raises:
        UsageError: something means nothing here: a name, a budget beyond the candidates, a pool for what is measured.
        DataError: candidates without a truth, limits that nothing meets, scores that all failed, or damaged latencies.
        TrainingError: ``evaluate`` raised; what came before is in ``out``, and the same call tries again.
        IdentityMismatch: ``out`` holds another search.
    """
    require_seeds(seeds, seed)
    against = Costs.of(costs, latency)
    searched: Space[Any] = get_space(space) if isinstance(space, str) else space
    chosen = method(algorithm) if isinstance(algorithm, str) else algorithm
    if features is None and isinstance(scores, Table) and "features" in chosen.takes:
        features = scores
    if isinstance(features, Table):
        features = Features.of(features)
    dataset = dataset or (scores.identity["dataset"] if isinstance(scores, Table) else next(iter(searched.datasets)))
    if isinstance(scores, Table):
        scores = read_scores(scores, searched.name, guidance)
    accuracy: Accuracy[A] = Evaluated(evaluate) if callable(evaluate) else evaluate
    spent = budget if isinstance(budget, Budget) else Budget(budget)
    looked_up = isinstance(accuracy, TruthAccuracy) and (scores is None or isinstance(scores, TableScores))
    if not looked_up and pool != HERE:
        raise UsageError(
            "workers and nodes look up accuracies and scores; what is measured is measured in this process: leave the "
            "pool out"
        )
    candidates = _candidates(searched, scores, accuracy, limits, dataset, known_only)
    identity = {
        "kind": "search",
        "space": searched.name,
        "dataset": dataset,
        "algorithm": chosen.name,
        "parameters": chosen.model_dump(),
        "guidance": {**asdict(guidance), "random_moves": RANDOM},
        "limits": asdict(limits),
        "target": accuracy.target,
        "report": accuracy.report,
        "direction": accuracy.direction,
        "truth": accuracy.digest(),
        "scores": _identity(scores, guidance),
        "features": None if features is None else features.identity(),
        "known_only": known_only,
    }

    def made(by: Scores | None) -> Search[A]:
        return Search(chosen, candidates, accuracy, spent, *_guides(by, guidance, candidates), pass_over, features)

    made(scores)  # what means nothing is refused before a directory is made
    directory = None if out is None else Path(out)
    with opened(directory, identity) as journal:
        measured = scores is not None and not isinstance(scores, TableScores)
        by = scores
        if isinstance(scores, Keeping):
            scores.keep(journal)
        elif measured and scores is not None:
            by = RecordedScores(scores, journal)
        one = made(by)
        outcomes = search_seeds(one, range(seed, seed + seeds), journal, pool, progress)
        sizes = _sizes(outcomes, searched, dataset)
        picks = [_pick(outcome, accuracy.direction, sizes) for outcome in outcomes]
        reported = any(not math.isnan(trial.report) for outcome in outcomes for trial in outcome.trials)
        found = Found(
            chosen.name,
            accuracy.target,
            accuracy.report if reported else None,
            accuracy.direction,
            spent.trained,
            tuple(outcomes),
            tuple(pick for pick in picks if pick is not None),
            sizes,
            against,
        )
        if directory is not None:
            found.write(directory)
    return found


def read_scores(table: Table, space: str, guidance: Guidance, predicted: Path | None = None) -> TableScores:
    """Read from a table what guides a search.

    Args:
        table: of architectures.
        space: name of the space that is searched.
        guidance: what it guides.
        predicted: a file that ``zcpipe parzc predict`` made for this table; its means are a column (`PREDICTED`).

    Raises:
        UsageError: the table is of another space, lacks a column, or nothing is guided by what is predicted.
        DataError: a file is damaged, or knows none of the table's architectures.
    """
    require_space(table, space)
    held = {column.name for column in table.columns if column.direction != "none"}
    names = [column for name in guidance.names() for column in ((name,) if name in held else columns_of(name))]
    # Of what is not there `Guide` says what it is for.
    return TableScores.read(table, [name for name in names if name in held or name == PREDICTED], predicted)


def _guides(
    scores: Scores | None, guidance: Guidance, candidates: Candidates[A]
) -> tuple[WarmUp | None, Moves[A] | None]:
    if not guidance.names():
        return None, None
    if scores is None:
        raise UsageError("a warm-up and moves need scores; name a table of them")
    warmup = None
    if guidance.warmup is not None:
        warmup = WarmUp(guidance.scored, guidance.kept, Guide(guidance.warmup, scores))
    return warmup, None if guidance.moves is None else Moves(Guide(guidance.moves, scores), candidates)


def _candidates(
    space: Space[A],
    scores: Scores | None,
    accuracy: Accuracy[A],
    limits: Limits,
    dataset: str,
    known_only: bool,
) -> Candidates[A]:
    if not isinstance(scores, TableScores):
        if known_only:
            raise UsageError("candidates of a whole space cannot be left out; known_only is for those of a table")
        return SpaceCandidates(space, dataset, limits)
    if not isinstance(accuracy, TruthAccuracy):
        if known_only:
            raise UsageError("nothing is known before it is measured; known_only is for accuracies of a truth file")
        return TableCandidates(space, scores, dataset, limits)
    if known_only:
        return TableCandidates(space, scores, dataset, limits, accuracy.known(scores.texts))
    candidates = TableCandidates(space, scores, dataset, limits)
    require_known(accuracy, candidates.texts)
    return candidates


def _identity(scores: Scores | None, guidance: Guidance) -> Record | str:
    if isinstance(scores, TableScores):
        names = {column for name in guidance.names() for column in Guide(name, scores).columns}
        return scores.digest(names)
    return dict(scores.identity()) if isinstance(scores, Identified) else ""


def _sizes(outcomes: Sequence[Outcome], space: Space[A], dataset: str) -> dict[str, Size]:
    """Return the sizes of all models that were trained with success, by their texts."""
    texts = dict.fromkeys(trial.arch for outcome in outcomes for trial in outcome.trials if not trial.failure)
    sizes = {}
    for text in texts:
        with asking(space.name, f"the size of {text}"):
            sizes[text] = size_of(space, space.parse(text), dataset)
    return sizes


def _pick(outcome: Outcome, direction: str, sizes: Mapping[str, Size]) -> Pick | None:
    best = incumbents(outcome.trials, direction)
    if not best or best[-1] is None:
        return None
    chosen = best[-1]
    return Pick(
        outcome.seed,
        chosen.arch,
        chosen.key,
        chosen.accuracy,
        chosen.report,
        1 + int(np.argmax([leader is chosen for leader in best])),
        len(outcome.trials),
        outcome.ended,
        sizes[chosen.arch].params,
        sizes[chosen.arch].macs,
    )
