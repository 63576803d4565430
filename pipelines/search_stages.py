"""What the study of searches runs: cases of an algorithm and of what guides it, each kept when it is done."""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import study

from zcpipe.parzc.free import PUBLISHED, Nodes
from zcpipe.parzc.parallel import Pool, each
from zcpipe.parzc.predictors import Context, predictor
from zcpipe.rank import NAMED, aggregate
from zcpipe.search import Features, Guidance, TableScores, TruthAccuracy
from zcpipe.search import search as search_space
from zcpipe.search.algorithms import Method, method
from zcpipe.search.loop import Trial
from zcpipe.search.result import incumbents
from zcpipe.table import Table, open_table

FREE, LEARNT = "parzc-free", "parzc-learnt"
GUIDES = ("synflow", "aznas", FREE, LEARNT)
ROLES = {"random": ("warm-up",), "evolution": ("warm-up", "moves", "both"), "reinforce": ("warm-up",)}
ROLES["predictor"] = ("warm-up",)
PARAMETERS: dict[str, dict[str, Any]] = {
    "random": {},
    "evolution": {},
    "reinforce": {},
    "predictor": {"predictor": "boosted-trees", "parameters": {"depths": [4], "trees": [100]}},
}
WEIGHTS = "sinusoidal"  # of ParZC without training
AT_ONCE = 10  # seeds that are kept together
LEARNER = "parzc"  # that learns ParZC's guidance from labels
PRETRAINED = 256  # architectures whose ranking networks learn first
PREDICTORS: dict[str, tuple[dict[str, Any], str]] = {  # parameters of predictor search, and what warms it up
    "boosted-trees": (PARAMETERS["predictor"], ""),
    "gaussian-process": ({"predictor": "gaussian-process"}, ""),
    "extra-trees": ({"predictor": "extra-trees", "parameters": {"trees": 100}}, ""),
    "parzc": ({"predictor": "parzc"}, ""),
    "mabn": ({"predictor": "mabn"}, ""),
    "mabn-warm": ({"predictor": "mabn"}, "synflow"),
    "mabn-pretrained": ({"predictor": "mabn", "pretrain": PRETRAINED}, "synflow"),
}


@dataclass(frozen=True)
class Case:
    """An algorithm, what scores do for it ("" for nothing, a warm-up, moves or both), and which scores."""

    algorithm: str
    role: str = ""
    guide: str = ""

    @property
    def name(self) -> str:
        """What its stage is called."""
        return "-".join(part for part in (self.algorithm, self.role, self.guide) if part)


def cases() -> Iterator[Case]:
    """Yield all cases; predictor search learns from labels itself, so that none are spent on guiding it."""
    for algorithm, roles in ROLES.items():
        yield Case(algorithm)
        for role in roles:
            for guide in GUIDES:
                if (algorithm, guide) != ("predictor", LEARNT):
                    yield Case(algorithm, role, guide)


@dataclass(frozen=True)
class Problem:
    """A table and its truth: what is searched, and what it is guided by."""

    table: Table
    truth: Path
    target: str
    report: str
    options: argparse.Namespace

    @classmethod
    def open(cls, options: argparse.Namespace) -> Problem:
        """Read what the options name."""
        return cls(open_table(options.table), options.truth, options.target, options.report, options)

    @cached_property
    def accuracy(self) -> TruthAccuracy:
        """Validation guides, test is reported."""
        return TruthAccuracy(self.truth, self.target, self.report)

    @cached_property
    def scores(self) -> TableScores:
        """The proxies that guide, and ParZC without training: the log-rank of its sums over the whole table."""
        scores = TableScores.read(self.table, ["synflow", *NAMED["aznas"].proxies])
        sums = {name: Nodes.of(self.table, name).total(WEIGHTS) for name in PUBLISHED}
        free = aggregate("logrank", sums, dict.fromkeys(sums, "higher"))
        return _with(scores, FREE, free)

    @cached_property
    def features(self) -> Features:
        """All statistics, proxies and counts."""
        return Features.of(self.table)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What all results depend on."""
        truth = hashlib.blake2b(self.truth.read_bytes(), digest_size=16).hexdigest()
        rows = {"identity": self.table.identity, "rows": len(self.table), "contents": study.contents(self.table)}
        return {**rows, "truth": truth, "target": self.target, "report": self.report}

    def facts(self) -> dict[str, Any]:
        """Return what a page says of the problem."""
        tests = np.array([self.accuracy.train(text).report for text in self.scores.texts])  # type: ignore[arg-type]
        values = np.array([self.accuracy.train(text).accuracy for text in self.scores.texts])  # type: ignore[arg-type]
        keys = np.array(self.scores.keys)
        return {
            **self.identity,
            "models": len(set(self.scores.keys)),
            "good": len(set(keys[tests >= self.options.goal].tolist())),
            "best_by_target": float(tests[values.argmax()]),
            "best": float(tests.max()),
        }

    def budget(self, algorithm: str) -> int:
        """Return how many models are trained."""
        return int(self.options.predictor_budget if algorithm == "predictor" else self.options.budget)


def _with(scores: TableScores, name: str, values: np.ndarray) -> TableScores:
    directions = {**scores.directions, name: "higher"}
    return replace(scores, columns={**scores.columns, name: values}, directions=directions)


def run_case(problem: Problem, case: Case) -> dict[str, Any]:
    """Search under all seeds, unless the same was searched before.

    Returns:
        Of each seed [models, test accuracy] wherever the best by validation changes, and the CPU seconds.
    """
    options = problem.options
    searched = _learnt if case.guide == LEARNT else _searched
    made = method(case.algorithm, PARAMETERS[case.algorithm])
    guidance = _guidance(case, made, options)
    learnt = {"learner": LEARNER, "labels": options.labels} if case.guide == LEARNT else {}
    inputs = {
        **problem.identity,
        "case": asdict(case),
        "parameters": made.model_dump(),
        "guidance": asdict(guidance),
        "budget": problem.budget(case.algorithm),
        **learnt,
    }
    return _kept(case.name, inputs, options, options.seeds, lambda own: searched(problem, case, made, guidance, own))


def run_predictor(problem: Problem, name: str) -> dict[str, Any]:
    """Search by one of `PREDICTORS`, as `run_case` does."""
    options = problem.options
    parameters, guide = PREDICTORS[name]
    made = method("predictor", parameters)
    case = Case("predictor", "warm-up" if guide else "", guide)
    guidance = _guidance(case, made, options)
    inputs = {**problem.identity, "parameters": made.model_dump(), "budget": problem.budget("predictor")}
    if guide:
        inputs["guidance"] = asdict(guidance)

    def searched(seeds: range) -> list[Any]:
        return _searched(problem, case, made, guidance, seeds)

    return _kept(f"by-{name}", inputs, options, options.predictor_seeds, searched)


def _kept(
    name: str, inputs: dict[str, Any], options: argparse.Namespace, seeds: int, searched: Callable[[range], list[Any]]
) -> dict[str, Any]:
    """Search under some seeds at once, keep what they gave, and join them."""
    parts = []
    for first in range(0, seeds, AT_ONCE):
        own = range(first, min(first + AT_ONCE, seeds))

        def compute(own: range = own) -> dict[str, Any]:
            before = cpu_seconds()
            return {"seeds": searched(own), "cpu_seconds": cpu_seconds() - before}

        part = options.out / f"{name}-{first}.json"
        parts.append(study.stage(part, {**inputs, "first": first, "seeds": len(own)}, compute))
    return {
        "seeds": [steps for part in parts for steps in part["seeds"]],
        "cpu_seconds": sum(part["cpu_seconds"] for part in parts),
    }


def _guidance(case: Case, made: Method, options: argparse.Namespace) -> Guidance:
    """Size a warm-up: random search goes on with all that it orders, the others begin with some."""
    if not case.role:
        return Guidance()
    moves = case.guide if case.role in ("moves", "both") else None
    if case.role == "moves":
        return Guidance(moves=moves)
    of_round = made.model_dump().get("round", options.kept)
    kept = {"random": min(options.budget, options.scored), "predictor": of_round}.get(case.algorithm, options.kept)
    return Guidance(options.scored, kept, case.guide, moves)


def _searched(problem: Problem, case: Case, made: Method, guidance: Guidance, seeds: range) -> list[Any]:
    budget = problem.budget(case.algorithm)
    found = search_space(
        problem.table.identity["space"],
        made,
        problem.accuracy,
        budget,
        scores=problem.scores,
        guidance=guidance,
        features=problem.features if "features" in made.takes else None,
        seeds=len(seeds),
        seed=seeds.start,
        pool=Pool(problem.options.workers),
    )
    return [steps_of(outcome.trials, budget) for outcome in found.outcomes]


def _learnt(problem: Problem, case: Case, made: Method, guidance: Guidance, seeds: range) -> list[Any]:
    """Search by predictions that random models were trained for: these come first and count as all others do."""
    labelled, predicted = predictions(problem, seeds)
    budget = problem.budget(case.algorithm)
    shared = (problem.table.identity["space"], made, problem.accuracy, budget, problem.scores, guidance)
    tasks = list(zip(seeds, predicted, labelled, strict=True))
    return each(_one_learnt, shared, tasks, Pool(problem.options.workers))


def _one_learnt(shared: tuple[Any, ...], task: tuple[int, np.ndarray, list[Trial]]) -> Any:  # noqa: ANN401 - JSON
    space, made, accuracy, budget, scores, guidance = shared
    seed, predicted, labelled = task
    guided = _with(scores, LEARNT, predicted)
    found = search_space(space, made, accuracy, budget, scores=guided, guidance=guidance, seed=seed)
    trained = {trial.key for trial in labelled}
    new = [trial for trial in found.outcomes[0].trials if trial.key not in trained]
    return steps_of([*labelled, *new][:budget], budget)


def predictions(problem: Problem, seeds: range) -> tuple[list[list[Trial]], np.ndarray]:
    """Learn ParZC's predictor from the first models of each seed's random search, and predict the table.

    Returns:
        Of each seed the models that were trained, and the predictions, [seeds, n]; they are kept.
    """
    options = problem.options
    space = problem.table.identity["space"]
    drawn = {"scores": problem.scores, "seeds": len(seeds), "seed": seeds.start}
    found = search_space(space, "random", problem.accuracy, options.labels, **drawn)
    labelled = [list(outcome.trials) for outcome in found.outcomes]
    parameters = predictor(LEARNER).model_dump(mode="json")  # type: ignore[attr-defined]
    inputs = {**problem.identity, "learner": parameters, "labels": options.labels, "seeds": list(seeds)}
    digest = hashlib.blake2b(json.dumps(inputs, sort_keys=True).encode(), digest_size=8).hexdigest()
    path = options.out / f"predictions-{digest}.npy"
    if not path.exists():
        features = problem.features
        tasks = list(zip(seeds, labelled, strict=True))
        made = each(_predicted, (features, problem.scores.texts), tasks, Pool(options.workers))
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.save(file, np.stack(made))
        partial.replace(path)
    return labelled, np.load(path)


def _predicted(shared: tuple[Features, Sequence[str]], task: tuple[int, Sequence[Trial]]) -> np.ndarray:
    features, texts = shared
    seed, trials = task
    of_text = {text: row for row, text in enumerate(features.texts)}
    known = [(of_text[trial.arch], trial.accuracy) for trial in trials if trial.arch in of_text]
    rows, targets = np.array([row for row, _ in known]), np.array([accuracy for _, accuracy in known])
    fitted = predictor(LEARNER).fit(features.x[rows], targets, Context(features.coordinates, features.x), seed)
    by_text = dict(zip(features.texts, fitted.predict(features.x).mean.tolist(), strict=True))
    return np.array([by_text.get(text, np.nan) for text in texts])


def steps_of(trials: Sequence[Trial], budget: int) -> list[list[float]]:
    """Return [models, test accuracy] wherever the best by validation changes."""
    best = incumbents(trials[:budget], "higher")
    return [
        [at, one.report]
        for at, (one, before) in enumerate(zip(best, [None, *best[:-1]], strict=True), start=1)
        if one is not None and one is not before
    ]


def curve(steps: Sequence[Sequence[Sequence[float]]], budget: int) -> np.ndarray:
    """Expand the steps of all seeds: [seeds, budget], the test accuracy of the best by validation so far."""
    found = np.full((len(steps), budget), np.nan)
    for row, own in zip(found, steps, strict=True):
        for at, accuracy in own:
            row[int(at) - 1 :] = accuracy
    return found


def reached(of_seeds: np.ndarray, goal: float) -> np.ndarray:
    """Return after how many models each seed's best is first as accurate as a goal: [seeds], inf where it never is."""
    there = of_seeds >= goal
    return np.where(there.any(axis=1), there.argmax(axis=1) + 1.0, np.inf)


def cpu_seconds() -> float:
    """Return what this process and those that it waited for have computed."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
