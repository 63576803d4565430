r"""AZ-NAS's search of mbv2 at small images: are its limits kept, what does evolution find, would full size agree?

    python pipelines/mbv2_search.py --workers 2
    python pipelines/mbv2_search.py --budget 200 --seeds 1 --limits 450M --full-size 20 --docs runs/mbv2

For each of the published limits (FLOPs and layers) and each way of proposing candidates it searches, then ranks all
candidates of all these searches, and the networks that the published searches found, as one population. Then some of
the candidates are scored at 224 x 224 pixels. Writes docs/mbv2_search.md with its figure and numbers.

Searches and scores are kept under --out and resumed; with another --resolution or --batch-size give another --out.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import study
from mbv2_published import LAYERS, SEARCHED, written_out
from mbv2_report import figure, page

from zcpipe import get_space
from zcpipe.progress import candidates_done
from zcpipe.rank import correlate, log_rank
from zcpipe.run import Archs, RunSpec
from zcpipe.search import AzNasSpec, aznas_search
from zcpipe.search.aznas import HISTORY
from zcpipe.spaces.base import PublishedFlops
from zcpipe.table import open_table

# The four of AZ-NAS, more is better of each.
PROXIES = ("expressivity", "progressivity", "trainability", "complexity")
DIRECTIONS = dict.fromkeys(PROXIES, "higher")
LIMITS = {"450M": 450e6, "600M": 600e6, "1G": 1e9}


@dataclass(frozen=True)
class Case:
    """A way of proposing candidates."""

    name: str
    proposals: Literal["evolution", "random"]
    population: int


CASES = (
    Case("evolution, population 1024", "evolution", 1024),  # as published, for fifty times as many candidates
    Case("evolution, population 128", "evolution", 128),
    Case("random", "random", 1024),
)


def spec_of(options: argparse.Namespace, texts: Sequence[str] = (), resolution: int | None = None) -> RunSpec:
    """Return how networks are scored: those with these texts, or those that a search proposes."""
    return RunSpec(
        space="mbv2",
        dataset="imagenet",
        proxies=PROXIES,
        batch_size=options.batch_size,
        resolution=resolution,
        **({"selection": Archs(texts=tuple(texts))} if texts else {}),
    )


def searched(options: argparse.Namespace, limit: str, case: Case) -> dict[str, Any]:
    """Search under all seeds, and say what that took; what was there before took nothing.

    ``history`` is where the candidates are now: no stage keeps it, for --out may be moved.
    """
    spec = AzNasSpec(
        run=spec_of(options, resolution=options.resolution),
        budget=options.budget,
        seeds=options.seeds,
        proposals=case.proposals,
        population=case.population,
        max_flops=int(LIMITS[limit]),
        max_layers=LAYERS[LIMITS[limit]],
    )
    out = options.out / f"{limit}-{case.proposals}-{case.population}"

    def search() -> dict[str, Any]:
        fresh, before, cpu = not out.exists(), time.monotonic(), _cpu()
        with candidates_done(f"{limit}, {case.name}") as progress:
            found = aznas_search(spec, out, options.workers, progress=progress)
        return {
            "limit": limit,
            "case": case.name,
            "failed": found.failed,
            "tries": sum(one.tries for one in found.searches),
            "candidates": sum(len(one.archs) for one in found.searches),
            "wall_seconds": time.monotonic() - before if fresh else None,
            "cpu_seconds": _cpu() - cpu if fresh else None,
        }

    result: dict[str, Any] = study.stage(out.with_suffix(".json"), spec.model_dump(mode="json"), search)
    return {**result, "history": out / HISTORY}


def _cpu() -> float:
    """Return the CPU seconds of this process and of its workers that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def scored(options: argparse.Namespace, name: str, texts: Sequence[str], resolution: int | None = None) -> pa.Table:
    """Score networks into a table, and return them, by index, with their proxies: none that earlier runs asked for."""
    study.score(spec_of(options, texts, resolution), options.out / name, options.workers)
    return open_table(options.out / name).lookup(texts, ["index", "arch", *PROXIES]).sort_by("index")


def points(budget: int) -> list[int]:
    """Return after how many candidates curves are drawn."""
    return np.unique(np.linspace(1, budget, 101).round().astype(int)).tolist()


def summarised(result: dict[str, Any], aggregate: np.ndarray, budget: int) -> dict[str, Any]:
    """Add to a case what its searches proposed and found, by the aggregate over the limit's whole population."""
    space = get_space("mbv2")
    assert isinstance(space, PublishedFlops)
    history = pq.read_table(result["history"])
    seeds = history["seed"].to_numpy()
    archs = [space.parse(text) for text in history["arch"].to_pylist()]
    curves, picks = [], []

    def rounded(values: np.ndarray) -> list[float | None]:
        """Read a curve off at the points; there is none before a candidate of every seed has an aggregate."""
        return [round(float(values[n - 1]), 4) if values[n - 1] == values[n - 1] else None for n in points(budget)]

    for seed in np.unique(seeds):
        at = np.flatnonzero(seeds == seed)
        curve = np.fmax.accumulate(aggregate[at])
        curves.append(np.pad(curve, (0, budget - len(curve)), mode="edge"))
        pick = int(at[np.nanargmax(aggregate[at])])
        picks.append(
            {
                "seed": int(seed),
                "number": int(history["number"][pick].as_py()),
                "aggregate": float(aggregate[pick]),
                "flops": space.published_flops(archs[pick], "imagenet"),
                "layers": space.num_layers(archs[pick]),
                "params": history["params"][pick].as_py(),
                "arch": str(archs[pick]),
            }
        )
    return {
        **{name: value for name, value in result.items() if name != "history"},
        "most_flops": max(space.published_flops(arch, "imagenet") for arch in archs),
        "most_layers": max(space.num_layers(arch) for arch in archs),
        "picks": picks,
        "curve": rounded(np.mean(curves, axis=0)),
        "low": rounded(np.min(curves, axis=0)),
        "high": rounded(np.max(curves, axis=0)),
    }


def of_limit(options: argparse.Namespace, limit: str) -> dict[str, Any]:
    """Search under one limit, and rank everything as one population."""
    results = [searched(options, limit, case) for case in CASES]
    texts = [written_out(short) for short in SEARCHED[LIMITS[limit]]]
    published = scored(options, f"{limit}-published", texts, options.resolution)
    # What searches share is there as often as they found it: twice in a population ranks as once, with equal values.
    parts = [published, *(pq.read_table(result["history"]) for result in results)]
    columns = {name: np.concatenate([part[name].to_numpy() for part in parts]) for name in PROXIES}
    aggregate = log_rank(columns, DIRECTIONS)
    ends = np.cumsum([len(part) for part in parts])
    pieces = np.split(aggregate, ends[:-1])
    return {
        "limit": limit,
        "layers": LAYERS[LIMITS[limit]],
        "population": int(np.isfinite(aggregate).sum()),
        "published": [
            {"arch": text, **placed(float(value), aggregate)}
            for text, value in zip(published["arch"].to_pylist(), pieces[0], strict=True)
        ],
        "cases": [summarised(result, piece, options.budget) for result, piece in zip(results, pieces[1:], strict=True)],
    }


def placed(value: float, population: np.ndarray) -> dict[str, Any]:
    """Return an aggregate and its place in a population; a network of which a proxy failed has neither."""
    if value != value:
        return {"aggregate": None, "place": None}
    return {"aggregate": value, "place": int((population > value).sum()) + 1}


def agreement(options: argparse.Namespace, limit: str) -> dict[str, Any]:
    """Score candidates of the first case at full size, and correlate both sizes.

    They are drawn evenly from the history of all seeds; those of which a proxy failed at either size are left out.
    """
    history = pq.read_table(options.out / f"{limit}-evolution-{CASES[0].population}" / HISTORY)
    places = np.unique(np.linspace(0, len(history) - 1, options.full_size).round().astype(int))
    texts = list(dict.fromkeys(history["arch"].take(places).to_pylist()))
    full = scored(options, f"{limit}-224", texts)
    small = scored(options, f"{limit}-{options.resolution}", texts, options.resolution)
    whole = ~np.isnan([part[name].to_numpy() for part in (full, small) for name in PROXIES]).any(axis=0)
    columns = {name: small[name].to_numpy()[whole] for name in PROXIES}
    at_full = {name: full[name].to_numpy()[whole] for name in PROXIES}
    columns["aznas"], at_full["aznas"] = log_rank(columns, DIRECTIONS), log_rank(at_full, DIRECTIONS)
    return {
        "limit": limit,
        "networks": int(whole.sum()),
        **study.without_nan({name: correlate(columns[name], at_full[name]).spearman for name in columns}),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=study.Formatter)
    parser.add_argument("--budget", type=int, default=2000, help="candidates that a search scores")
    parser.add_argument("--seeds", type=int, default=3, help="searches of each case")
    parser.add_argument("--limits", type=study.listed, default=list(LIMITS), help=f"some of {','.join(LIMITS)}")
    parser.add_argument("--resolution", type=int, default=64, help="side of the images in pixels")
    parser.add_argument("--batch-size", type=int, default=16, help="images in the batch")
    parser.add_argument("--full-size", type=int, default=200, help="candidates to score at 224 pixels, too")
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/mbv2_search"), help="where searches are kept")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="where the page goes")
    options = parser.parse_args(arguments)
    study.refuse_unknown(parser, "limit", options.limits, LIMITS)
    record = {
        "budget": options.budget,
        "seeds": options.seeds,
        "resolution": options.resolution,
        "batch_size": options.batch_size,
        "workers": options.workers,
        "points": points(options.budget),
        "limits": [of_limit(options, limit) for limit in options.limits],
        "full_size": [agreement(options, limit) for limit in options.limits],
    }
    text = page(record)
    study.publish(options.docs / "mbv2_search", study.dumped(record), text, lambda path: figure(record, path))
    print(text, end="")


if __name__ == "__main__":
    study.script(main)
