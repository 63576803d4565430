r"""How many models searches train with and without scores that need no training, on NAS-Bench-201.

    zcpipe run --space nasbench201 --dataset cifar10 \
        --proxies aznas,nasbench_suite_zero,grad_norm_global,linear_regions,meco,num_layers,\
stage_expressivity,swap,synflow_bn,zico \
        --inputs npz:data/cifar10_train_1000.npz --batch-size 16 --workers 2 --out runs/parzc/nasbench201
    ZCPIPE_DATA=data python pipelines/search.py

The first makes the table, which is that of pipelines/parzc.py. What is trained is looked up: the validation accuracy
guides, the test accuracy of the model with the best validation accuracy so far is told.

What a case (an algorithm, what scores do for it, which scores) or a predictor gave is kept under --out and not repeated
while its table, truth, parameters, budget and seeds are the same. With --algorithms the chosen ones alone are run, and
nothing is written, so that several processes can share the work; without it docs/search.md, its figure and
docs/search.json are written.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import study
from parzc_stages import absence
from scipy import stats
from search_figure import figure
from search_report import page
from search_stages import PREDICTORS, ROLES, Case, Problem, cases, curve, reached, run_case, run_predictor

from zcpipe.progress import trainings_done

PREDICTOR_STAGE = "predictors"
POINTS = (20, 50, 100, 150, 200, 300)
RESAMPLES = 2000


def measured(problem: Problem, algorithms: Sequence[str]) -> dict[str, Any]:
    """Run the cases of some algorithms and summarise them."""
    wanted = [case for case in cases() if case.algorithm in algorithms]
    compared = list(PREDICTORS) if PREDICTOR_STAGE in algorithms else []
    results: dict[Case, dict[str, Any]] = {}
    by_predictor = []
    with trainings_done("cases") as progress:
        for case in wanted:
            results[case] = run_case(problem, case)
            progress(len(results), len(wanted) + len(compared))
        for name in compared:
            found = run_predictor(problem, name)
            budget = problem.budget("predictor")
            summary = summarised(curve(found["seeds"], budget), problem.options.goal)
            parameters, guide = PREDICTORS[name]
            own = {"name": name, **parameters, "guide": guide, "cpu_seconds": found["cpu_seconds"]}
            by_predictor.append({**own, **summary})
            progress(len(results) + len(by_predictor), len(wanted) + len(compared))
    goal = problem.options.goal
    curves = {case: curve(result["seeds"], problem.budget(case.algorithm)) for case, result in results.items()}
    rows = []
    for case, of_seeds in curves.items():
        row = {"algorithm": case.algorithm, "role": case.role, "guide": case.guide}
        row |= {"cpu_seconds": results[case]["cpu_seconds"], **summarised(of_seeds, goal)}
        if case.role:
            without = reached(curves[Case(case.algorithm)], goal)
            row |= speed_up(without, reached(of_seeds, goal)) | sign_test(without, reached(of_seeds, goal))
        rows.append(row)
    return {"rows": rows, "predictors": by_predictor}


def summarised(of_seeds: np.ndarray, goal: float) -> dict[str, Any]:
    """Return the mean curve with its standard error, and when seeds reach the goal."""
    seeds, budget = of_seeds.shape
    errors = of_seeds.std(axis=0, ddof=1) / np.sqrt(seeds) if seeds > 1 else np.zeros(budget)
    when = reached(of_seeds, goal)
    return {
        "budget": budget,
        "seeds": seeds,
        "mean": [round(value, 4) for value in of_seeds.mean(axis=0).tolist()],
        "error": [round(value, 4) for value in errors.tolist()],
        "reached": [None if np.isinf(value) else int(value) for value in when.tolist()],
        "median": _finite(float(np.median(when))),
    }


def speed_up(without: np.ndarray, with_scores: np.ndarray) -> dict[str, Any]:
    """Compare the medians of the models needed, and resample the seeds; None where a median is not reached.

    Seeds are resampled in pairs, for both searches of one seed draw the same random architectures.
    """
    drawn = np.random.default_rng(0).integers(len(without), size=(RESAMPLES, len(without)))
    before, after = np.median(without), np.median(with_scores)
    ratios = _ratio(np.median(without[drawn], axis=1), np.median(with_scores[drawn], axis=1))
    low, high = np.quantile(ratios, [0.025, 0.975], method="nearest")
    value = float(_ratio(np.array([before]), np.array([after]))[0])
    return {"speed_up": _finite(value), "speed_up_low": _finite(float(low)), "speed_up_high": _finite(float(high))}


def sign_test(without: np.ndarray, with_scores: np.ndarray) -> dict[str, Any]:
    """Count the seeds that reach the goal sooner or later with scores, and how probable so uneven counts are."""
    sooner, later = int((with_scores < without).sum()), int((with_scores > without).sum())
    p = stats.binomtest(sooner, sooner + later).pvalue if sooner + later else 1.0
    return {"sooner": sooner, "later": later, "p": float(p)}


def _ratio(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Divide medians; 1 where neither is reached, inf where the first is not, 0 where the second is not."""
    both = np.isinf(before) & np.isinf(after)
    with np.errstate(invalid="ignore"):
        return np.where(both, 1.0, before / after)


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=study.Formatter)
    parser.add_argument("--table", type=Path, default=Path("runs/parzc/nasbench201"), help="the table that is searched")
    study.add_truth(parser, "Parquet file with a column arch and the accuracies")
    parser.add_argument("--target", default="cifar10_val_200", help="its column that guides")
    parser.add_argument("--report", default="cifar10_test_200", help="its column that is only reported")
    parser.add_argument("--goal", type=float, default=94.0, help="accuracy to be reached, of the reported column")
    parser.add_argument(
        "--algorithms", type=study.listed, help=f"run only some of {','.join([*ROLES, PREDICTOR_STAGE])}"
    )
    parser.add_argument("--seeds", type=int, default=50, help="searches of each case")
    parser.add_argument("--budget", type=int, default=300, help="models to train")
    parser.add_argument("--predictor-budget", type=int, default=150, help="models to train in predictor search")
    parser.add_argument("--predictor-seeds", type=int, default=10, help="searches by each predictor compared")
    parser.add_argument("--scored", type=int, default=3000, help="architectures that a warm-up scores")
    parser.add_argument("--kept", type=int, default=64, help="of them those that evolution and reinforce begin with")
    parser.add_argument("--labels", type=int, default=78, help="models that ParZC's predictor learns from")
    parser.add_argument("--out", type=Path, default=Path("runs/search"), help="where results are kept")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="where the page goes")
    parser.add_argument("--workers", type=int, help="processes that search (default: this one)")
    options = parser.parse_args(arguments)
    every = [*ROLES, PREDICTOR_STAGE]
    study.refuse_unknown(parser, "algorithm", options.algorithms or (), every)
    reason = absence(options.table)
    if reason:
        parser.error(f"{reason}; make it with the zcpipe run of --help, or give --table")
    problem = Problem.open(options)
    found = measured(problem, options.algorithms or every)
    if options.algorithms:
        print(f"{len(found['rows']) + len(found['predictors'])} results are kept in {options.out}")
        return
    kept = ("goal", "scored", "kept", "labels")
    record = {"facts": problem.facts(), "options": {name: getattr(options, name) for name in kept}, **found}
    record["points"] = [point for point in POINTS if point <= options.budget] or [options.budget]
    options.docs.mkdir(parents=True, exist_ok=True)
    base = options.docs / "search"
    base.with_suffix(".json").write_text(study.dumped(record) + "\n")
    figure(record, base.with_suffix(".png"))
    base.with_suffix(".md").write_text(page(record))
    print(f"{base.with_suffix('.md')} is written")


if __name__ == "__main__":
    study.script(main)
