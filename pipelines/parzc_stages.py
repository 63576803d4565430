"""What the stages of the study of ParZC share: a table with its labels, and evaluations that are kept."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import study

from zcpipe.parzc.choice import choose_spec
from zcpipe.parzc.labels import Labels
from zcpipe.parzc.parallel import Pool
from zcpipe.parzc.predictors import predictor
from zcpipe.parzc.protocol import Method, Row, evaluate
from zcpipe.parzc.spec import FeatureSpec
from zcpipe.progress import trainings_done
from zcpipe.table import Table, open_table, status
from zcpipe.table.store import find_header

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Problem:
    """A table, what is learnt of it and what the ranking is tested by.

    Attributes:
        name: of the population.
        table: the architectures.
        tested: what the ranking is tested by.
        learnt: what predictors are shown.
        spec: the features, chosen as `zcpipe parzc` chooses them.
        left_out: columns that are no features, for more than 1 % of the rows lack them.
        truth: digest of the file of labels.
    """

    name: str
    table: Table
    tested: Labels
    learnt: Labels
    spec: FeatureSpec
    left_out: list[str]
    truth: str

    @classmethod
    def open(cls, name: str, directory: Path, truth: Path, target: str, train_target: str) -> Problem:
        """Read a table and its labels."""
        table = open_table(directory)
        tested, learnt = Labels.read(table, truth, target), Labels.read(table, truth, train_target)
        digest = hashlib.blake2b(truth.read_bytes(), digest_size=16).hexdigest()
        spec, left_out = choose_spec(table)
        return cls(name, table, tested, learnt, spec, list(left_out), digest)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What results depend on besides features, methods and draws."""
        return {
            "identity": self.table.identity,
            "rows": len(self.table),
            "contents": study.contents(self.table),
            "truth": self.truth,
            "target": self.tested.target,
            "train_target": self.learnt.target,
        }

    def facts(self) -> dict[str, Any]:
        """Return what a page says of the problem."""
        known = ~np.isnan(self.tested.values) & ~np.isnan(self.learnt.values)
        keys = self.table.to_arrow(["key"])["key"].to_pylist()
        return {
            **self.identity,
            "labelled": int(known.sum()),
            "keys": len(set(keys)),
            "spec": self.spec.model_dump(mode="json"),
            "left_out": self.left_out,
        }


def absence(directory: Path) -> str:
    """Say why a table cannot be measured; empty where it can."""
    if find_header(directory) is None:
        return f"there is no table in {directory}"
    found = status(directory)
    return "" if found.complete else f"{directory} holds {found.rows} of {found.planned} rows"


def varied(spec: FeatureSpec, **fields: object) -> FeatureSpec:
    """Return the features in another form."""
    return FeatureSpec.model_validate({**spec.model_dump(), **fields})


def parameters(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return all parameters of a predictor, defaults and those of its members among them."""
    found = predictor(name, given).model_dump(mode="json")  # type: ignore[attr-defined]
    if "members" in found:
        found["members"] = [[text, parameters(text.partition(":")[0], own)] for text, own in found["members"]]
    return found


def _digest(method: Method) -> list[str]:
    text = json.dumps(parameters(method.name, json.loads(method.parameters)), sort_keys=True)
    return [method.name, method.features, hashlib.blake2b(text.encode(), digest_size=16).hexdigest()]


def evaluated(
    problem: Problem,
    methods: Sequence[Method],
    samples: Sequence[str],
    seeds: int,
    options: argparse.Namespace,
    name: str,
    spec: FeatureSpec | None = None,
) -> Rows:
    """Evaluate methods, unless the same was evaluated before, and keep the rows under the name of a stage."""
    spec = problem.spec if spec is None else spec
    inputs = {
        **problem.identity,
        "spec": spec.model_dump(mode="json"),
        "methods": [_digest(method) for method in methods],
        "samples": list(samples),
        "seeds": seeds,
    }

    def compute() -> Rows:
        with trainings_done(name) as progress:
            rows = evaluate(
                problem.table,
                problem.tested,
                problem.learnt,
                spec,
                methods,
                samples,
                seeds,
                pool=Pool(options.workers),
                progress=progress,
            )
        return [_record(row) for row in rows]

    return study.stage(options.out / f"{name}.json", inputs, compute)


def _record(row: Row) -> dict[str, Any]:
    """Return what a row says, and of each seed Kendall's tau where something was learnt."""
    record = {name: value for name, value in asdict(row).items() if value == value and name != "seeds"}
    if row.features:
        record["taus"] = [None if one.kendall != one.kendall else one.kendall for one in row.seeds]
    return {name: value for name, value in record.items() if value is not False and value != ""}


def learners(rows: Rows, which: str) -> Iterator[tuple[int, Rows]]:
    """Yield each number of samples with the rows of what learns, in the order of the methods, of one split."""
    own = [row for row in rows if "taus" in row and row["split"] == which]
    for samples, group in groupby(own, key=lambda row: row["samples"]):
        yield samples, list(group)


def label(row: Mapping[str, Any]) -> str:
    """Return what a method is called."""
    return row["method"] if row.get("features", "all") == "all" else f"{row['method']}:{row['features']}"


def paired(row: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Return the mean difference of tau, seed by seed, and its standard error; None where there is none."""
    pairs = zip(row["taus"], other["taus"], strict=True)
    gaps = [own - theirs for own, theirs in pairs if own is not None and theirs is not None]
    if not gaps:
        return None, None
    error = float(np.std(gaps, ddof=1) / np.sqrt(len(gaps))) if len(gaps) > 1 else None
    return float(np.mean(gaps)), error


def clear(difference: float | None, error: float | None) -> int:
    """Return the sign of a difference that exceeds two standard errors, else 0."""
    if difference is None or error is None or abs(difference) <= 2 * error:
        return 0
    return 1 if difference > 0 else -1
