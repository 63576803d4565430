r"""How every cheap proxy ranks NDS (ImageNet accuracy) and NAS-Bench-101, with intervals, beside published figures.

    ZCPIPE_DATA=data python pipelines/spaces.py --batch-size 8 --resolution 128 \
        --images npz:data/cifar10_train_1000.npz --workers 2

Scores the architectures of the official NDS files that are whole (DARTS, ENAS, Amoeba, ResNeXt-A) on noise, and those
of a sample of NAS-Bench-101 on real images where --images gives some; correlates all columns and aggregates with the
accuracies. Writes docs/spaces_ranking.md with its figure, and the numbers behind them as JSON.

Tables are kept under --out and resumed.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import study
from spaces_report import figure, page

from zcpipe import get_space
from zcpipe.proxies import get_proxy, list_proxies
from zcpipe.rank.population import correlate_table
from zcpipe.run import Archs, RunSpec
from zcpipe.table import open_table
from zcpipe.truth import align, read_truth, reader

SEED = 0
RESAMPLES = 1000


@dataclass(frozen=True)
class Population:
    """Architectures with trained accuracies: a file of the data directory, and what is in it."""

    name: str
    space: str
    dataset: str
    file: str
    target: str

    def truth(self, data: Path, out: Path) -> Path:
        """Return a Parquet file of the architectures' texts and accuracies, made anew: the data may be others."""
        path = out / f"{self.name}-truth.parquet"
        with study.whole(path) as partial:
            if self.space == "nasbench101":
                pq.write_table(_nasbench101(data / self.file, self.target), partial)
            else:
                reader("nds").import_file(data / self.file, partial)
        return path


POPULATIONS = (
    Population("darts", "nds/darts", "imagenet", "nds/DARTS_in.json", "imagenet_test_50"),
    Population("enas", "nds/enas", "imagenet", "nds/ENAS_in.json", "imagenet_test_50"),
    Population("amoeba", "nds/amoeba", "imagenet", "nds/Amoeba_in.json", "imagenet_test_50"),
    Population("resnext-a", "nds/resnext-a", "imagenet", "nds/ResNeXt-A_in.json", "imagenet_test_50"),
    Population("nasbench101", "nasbench101", "cifar10", "nasbench101_sample.parquet", "cifar10_acc_108"),
)


def _nasbench101(file: Path, target: str) -> pa.Table:
    space, rows = get_space("nasbench101"), pq.read_table(file)
    texts = [
        str(space.cell(json.loads(adjacency), json.loads(operations)))  # type: ignore[attr-defined]
        for adjacency, operations in zip(rows["adjacency"].to_pylist(), rows["ops"].to_pylist(), strict=True)
    ]  # both are lists as JSON
    return pa.table({"arch": texts, target: rows[target]})


def cheap() -> tuple[str, ...]:
    """Return the proxies that cost a few passes at most."""
    return tuple(name for name in list_proxies() if get_proxy(name).cost in ("static", "cheap"))


def ranked(population: Population, options: argparse.Namespace) -> dict[str, Any]:
    """Score a population and correlate everything with its accuracies."""
    archs, values = read_truth(population.truth(options.data, options.out), population.target)
    asked = archs[: options.sample], values[: options.sample]
    images = options.images if population.dataset == "cifar10" else None
    spec = RunSpec(
        space=population.space,
        dataset=population.dataset,
        proxies=cheap(),
        selection=Archs(texts=tuple(asked[0])),
        batch_size=options.batch_size,
        resolution=options.resolution if population.dataset == "imagenet" else None,
        inputs=images or "noise",
        seed=SEED,
    )
    directory = options.out / population.name
    study.score(spec, directory, options.workers)
    table = open_table(directory)
    # What else earlier runs have put there has no accuracy here.
    known = align(table.to_arrow(["arch"])["arch"].to_pylist(), asked)
    rows = correlate_table(table, known, population.target, {}, RESAMPLES)
    return {
        "space": population.space,
        "dataset": population.dataset,
        "networks": len(asked[0]),
        "inputs": "data" if images else "noise",
        "resolution": spec.resolution or get_space(population.space).datasets[population.dataset].input_shape[1],
        "target": population.target,
        "rows": {row.name: study.without_nan(asdict(row)) for row in rows},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study."""
    names = [population.name for population in POPULATIONS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=study.Formatter)
    data = os.environ.get("ZCPIPE_DATA")
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(data) if data else None,
        required=not data,
        help="directory with nds/*_in.json and nasbench101_sample.parquet (columns adjacency, ops, cifar10_acc_108)",
    )
    parser.add_argument("--images", metavar="KIND:PATH", help="real images for CIFAR-10, as zcpipe run --inputs")
    parser.add_argument("--populations", type=study.listed, default=",".join(names), help="which, by their names")
    parser.add_argument("--out", type=Path, default=Path("runs/spaces"), help="where tables go")
    parser.add_argument("--docs", type=Path, help="where the page goes; docs, or with --sample the folder of --out")
    parser.add_argument("--batch-size", type=int, default=8, help="images in the batch")
    parser.add_argument("--resolution", type=int, help="side of ImageNet's images; its own by default")
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each")
    parser.add_argument("--sample", type=int, metavar="N", help="only the first N of each: a smoke test")
    options = parser.parse_args(arguments)
    study.refuse_unknown(parser, "population", options.populations, names)
    docs = options.docs or (options.out if options.sample else Path("docs"))
    results = {p.name: ranked(p, options) for p in POPULATIONS if p.name in options.populations}
    record = {"batch_size": options.batch_size, "seed": SEED, "resamples": RESAMPLES, "populations": results}
    numbers = json.dumps(record, indent=1, allow_nan=False)
    study.publish(docs / "spaces_ranking", numbers, page(record), lambda path: figure(results, path))


if __name__ == "__main__":
    study.script(main)
