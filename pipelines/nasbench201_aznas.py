"""AZ-NAS on the whole of NAS-Bench-201: the published correlations, by seed and by batch size.

    python pipelines/nasbench201_aznas.py --truth nasbench201.parquet --target cifar10_test_200 --workers 2

Scores all 15,625 cells for each seed at batch 64 and, for the first seed, at smaller batches; resumes where it was
interrupted; writes docs/nasbench201_aznas.md with its figure and the numbers behind them as JSON. The truth file is any
Parquet file with columns `arch` and the target, such as `zcpipe truth import nats` makes.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from zcpipe import open_table
from zcpipe.proxies import resolve
from zcpipe.rank import log_rank
from zcpipe.rank.population import correlate_table, directions, proxy_values
from zcpipe.run import RunSpec, run, show_progress
from zcpipe.truth import align, read_truth

PUBLISHED = {  # Kendall, Spearman on CIFAR-10
    "aznas": "0.741 / 0.913 (authors), 0.712 / 0.892 (independent re-run)",
    "aznas_linear": "0.697 / - (authors)",
}
ORDER = ("params", "macs", "expressivity", "progressivity", "trainability", "complexity", "aznas", "aznas_linear")


def score(out: Path, seed: int, batch_size: int, workers: int) -> Path:
    """Score the whole space into a table of its own, and log the CPU seconds its workers took."""
    proxies = tuple(proxy.name for proxy in resolve("aznas"))
    spec = RunSpec(space="nasbench201", dataset="cifar10", proxies=proxies, seed=seed, batch_size=batch_size)
    directory = out / f"seed{seed}-batch{batch_size}"
    before = _cpu_of_workers()
    with show_progress() as on_event:
        summary = run(spec, directory, workers, on_event=on_event)
    if summary.new:
        record = {"table": directory.name, "rows": summary.new, "cpu_seconds": _cpu_of_workers() - before}
        with (out / "cpu.jsonl").open("a") as log:
            log.write(json.dumps(record) + "\n")
    return directory


def _cpu_of_workers() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def evaluate(directory: Path, truth: Path, target: str) -> dict[str, Any]:
    """Correlate one table with the truth, and note what the aggregate would pick."""
    table = open_table(directory)
    known = align(table.to_arrow(["arch"])["arch"].to_pylist(), read_truth(truth, target))
    rows = {row.name: row for row in correlate_table(table, known, target, {})}
    best = table.top(1)
    picked = table.lookup(best["arch"].to_pylist(), ["index"])["index"][0].as_py()
    log = [json.loads(line) for line in (directory.parent / "cpu.jsonl").read_text().splitlines()]
    mine = [record for record in log if record["table"] == directory.name]
    return {
        "kendall": {name: rows[name].kendall for name in ORDER},
        "spearman": {name: rows[name].spearman for name in ORDER},
        "rows": rows["aznas"].n,
        "failed": rows["aznas"].failed,
        "picked": {"index": picked, "arch": best["arch"][0].as_py(), target: float(known[picked])},
        "cpu_seconds": sum(record["cpu_seconds"] for record in mine),
        "cpu_covers_rows": sum(record["rows"] for record in mine),
    }


def figure(directory: Path, truth: Path, target: str, batches: dict[int, dict[str, Any]], path: Path) -> None:
    """Draw predicted against true rank, and what a smaller batch costs."""
    table = open_table(directory)
    known = align(table.to_arrow(["arch"])["arch"].to_pylist(), read_truth(truth, target))
    names = [proxy.name for proxy in resolve("aznas")]
    scores = log_rank(proxy_values(table, names), directions(table, names))
    left, right = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")[1]
    image = left.hexbin(_places(scores), _places(known), gridsize=60, cmap="viridis", mincnt=1)
    left.set(xlabel="predicted rank (AZ-NAS)", ylabel=f"true rank ({target})", title="1 is the worst")
    left.figure.colorbar(image, ax=left, label="cells")
    sizes = sorted(batches)
    right.plot([batches[b]["cpu_seconds"] / 60 for b in sizes], [batches[b]["kendall"]["aznas"] for b in sizes], "o-")
    for size in sizes:
        right.annotate(f"batch {size}", (batches[size]["cpu_seconds"] / 60, batches[size]["kendall"]["aznas"]))
    right.set(xlabel="CPU minutes for all 15,625 cells", ylabel="Kendall tau (AZ-NAS)", title="what accuracy costs")
    right.grid(alpha=0.3)
    left.figure.savefig(path, dpi=80)


def _places(values: np.ndarray) -> np.ndarray:
    return np.argsort(np.argsort(values)) + 1


def page(results: dict[str, Any], target: str) -> str:
    """Render the results."""
    seeds, batches = results["seeds"], results["batches"]
    lines = [
        "# AZ-NAS on NAS-Bench-201",
        "",
        f"All {next(iter(seeds.values()))['rows']} cells against `{target}`, noise inputs, one weight draw per key "
        "class and seed. Made by `pipelines/nasbench201_aznas.py`; the numbers are in `nasbench201_aznas.json`.",
        "",
        f"## Batch 64, seeds {', '.join(seeds)}",
        "",
        "| proxy | Kendall mean | sd | Spearman mean | sd | published Kendall / Spearman |",
        "|---|---|---|---|---|---|",
    ]
    for name in ORDER:
        tau, rho = ([result[kind][name] for result in seeds.values()] for kind in ("kendall", "spearman"))
        spread = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in (tau, rho)]
        published = PUBLISHED.get(name, "")
        lines.append(
            f"| {name} | {statistics.fmean(tau):.4f} | {spread[0]:.4f} "
            f"| {statistics.fmean(rho):.4f} | {spread[1]:.4f} | {published} |"
        )
    lines += ["", "`aznas` is the log-rank aggregate of the four, `aznas_linear` the sum of their ranks.", ""]
    for seed, result in seeds.items():
        picked = result["picked"]
        lines.append(f"Seed {seed} picks cell {picked['index']} `{picked['arch']}`: {picked[target]:.2f} %.  ")
    lines += [
        "",
        "![ranks and costs](nasbench201_aznas.png)",
        "",
        "## What a smaller batch costs (seed 0)",
        "",
        "CPU seconds are those of the worker processes over the whole space, start-up included.",
        "",
        "| batch | aznas Kendall | Spearman | aznas_linear Kendall | CPU seconds | rows timed |",
        "|---|---|---|---|---|---|",
    ]
    for size, result in sorted(batches.items()):
        lines.append(
            f"| {size} | {result['kendall']['aznas']:.4f} | {result['spearman']['aznas']:.4f} "
            f"| {result['kendall']['aznas_linear']:.4f} | {result['cpu_seconds']:.0f} | {result['cpu_covers_rows']} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--truth", type=Path, required=True)
    parser.add_argument("--target", default="cifar10_test_200")
    parser.add_argument("--out", type=Path, default=Path("runs/nasbench201_aznas"), help="where the tables go")
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[8, 16, 32], help="besides 64, first seed only")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    first = options.seeds[0]
    tables = {
        (seed, size): score(options.out, seed, size, options.workers)
        for seed, size in [(seed, 64) for seed in options.seeds] + [(first, size) for size in options.batch_sizes]
    }
    done = {case: evaluate(directory, options.truth, options.target) for case, directory in tables.items()}
    results = {
        "target": options.target,
        "seeds": {str(seed): result for (seed, size), result in done.items() if size == 64},
        "batches": {size: result for (seed, size), result in done.items() if seed == first},
    }
    options.docs.mkdir(exist_ok=True)
    base = options.docs / "nasbench201_aznas"
    figure(tables[first, 64], options.truth, options.target, results["batches"], base.with_suffix(".png"))
    base.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    base.with_suffix(".md").write_text(page(results, options.target))


if __name__ == "__main__":
    main()
