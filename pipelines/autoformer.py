"""How every cheap proxy ranks the 100 trained AutoFormer networks of Auto-Prox, with intervals.

    ZCPIPE_DATA=data python pipelines/autoformer.py --resolution 64 --batch-size 16 --workers 2

Scores the architectures of autoformer_cifar100.parquet (space autoformer/tiny, data set cifar100) on noise, or on the
images that --images names, and correlates all columns and aggregates with the accuracies. Prints a table, and writes
docs/autoformer.md with its figure and the numbers behind them as JSON.

The table is kept under --out and resumed.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import study
from spaces_report import cell, figure

from zcpipe import get_space
from zcpipe.proxies import get_proxy, list_proxies
from zcpipe.rank.population import correlate_table
from zcpipe.run import Archs, RunSpec
from zcpipe.table import Table, open_table
from zcpipe.truth import align, read_truth

SPACE = "autoformer/tiny"
FILE = "autoformer_cifar100.parquet"
# Columns of the file: data set, and trained alone (base), with distillation (kd), or weights inherited (super).
TARGETS = (
    *("c100_base_acc", "c100_kd_acc", "flower_base_acc", "flower_kd_acc", "chaoyang_base_acc", "chaoyang_kd_acc"),
    "imagenet_super_acc",
)
SEED = 0
RESAMPLES = 1000


def proxies() -> tuple[str, ...]:
    """Return the proxies that cost a few passes at most."""
    return tuple(name for name in list_proxies() if get_proxy(name).cost in ("static", "cheap"))


def truth_of(file: Path, out: Path) -> Path:
    """Write the accuracies beside the architectures' texts, anew: the data may be others."""
    path = out / "truth.parquet"
    space, rows = get_space(SPACE), pq.read_table(file, columns=["arch", *TARGETS])
    texts = [str(space.parse(text)) for text in rows["arch"].to_pylist()]
    with study.whole(path) as partial:
        pq.write_table(rows.set_column(0, "arch", pa.array(texts)), partial)
    return path


def correlated(table: Table, truth: Path, target: str, sample: int | None) -> dict[str, Any]:
    """Correlate everything in a table with one accuracy; what else earlier runs have put there has none here."""
    archs, values = read_truth(truth, target)
    asked = archs[:sample], values[:sample]
    known = align(table.to_arrow(["arch"])["arch"].to_pylist(), asked)
    rows = correlate_table(table, known, target, {"aznas_vit": "aznas_vit"}, RESAMPLES)
    return {"networks": len(asked[0]), "rows": {row.name: study.without_nan(asdict(row)) for row in rows}}


def page(record: dict[str, Any], rows: Sequence[str]) -> str:
    """Render the results."""
    side = record["resolution"]
    return f"""# Cheap proxies on AutoFormer

Made by `pipelines/autoformer.py` at batch {record["batch_size"]}, {side} x {side} pixels, seed {record["seed"]},
inputs: {record["inputs"]}; every number is in `autoformer.json`. The population are the {record["networks"]} networks
of AutoFormer-Tiny that Auto-Prox trained; correlations are Spearman's, of raw values with accuracy, signed, with the
interval that holds 95 % of {record["resamples"]} bootstraps over the networks. Networks are few and their accuracies
close together: what differs by less than an interval's width may not differ. A dash is a proxy that the networks cannot
have (there are no ReLUs, and definitions that draw all weights themselves have no rule for positions), an aggregate
of such, or what is the same for all.

`aznas_vit` is AZ-NAS as published for transformers, without progressivity; the row `aznas` has it.

What is scored is the published space's network, with relative positions and 64 channels a head. The accuracies `base`
(trained alone) and `kd` (with distillation) are of Auto-Prox's own implementation of these architectures: without
relative positions, and with attention as wide as the tokens however many heads there are. `imagenet_super` is with the
weights of a trained super-network.

![correlations with intervals](autoformer.png)

{chr(10).join(rows)}
"""


def table_of(results: dict[str, dict[str, Any]]) -> list[str]:
    """Render Spearman's rho of every proxy and aggregate with every accuracy."""
    names = next(iter(results.values()))["rows"]
    short = [target.removesuffix("_acc") for target in results]
    lines = [f"| proxy | {' | '.join(short)} |", f"|---|{'---|' * len(short)}"]
    for name in names:
        cells = (cell(result["rows"][name], "spearman") for result in results.values())
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=study.Formatter)
    data = os.environ.get("ZCPIPE_DATA")
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(data) if data else None,
        required=not data,
        help=f"directory with {FILE} (column arch: JSON; accuracies in percent)",
    )
    parser.add_argument("--images", metavar="KIND:PATH", help="real images, as zcpipe run --inputs")
    parser.add_argument("--out", type=Path, default=Path("runs/autoformer"), help="where the table goes")
    parser.add_argument("--docs", type=Path, help="where the page goes; docs, or with --sample --out")
    parser.add_argument("--batch-size", type=int, default=16, help="images in the batch")
    parser.add_argument("--resolution", type=int, default=64, help="side of the images in pixels")
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each")
    parser.add_argument("--sample", type=int, metavar="N", help="only the first N: a smoke test")
    options = parser.parse_args(arguments)
    docs = options.docs or (options.out if options.sample else Path("docs"))
    truth = truth_of(options.data / FILE, options.out)
    texts = tuple(read_truth(truth, TARGETS[0])[0][: options.sample])
    spec = RunSpec(
        space=SPACE,
        dataset="cifar100",
        proxies=proxies(),
        selection=Archs(texts=texts),
        batch_size=options.batch_size,
        resolution=options.resolution,
        inputs=options.images or "noise",
        seed=SEED,
    )
    study.score(spec, options.out / "table", options.workers)
    table = open_table(options.out / "table")
    results = {target: correlated(table, truth, target, options.sample) for target in TARGETS}
    record = {
        "networks": len(texts),
        "batch_size": spec.batch_size,
        "resolution": options.resolution,
        "inputs": "noise" if options.images is None else "images",
        "seed": SEED,
        "resamples": RESAMPLES,
        "targets": results,
    }
    rows, panels = table_of(results), {target.removesuffix("_acc"): result for target, result in results.items()}
    numbers = json.dumps(record, indent=1, allow_nan=False)
    study.publish(docs / "autoformer", numbers, page(record, rows), lambda path: figure(panels, path))
    print("\n".join(rows))


if __name__ == "__main__":
    study.script(main)
