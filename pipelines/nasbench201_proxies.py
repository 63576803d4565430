r"""Every proxy on NAS-Bench-201 beside its published figures, and an aggregate chosen on 700 cells.

    ZCPIPE_DATA=data python pipelines/nasbench201_proxies.py --batch-size 16 \
        --images npz:data/cifar10_train_1000.npz --workers 2

Scores all 15,625 cells with the static, cheap and second-order proxies on real images (given --images), again with
noise and under the fused protocol what differs there, and 1,000 cells with the per-sample ones; correlates all of it
with trained accuracies; chooses a log-rank recipe on 700 cells and judges it on cells that share
no key with those. Writes docs/nasbench201_proxies.md with its figure and the numbers behind them as JSON.

Every stage is kept under --out and not repeated: a table that is complete there is used as it is, whoever made it.
One of another batch size or other images is refused, and proxies that a table lacks join it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import study
from nasbench201_choice import CHOSEN, choose
from nasbench201_population import Population, load
from nasbench201_published import SOURCES, TEST, comparison
from nasbench201_report import figure, page, unexplained

from zcpipe import get_space
from zcpipe.proxies import Proxy, list_proxies, resolve
from zcpipe.rank import NAMED
from zcpipe.rank.population import available, correlate_columns
from zcpipe.run import All, RunSpec, Sample
from zcpipe.scoring.plan import recipe_of
from zcpipe.table import open_table

SEED = 0  # of weights, inputs and probes, and of the fixed cells
PER_SAMPLE = 1000  # cells for the proxies that take a pass for every image


@dataclass(frozen=True)
class Case:
    """One table: what goes in, how, and by which proxies; ``sample`` draws, or all cells."""

    inputs: str
    protocol: str
    proxies: tuple[str, ...]
    sample: int | None
    part: str = ""

    @property
    def name(self) -> str:
        """The name of its table's directory."""
        return f"{self.inputs}-{self.protocol}{self.part}"

    def cells(self) -> set[int] | None:
        """Return the indices of its cells, None for all of the space."""
        space = get_space("nasbench201")
        return None if self.sample is None else {space.index(space.sample(SEED, i)) for i in range(self.sample)}

    def spec(self, batch_size: int, images: str | None) -> RunSpec:
        """Return the run that makes the table."""
        return RunSpec(
            space="nasbench201",
            dataset="cifar10",
            proxies=self.proxies,
            selection=All() if self.sample is None else Sample(n=self.sample),
            batch_size=batch_size,
            seed=SEED,
            protocol=self.protocol,
            inputs=str(images) if self.inputs == "data" else self.inputs,
        )


def cases(asked: str, images: str | None, sample: int | None) -> list[Case]:
    """Return the tables to make.

    The first holds everything, on real images where there are some. Others hold what differs there: with noise, what
    reads images; fused, what it gives another recipe. The per-sample proxies have a small table of their own.

    Args:
        asked: names or groups of proxies.
        images: real images, if any.
        sample: cells of every table, None for all.
    """
    proxies = resolve(asked)
    slow = {proxy.name for proxy in proxies if proxy.cost == "per-sample"}
    # What is aggregated must stand in one table.
    beside = {member for entry in NAMED.values() if slow & set(entry.proxies) for member in entry.proxies}
    small = tuple(proxy.name for proxy in proxies if proxy.name in slow | beside)
    whole = [proxy for proxy in proxies if proxy.name not in slow]
    counts = [proxy for proxy in whole if not proxy.statistics]
    passed = [proxy for proxy in whole if proxy.statistics]
    reading = [proxy for proxy in passed if proxy.recipe and proxy.recipe.inputs == "data"]
    changed = [proxy for proxy in passed if recipe_of(proxy, "fused") != proxy.recipe]
    first = "data" if images else "noise"
    found = [Case(first, "paper", _names(whole), sample), Case(first, "fused", _names([*counts, *changed]), sample)]
    if images:
        found.insert(1, Case("noise", "paper", _names([*counts, *reading]), sample))
    if slow:
        found.append(Case(first, "paper", small, min(PER_SAMPLE, sample or PER_SAMPLE), "-per-sample"))
    return found


def _names(proxies: Sequence[Proxy]) -> tuple[str, ...]:
    return tuple(proxy.name for proxy in proxies)


def scored(case: Case, options: argparse.Namespace) -> Path:
    """Score what a table lacks; it is the table that refuses another recipe than its own."""
    directory: Path = options.out / case.name
    study.score(case.spec(options.batch_size, options.images), directory, options.workers)
    return directory


def correlations(population: Population) -> dict[str, dict[str, dict[str, Any]]]:
    """Correlate everything with everything that a source compares with: by comparison, then by proxy or aggregate."""
    found = {}
    for source in {comparison(source): source for source in SOURCES.values()}.values():
        part = population.distinct() if source.distinct else population
        part = part.failed_last() if source.failed_last else part
        made = available(part.columns)
        rows = correlate_columns(part.columns, part.directions, part.truth[source.target], source.target, made)
        found[comparison(source)] = {row.name: study.without_nan(asdict(row)) for row in rows}
    return found


def analysed(case: Case, directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Correlate one table and, where it is whole, choose an aggregate."""
    table = open_table(directory)
    population = load(table, options.truth, case.cells())
    inputs = {
        "identity": table.identity,
        "columns": list(population.columns),
        "values": population.digest(),  # `zcpipe run --retry-errors` changes no others of these
        "truth": hashlib.blake2b(options.truth.read_bytes(), digest_size=16).hexdigest(),
        "aggregates": [asdict(entry) for entry in NAMED.values()],
    }
    kept = options.out / "stages"
    result = {
        "inputs": case.inputs,
        "protocol": case.protocol,
        "per_sample": bool(case.part),
        "cells": len(population.index),
        "correlations": study.stage(kept / f"{case.name}-correlations.json", inputs, lambda: correlations(population)),
    }
    if not case.part and case.protocol == "paper" and case.inputs == ("data" if options.images else "noise"):
        chosen = CHOSEN if case.sample is None else min(CHOSEN, case.sample // 2)
        inputs = {**inputs, "chosen": chosen, "target": TEST}
        result["choice"] = study.stage(
            kept / f"{case.name}-choice.json", inputs, lambda: choose(population, chosen, SEED)
        )
        last = result["choice"]["path"][-1]
        print(f"{case.name}, chosen on {result['choice']['chosen_on']} cells: {', '.join(last['recipe'])}")
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=study.Formatter)
    study.add_truth(parser, "Parquet file with columns arch, cifar10_test_200 and cifar10_val_200")
    parser.add_argument("--images", metavar="KIND:PATH", help="real images, as zcpipe run --inputs; else only noise")
    parser.add_argument("--proxies", default=",".join(list_proxies()), help="what to score")
    parser.add_argument("--out", type=Path, default=Path("runs/nasbench201_proxies"), help="where tables and stages go")
    parser.add_argument("--docs", type=Path, help="where the page goes; docs, or with --sample the folder of --out")
    parser.add_argument("--batch-size", type=int, default=64, help="images in the batch")
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each")
    parser.add_argument("--sample", type=int, metavar="N", help="only N cells, half of them to choose on: a smoke test")
    options = parser.parse_args(arguments)
    if options.sample is not None and options.sample < 20:
        parser.error(f"--sample needs 20 cells or more, got {options.sample}")
    docs = options.docs or (options.out if options.sample else Path("docs"))
    planned = cases(options.proxies, options.images, options.sample)
    results = {case.name: analysed(case, scored(case, options), options) for case in planned}
    record = {"batch_size": options.batch_size, "seed": SEED, "cases": results}
    numbers = json.dumps(record, indent=1, allow_nan=False)
    study.publish(docs / "nasbench201_proxies", numbers, page(record), lambda path: figure(results, path))
    for name in unexplained(results, options.batch_size):
        print(f"{name} differs from a published figure: explain it in nasbench201_published.py", file=sys.stderr)


if __name__ == "__main__":
    study.script(main)
