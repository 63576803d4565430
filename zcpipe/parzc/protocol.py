"""How well predictors rank architectures that they were not trained on, by a protocol without leaks.

A predictor sees n labelled architectures: their *training* target, such as the validation accuracy, and everybody's
features. Encoders and aggregates are made over all architectures of the table, labels apart (they are transductive).
It is tested by how it ranks the others by the target, such as the test accuracy. Two splits are told:

- "others": all architectures whose key is none of those trained on, for architectures with one key are one network;
- "published": all architectures, those trained on among them, as ParZC's code does.

All methods of one number of samples and seed have the same rows to train and to test on. What needs no training ranks
those of them that it has values of; the best of it is chosen among what ranks them all.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from zcpipe.errors import UsageError, unknown_name
from zcpipe.parzc.baselines import LEARNERS, TREES, training_free
from zcpipe.parzc.features import Coordinate, Encoder
from zcpipe.parzc.labels import Floats, Labels, Positions, Split, draw, keys_of, parse_samples, require_seeds, split
from zcpipe.parzc.parallel import HERE, Pool, Progress, each
from zcpipe.parzc.predictors import PREDICTORS, Context, Fitted, Prediction, Predictor, predictor
from zcpipe.parzc.predictors.base import PARTS, Vectors, columns, part_of
from zcpipe.parzc.spec import FeatureSpec
from zcpipe.rank import correlate
from zcpipe.table import Table

SPLITS = ("others", "published")
_AT_ONCE = 4096  # rows that are predicted together
_INTERVALS = (0.9945, 1.9600)  # deviations on either side of the mean that hold 68 % and 95 %


@dataclass(frozen=True)
class Method:
    """A predictor and the features it sees.

    Attributes:
        name: of the predictor.
        features: "all" that the spec asks for, its "statistics", its "proxies" (counts among them), or "both".
        parameters: what differs from the predictor's defaults, as JSON.
    """

    name: str
    features: str = "all"
    parameters: str = "{}"

    def predictor(self) -> Predictor:
        """Make the predictor.

        Raises:
            UsageError: it has no such parameters.
        """
        return predictor(self.name, json.loads(self.parameters))


@dataclass(frozen=True)
class Measured:
    """How one method ranked under one seed: correlations with the target over the ``n`` rows that it has values of.

    The coverages say which share of the rows has its *training* target, which is what was learnt, within the central
    interval of 68 % or 95 % of a normal distribution with the predicted mean and deviation; NaN without deviations.
    All are NaN where the targets that were drawn, to learn or to test, are all equal.
    """

    seed: int
    n: int
    kendall: float
    spearman: float
    coverage_68: float
    coverage_95: float


@dataclass(frozen=True)
class Row:
    """How a method ranks with one number of samples.

    Attributes:
        method: a predictor, or a column, aggregate or training-free sum.
        features: what the predictor sees; empty for what needs no training.
        samples: how many architectures it was trained on.
        split: "others" or "published".
        n_test: how many architectures it ranked, the fewest over the seeds.
        kendall: the mean over the seeds, of raw values and signed, as `zcpipe correlate`; NaN where it orders nothing
            under a seed.
        kendall_error: standard error of that mean; NaN of one seed.
        spearman: the mean over the seeds.
        spearman_error: standard error of that mean.
        coverage_68: the mean over the seeds of `Measured.coverage_68`.
        coverage_95: that of `Measured.coverage_95`.
        best_free: whether it is the best of all that need no training, by the mean and its direction. Only what ranks
            all architectures that learners are tested on takes part, or where nothing does, what ranks the most.
        compared_with: for learners, the best of the trees that are baselines, by the mean.
        difference: the mean over the seeds of Kendall's tau less that of ``compared_with`` under the same seed, or the
            contrary where the target is better higher and what is learnt lower, or vice versa: above 0 is better.
        difference_error: standard error of that mean.
        seeds: of each seed.
    """

    method: str
    features: str
    samples: int
    split: str
    n_test: int
    kendall: float
    kendall_error: float
    spearman: float
    spearman_error: float
    coverage_68: float
    coverage_95: float
    best_free: bool
    compared_with: str
    difference: float
    difference_error: float
    seeds: tuple[Measured, ...]


def parse_methods(names: Sequence[str], spec: FeatureSpec) -> list[Method]:
    """Read what is to be evaluated.

    Args:
        names: of predictors, with ``:statistics``, ``:proxies`` or ``:both`` behind where they shall not see all
            features; ``baselines`` stands for extra trees, boosted trees and ridge on statistics, proxies and both.
        spec: what the features are made of; baselines whose features it lacks are left out.

    Raises:
        UsageError: a name means nothing, or the spec lacks its features.
    """
    parts = {"statistics": bool(spec.statistics), "proxies": bool(spec.proxies)}
    held = [name for name in ("proxies", "statistics") if parts[name]] + ["both"] * all(parts.values())
    found: dict[Method, None] = {}
    for text in names:
        name, _, features = text.strip().partition(":")
        if name == "baselines" and not features:
            found |= {Method(learner, own): None for learner in LEARNERS for own in held}
            continue
        if name not in PREDICTORS:
            raise unknown_name("method", name, [*PREDICTORS, "baselines"])
        if features and features not in held:
            raise UsageError(f"{text}: the features have no part {features!r}; there are {', '.join(held)}")
        found[Method(name, features or "all")] = None
    return list(found)


def evaluate(
    table: Table,
    target: Labels,
    train_target: Labels,
    spec: FeatureSpec,
    methods: Sequence[Method],
    samples: Sequence[str],
    seeds: int = 10,
    *,
    pool: Pool = HERE,
    progress: Progress | None = None,
) -> list[Row]:
    """Evaluate methods, and everything that needs no training, on architectures with other keys.

    Args:
        table: the architectures.
        target: what the ranking is tested by.
        train_target: what is learnt.
        spec: what the features are made of; architectures that lack one take no part.
        methods: what learns.
        samples: numbers of labelled architectures, as counts or shares ("20%").
        seeds: how many times, each time with another draw and another seed of what is random.
        pool: where to compute; the results are the same.
        progress: told how many trainings are done.

    Returns:
        For each number of samples and split the methods in their order, then what needs no training.

    Raises:
        UsageError: as `Encoder.fit`; or numbers that are none.
        DataError: too few architectures have labels and features, or a target is constant.
    """
    require_seeds(seeds)
    encoder, encoded = Encoder.fit_encode(table, spec)
    train_target.require(encoded.usable)
    rows = target.require(encoded.usable & ~np.isnan(train_target.values))
    counts = list(dict.fromkeys(parse_samples(text, len(rows)) for text in samples))
    for count in counts:
        draw(len(rows), count, 0)
    scores, directions = training_free(table)
    study = _Study(
        encoded.population,
        np.flatnonzero(np.isin(np.flatnonzero(encoded.usable), rows)),
        encoder.coordinates,
        tuple(part_of(encoder.coordinates, name) for name in PARTS),
        keys_of(table)[rows],
        train_target.values[rows],
        target.values[rows],
        {name: values[rows] for name, values in scores.items()},
        target.target,
    )
    tasks = [_Task(count, seed, None) for count in counts for seed in range(seeds)] + [_ON_ALL]
    # The longest first, so that no process waits long for the last.
    tasks = [_Task(count, seed, m) for count in counts for m in methods for seed in range(seeds)][::-1] + tasks
    measured = dict(zip(tasks, each(_measure, study, tasks, pool, progress), strict=True))
    return [
        row
        for count in counts
        for which in SPLITS
        for row in _rows(measured, count, which, methods, directions, target, train_target, seeds)
    ]


@dataclass(frozen=True)
class _Study:
    """What all trainings share; the rows of ``keys`` and what is after it are those that have labels."""

    population: Vectors  # of all usable rows
    labelled: Positions  # which of those have labels
    coordinates: tuple[Coordinate, ...]
    parts: tuple[NDArray[np.int64], ...]  # the coordinates of each of `PARTS`
    keys: NDArray[np.int64]
    train_target: Floats
    target: Floats
    scores: Mapping[str, Floats]
    name: str


@dataclass(frozen=True)
class _Task:
    samples: int
    seed: int
    method: Method | None  # None for what needs no training


_ON_ALL = _Task(0, 0, None)  # what needs no training, on the published split, which is always the same


def _measure(study: _Study, task: _Task) -> dict[tuple[str, str], Measured]:  # by name and split
    everything = np.arange(len(study.keys))
    drawn = Split(everything, everything) if task == _ON_ALL else split(study.keys, task.samples, task.seed)
    tests = {"others": drawn.test, "published": everything}
    found: Mapping[str, Prediction]
    if task.method is None:
        del tests["others" if task == _ON_ALL else "published"]
        found = {name: Prediction(values, np.full(len(values), np.nan)) for name, values in study.scores.items()}
    else:
        own = study.parts[PARTS.index(task.method.features)]
        population = columns(study.population, own)
        coordinates = tuple(study.coordinates[at] for at in own)
        context = Context(coordinates, population, keys=study.keys[drawn.train])
        learnt = study.train_target[drawn.train]
        if np.all(learnt == learnt[0]):
            none = np.full(len(study.keys), np.nan)
            found = {task.method.name: Prediction(none, none)}
        else:
            fitted = task.method.predictor().fit(population[study.labelled[drawn.train]], learnt, context, task.seed)
            found = {task.method.name: _predicted(fitted, population, study.labelled)}
    return {
        (name, which): _measured(study, prediction, rows, task.seed)
        for name, prediction in found.items()
        for which, rows in tests.items()
    }


def _predicted(fitted: Fitted, population: Vectors, rows: Positions) -> Prediction:
    """Predict some rows of a population, a few at a time, so that no copy of all is made."""
    pieces = [fitted.predict(population[rows[at : at + _AT_ONCE]]) for at in range(0, len(rows), _AT_ONCE)]
    return Prediction(np.concatenate([one.mean for one in pieces]), np.concatenate([one.std for one in pieces]))


def _measured(study: _Study, prediction: Prediction, rows: Positions, seed: int) -> Measured:
    target = study.target[rows]
    if np.all(target == target[0]):  # some draw of few labels leaves such
        return Measured(seed, int(np.count_nonzero(~np.isnan(prediction.mean[rows]))), *[float("nan")] * 4)
    found = correlate(prediction.mean[rows], target, study.name)
    beyond = np.abs(study.train_target[rows] - prediction.mean[rows])
    std = prediction.std[rows]
    covered = [float("nan") if np.isnan(std).any() else float(np.mean(beyond <= z * std)) for z in _INTERVALS]
    return Measured(seed, found.n, found.kendall, found.spearman, *covered)


def _rows(
    measured: Mapping[_Task, Mapping[tuple[str, str], Measured]],
    samples: int,
    which: str,
    methods: Sequence[Method],
    directions: Mapping[str, str],
    target: Labels,
    train_target: Labels,
    seeds: int,
) -> list[Row]:
    """Sum up one number of samples and one split."""
    learnt = []
    for method in methods:
        found = [measured[_Task(samples, seed, method)][method.name, which] for seed in range(seeds)]
        learnt.append(_row(method.name, method.features, samples, which, found))
    free = [
        _row(name, "", samples, which, [_free(measured, samples, seed, name, which) for seed in range(seeds)])
        for name in directions
    ]
    signs = {name: 1 if of_name == target.direction else -1 for name, of_name in directions.items()}
    # What ranks fewer rows may have easier ones than the learners that it is held against.
    most = max(map(_ranked, free))
    whole = [row for row in free if _ranked(row) == most]
    best = max(whole, key=lambda row: np.nan_to_num(row.kendall * signs[row.method], nan=-2.0))
    trees = [row for row in learnt if row.method in TREES and row.features in PARTS[1:]]
    if trees:
        sign = 1 if target.direction == train_target.direction else -1
        strongest = max(trees, key=lambda row: np.nan_to_num(row.kendall * sign, nan=-2.0))
        learnt = [_compared(row, strongest, sign) for row in learnt]
    return learnt + [replace(row, best_free=row is best) for row in free]


def _ranked(row: Row) -> int:
    return sum(one.n for one in row.seeds)


def _free(
    measured: Mapping[_Task, Mapping[tuple[str, str], Measured]], samples: int, seed: int, name: str, which: str
) -> Measured:
    if which == "published":
        return replace(measured[_ON_ALL][name, which], seed=seed)
    return measured[_Task(samples, seed, None)][name, which]


def _row(method: str, features: str, samples: int, which: str, found: list[Measured]) -> Row:
    kendall, kendall_error = _mean([one.kendall for one in found])
    spearman, spearman_error = _mean([one.spearman for one in found])
    fewest = min(one.n for one in found)
    covered = (_mean([one.coverage_68 for one in found])[0], _mean([one.coverage_95 for one in found])[0])
    correlations = (kendall, kendall_error, spearman, spearman_error)
    none = float("nan")
    return Row(method, features, samples, which, fewest, *correlations, *covered, False, "", none, none, tuple(found))


def _compared(row: Row, other: Row, sign: int) -> Row:
    pairs = zip(row.seeds, other.seeds, strict=True)
    difference, error = _mean([sign * (own.kendall - theirs.kendall) for own, theirs in pairs])
    name = f"{other.method}:{other.features}"
    return replace(row, compared_with=name, difference=difference, difference_error=error)


def _mean(values: list[float]) -> tuple[float, float]:
    """Return the mean and its standard error."""
    if len(values) < 2:
        return float(np.mean(values)), float("nan")
    return float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(len(values)))
