"""One thing at a time changed from the defaults of mabn and parzc, on NAS-Bench-201."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from parzc_stages import Problem, Rows, evaluated, learners, paired, parameters, varied

from zcpipe.parzc.predictors import defaults
from zcpipe.parzc.protocol import Method
from zcpipe.parzc.spec import FeatureSpec

LOSSES = ("mse", "pairwise", "diffkendall", "mse+diffkendall", "pairwise+diffkendall")
ENCODINGS = ("minmax", "log", "zscore", "rank", "live-rank")
PLAIN = -30.0  # a rho at which a Bayesian layer's weights are plain numbers
PATIENCE = 10


@dataclass(frozen=True)
class Case:
    """What is measured: a method on features, and what it differs in from the default of its base."""

    base: str
    factor: str
    value: str
    method: Method
    spec: FeatureSpec


def cases(spec: FeatureSpec) -> list[Case]:
    """Return the cases, the default of each base first."""
    return [*_of_mabn(spec), *_of_parzc(spec)]


def _of_mabn(spec: FeatureSpec) -> Iterator[Case]:
    base = "mabn"
    default = parameters(base, {})
    training = default["settings"]

    def case(factor: str, value: str, **given: object) -> Case:
        return Case(base, factor, value, Method(base, parameters=json.dumps(given)), spec)

    yield case("default", "-")
    for loss in _others(LOSSES, training["loss"]):
        yield case("loss", loss, settings={"loss": loss})
    for shown in _others(("scores", "raw"), default["shown"]):
        yield case("targets shown as", shown, shown=shown)
    for weight in _others((0.0, 1.0), training["kl_weight"]):
        yield case("KL weight", f"{weight:g}", settings={"kl_weight": weight})
    yield case("Bayesian layers", f"plain (rho {PLAIN:g})", rho=PLAIN)
    for members in _others((1, 3), training["members"]):
        yield case("members", str(members), settings={"members": members})
    for patience in _others((None, PATIENCE), training["patience"]):
        value = "none" if patience is None else f"patience {patience}, {training['held_out']:.0%} held out"
        yield case("early stopping", value, settings={"patience": patience})
    alike = json.dumps({"shown": default["shown"], "settings": training})
    yield Case(
        base, "token mixing", "none: the published form, trained alike", Method("mabn-published", "all", alike), spec
    )
    yield from _of_features(base, spec)


def _of_parzc(spec: FeatureSpec) -> Iterator[Case]:
    base = "parzc"
    members = [[name, dict(own)] for name, own in defaults.PARZC]

    def case(factor: str, value: str, heard: Sequence[object]) -> Case:
        return Case(base, factor, value, Method(base, parameters=json.dumps({"members": heard})), spec)

    yield Case(base, "default", "-", Method(base), spec)
    for at, (name, own) in enumerate(members):
        yield case("one member alone", _called(name, own), [[name, own]])
        if len(members) > 1:
            yield case("one member left out", _called(name, own), members[:at] + members[at + 1 :])
    for name in ("mabn", "boosted-trees"):
        if name not in (member for member, _ in members):
            yield case("one member added", name, [*members, [name, {}]])
    yield from _of_features(base, spec)


def _of_features(base: str, spec: FeatureSpec) -> Iterator[Case]:
    for encoding in _others(ENCODINGS, spec.encoding):
        yield Case(base, "encoding", encoding, Method(base), varied(spec, encoding=encoding))
    for alignment in _others(("slots", "packed"), spec.alignment):
        yield Case(base, "alignment", alignment, Method(base), varied(spec, alignment=alignment))
    yield Case(base, "cell's graph", "off" if spec.graph else "on", Method(base), varied(spec, graph=not spec.graph))
    for part in ("statistics", "proxies"):
        yield Case(base, "features", f"{part} alone", Method(base, part), spec)


def _others(values: Sequence[Any], default: object) -> list[Any]:
    return [value for value in values if value != default]


def _called(name: str, own: dict[str, Any]) -> str:
    return name + (f" ({', '.join(f'{key} {value}' for key, value in own.items())})" if own else "")


def ablation(problem: Problem, options: argparse.Namespace) -> dict[str, Any]:
    """Measure every case; those that differ in the method alone, for one factor, are one stage for each number."""
    found: dict[Case, Rows] = {}
    asked: dict[tuple[str, str, FeatureSpec], list[Case]] = {}
    for case in cases(problem.spec):
        asked.setdefault((case.base, case.factor, case.spec), []).append(case)
    for samples in options.ablation_samples:
        for number, ((base, factor, spec), group) in enumerate(asked.items()):
            what = "".join(c if c.isalnum() else "_" for c in factor)
            name = f"ablation-{samples}-{base}-{number:02}-{what}"
            methods = [case.method for case in group]
            rows = evaluated(problem, methods, [samples], options.ablation_seeds, options, name, spec)
            for _, own in learners(rows, "others"):
                for case, row in zip(group, own, strict=True):
                    found.setdefault(case, []).append(row)
    defaults_of = {case.base: rows for case, rows in found.items() if case.factor == "default"}
    return {
        "seeds": options.ablation_seeds,
        "rows": [
            _compared(case, row, other)
            for case, rows in found.items()
            for row, other in zip(rows, defaults_of[case.base], strict=True)
        ],
    }


def _compared(case: Case, row: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    kept = {name: row.get(name) for name in ("samples", "n_test", "kendall", "kendall_error", "taus")}
    difference, error = paired(row, other)
    own = {"base": case.base, "factor": case.factor, "value": case.value}
    return {**own, **kept, "difference": difference, "difference_error": error}
