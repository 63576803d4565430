r"""How ParZC's predictors rank architectures that they were not trained on, beside trees, ridge and no training.

    zcpipe run --space nasbench201 --dataset cifar10 \
        --proxies aznas,nasbench_suite_zero,grad_norm_global,linear_regions,meco,num_layers,\
stage_expressivity,swap,synflow_bn,zico \
        --inputs npz:data/cifar10_train_1000.npz --batch-size 16 --workers 2 --out runs/parzc/nasbench201
    ZCPIPE_DATA=data python pipelines/spaces.py --batch-size 8 --resolution 128 \
        --images npz:data/cifar10_train_1000.npz --workers 2
    ZCPIPE_DATA=data python pipelines/parzc.py --workers 2

The first two make the tables: NAS-Bench-201's, of all static, cheap and second-order proxies, and those of NDS and of
a sample of NAS-Bench-101, each of which may be missing or incomplete.

The stages are nasbench201 (all predictors by the number of labels), spaces (the same elsewhere,
with the parameters chosen on NAS-Bench-201), ablation (one thing changed at a time), calibration and speed. What a
stage computed is kept under --out and not repeated while its table, labels, features, draws and parameters are the
same. With --stages the chosen ones alone are run and printed; without it docs/parzc.md, its figure and its rows
(docs/parzc.parquet) are written.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import study
from parzc_ablation import ablation
from parzc_figure import figure
from parzc_report import page
from parzc_sections import section
from parzc_speed import speed
from parzc_stages import Problem, absence, evaluated, learners
from spaces import POPULATIONS

from zcpipe.parzc.labels import parse_samples
from zcpipe.parzc.protocol import parse_methods

METHODS = ("parzc", "mabn", "mabn-published", "gaussian-process", "baselines")
CALIBRATED = (("parzc", "all"), ("gaussian-process", "all"), ("mabn", "all"), ("extra-trees", "both"))
STAGES = ("nasbench201", "spaces", "ablation", "calibration", "speed")


def nasbench201(problem: Problem, options: argparse.Namespace) -> dict[str, Any]:
    """Evaluate everything by the number of labels; each number is kept by itself."""
    methods = parse_methods(METHODS, problem.spec)
    rows = []
    for samples in options.samples:
        rows += evaluated(problem, methods, [samples], options.seeds, options, f"nasbench201-{samples}")
    return {"facts": problem.facts(), "seeds": options.seeds, "rows": rows}


def spaces(options: argparse.Namespace) -> dict[str, Any]:
    """Evaluate everything on the other spaces; what cannot be is named with the reason."""
    found: dict[str, Any] = {}
    missing: dict[str, str] = {}
    for population in POPULATIONS:
        directory, truth = options.spaces / population.name, options.spaces / f"{population.name}-truth.parquet"
        reason = absence(directory) or ("" if truth.exists() else f"there is no {truth}")
        if reason:
            missing[population.name] = reason
            continue
        problem = Problem.open(population.name, directory, truth, population.target, population.target)
        methods = parse_methods(METHODS, problem.spec)
        rows = evaluated(problem, methods, options.shares, options.seeds, options, f"spaces-{population.name}")
        found[population.name] = {"facts": problem.facts(), "rows": rows}
    return {"seeds": options.seeds, "shares": options.shares, "populations": found, "missing": missing}


def calibration(main: dict[str, Any]) -> dict[str, Any]:
    """Take the coverage of predictive intervals from the rows of NAS-Bench-201."""
    kept = ("method", "features", "samples", "n_test", "coverage_68", "coverage_95")
    rows = [
        {name: row.get(name) for name in kept}
        for _, own in learners(main["rows"], "others")
        for row in own
        if (row["method"], row["features"]) in CALIBRATED
    ]
    return {"train_target": main["facts"]["train_target"], "rows": rows}


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run the stages that are asked for, and return what they gave by their names."""
    record: dict[str, Any] = {}
    asked = set(options.stages)
    if asked != {"spaces"}:
        problem = Problem.open("nasbench201", options.nasbench201, options.truth, "cifar10_test_200", "cifar10_val_200")
        labelled = problem.facts()["labelled"]
        most = max(parse_samples(text, labelled) for text in options.samples)
    if asked & {"nasbench201", "calibration"}:
        record["nasbench201"] = nasbench201(problem, options)
    if "spaces" in asked:
        record["spaces"] = spaces(options)
    if "ablation" in asked:
        record["ablation"] = ablation(problem, options)
    if "calibration" in asked:
        record["calibration"] = calibration(record["nasbench201"])
    if "speed" in asked:
        record["speed"] = speed(problem, most, options)
    return {name: record[name] for name in STAGES if name in asked}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=study.Formatter)
    parser.add_argument("--nasbench201", type=Path, default=Path("runs/parzc/nasbench201"), help="its table")
    study.add_truth(parser, "Parquet file with columns arch, cifar10_test_200 and cifar10_val_200")
    parser.add_argument("--spaces", type=Path, default=Path("runs/spaces"), help="where pipelines/spaces.py has tables")
    parser.add_argument("--stages", type=study.listed, help=f"run and print only some of {','.join(STAGES)}")
    parser.add_argument("--samples", type=study.listed, default="78,156,469,781,1563", help="numbers of labels")
    parser.add_argument("--shares", type=study.listed, default="20%,60%", help="numbers of labels on the other spaces")
    parser.add_argument("--seeds", type=int, default=10, help="draws of labels")
    parser.add_argument("--ablation-samples", type=study.listed, default="78,469,1563", help="numbers of labels there")
    parser.add_argument("--ablation-seeds", type=int, default=5, help="draws of labels there")
    parser.add_argument("--out", type=Path, default=Path("runs/parzc/study"), help="where results are kept")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="where the page goes")
    parser.add_argument("--workers", type=int, default=2, help="processes that train, one thread each")
    options = parser.parse_args(arguments)
    printed = options.stages
    options.stages = printed or list(STAGES)
    study.refuse_unknown(parser, "stage", options.stages, STAGES)
    reason = absence(options.nasbench201) if set(options.stages) != {"spaces"} else ""
    if reason:
        parser.error(f"{reason}; make it with the zcpipe run of --help, or give --nasbench201")
    record = run(options)
    if printed:
        print("\n\n".join("\n".join(section(name, record)) for name in record))
        return
    options.docs.mkdir(parents=True, exist_ok=True)
    base = options.docs / "parzc"
    pq.write_table(tabulated(record), base.with_suffix(".parquet"), compression="zstd")
    figure(record, base.with_suffix(".png"))
    base.with_suffix(".md").write_text(page(record))
    print(f"{base.with_suffix('.md')} is written")


def tabulated(record: dict[str, Any]) -> pa.Table:
    """Put the rows of all stages into one table, which says of each its stage and population; a null is what it lacks.

    What a stage says besides its rows, such as facts of a table, is JSON in the metadata.
    """
    rows: list[dict[str, Any]] = []
    said: dict[str, Any] = {}
    for name, stage in record.items():
        populations = stage.get("populations", {"nasbench201": stage})
        for population, held in populations.items():
            rows += [{"stage": name, "population": population, **row} for row in held["rows"]]
        facts = {population: held.get("facts") for population, held in populations.items()}
        said[name] = {key: value for key, value in stage.items() if key not in ("rows", "populations")} | facts
    names = dict.fromkeys(key for row in rows for key in row)
    columns = {key: [row.get(key) for row in rows] for key in names}
    return pa.table(columns, metadata={name: json.dumps(value) for name, value in said.items()})


if __name__ == "__main__":
    study.script(main)
