"""CPU time of the 13 proxies of NAS-Bench-Suite-Zero, and of all others, on the 24 listed cells of NAS-Bench-201.

    python -m benchmarks.suite                    # table
    python -m benchmarks.suite --json
    python -m benchmarks.suite --peer CHECKOUT    # beside the published code in a checkout of NASLib

Ours counts everything, as a run does: the batch, building and initialising the networks, probes, passes and reductions.
It is held against plain eager PyTorch (`benchmarks/eager_suite.py`), one measure at a time as the published suites take
them, each with its own copies and its gc.collect(); building the network and drawing weights and batch are not counted
there, nor for the published code. One thread, interleaved cell by cell, the CPU time of the process, in the environment
that worker processes get. What was there before the first cell is frozen, so the ten gc.collect() of an architecture
cost eager and published code next to nothing; ``gc_collect_ms`` is what each would cost them in a process that freezes
nothing, as theirs do.

- ``speedup_over_eager``: the 13 in eager PyTorch over ours in one run; ``speedup_without_grasp``: both without grasp;
- ``all_over_aznas``: ours, the 13 without grasp together with the four of AZ-NAS, over the four alone;
- ``grasp_over_aznas``: what grasp adds to those 16, over the four alone;
- ``per_sample_ms``: each proxy of per-sample gradients or curvature alone;
- ``fused_over_paper``: the 17 under protocol ``fused`` over the 17 under ``paper``;
- ``eager_over_published``: with ``--peer``, the baseline over the code it stands for.

Ratios are those of summed times; the spread is over rounds, or over cells where there is one round.

Before anything is timed, values are compared on the same weights and batch: ours in float64 and in float32 with the
baseline's in float64, and with ``--peer`` the baseline's with the published code's in float32. Sums of signed terms are
held relative to the sum of the terms' absolute values. zen draws its own weights and is compared with the published
code alone; flops are counted by another convention than our macs.

``--peer`` reads the measures only, on the baseline's network. They import tensorwatch, of which the counting of
operations is needed: ``pip install --no-deps tensorwatch`` in whatever place is on the path.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import importlib.util
import math
import sys
import time
import types
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import zcpipe
from benchmarks.aznas import SPACE, Contender, as_a_worker, ours, print_result, run, spread_of
from benchmarks.cells import CELLS
from benchmarks.eager_suite import MEASURES, SuiteNetwork, grasp_terms, measured, plain_terms
from zcpipe.proxies import resolve
from zcpipe.run.spec import RunSpec
from zcpipe.scoring.init import initialise
from zcpipe.spaces.nasbench201 import Cell

NAMES = {"flops": "macs", "jacov": "jacob_cov"}  # of the baseline's measures that have another name here
SUITE = tuple(NAMES.get(name, name) for name in MEASURES)
PER_SAMPLE = ("zico", "gradsign", "ntk_condition", "vkdnw")
COMPARED = tuple(name for name in MEASURES if name not in ("zen", "flops"))
TOLERANCE = 1e-4
# Rounding flips ReLUs, and epe_nas takes logarithms of correlations near 0: in float32 the baseline's own epe_nas is
# off by 5e-3, the other sums by up to 4e-4. That the mathematics is the same is what float64 shows.
SINGLE = {"epe_nas": 5e-2, "fisher": 1e-3, "snip": 1e-3, "grad_norm": 1e-3}
SIGNED = {"plain": plain_terms, "grasp": grasp_terms}
CLASSES = SPACE.datasets["cifar10"].classes

Published = Callable[[str, nn.Module, Tensor, Tensor], float]


def spec_of(proxies: Iterable[str], batch_size: int, protocol: str = "paper") -> RunSpec:
    """Return the run whose scoring is measured."""
    names = tuple(dict.fromkeys(proxy.name for proxy in resolve(proxies)))
    return RunSpec(
        space=SPACE.name,
        dataset="cifar10",
        proxies=names,
        batch_size=batch_size,
        protocol=protocol,  # type: ignore[arg-type] - checked by the model
    )


def our_contenders(batch_size: int) -> dict[str, Contender]:
    """Return the runs of ours that are timed."""
    without = [name for name in SUITE if name != "grasp"]
    sets: dict[str, Iterable[str]] = {
        "suite": SUITE,
        "suite_without_grasp": without,
        "all": [*SUITE, "aznas"],
        "all_without_grasp": [*without, "aznas"],
        "aznas": ["aznas"],
        **{name: [name] for name in PER_SAMPLE},
    }
    contenders = {name: ours(spec_of(proxies, batch_size)) for name, proxies in sets.items()}
    contenders["all_fused"] = ours(spec_of(sets["all"], batch_size, "fused"))
    return contenders


def one_by_one(measure: Published, batch_size: int, prefix: str) -> dict[str, Contender]:
    """Return a contender for each measure, on networks and a batch that are there before the clock runs."""
    batch = labelled_batch(batch_size)

    def contender(name: str) -> Contender:
        def prepare(cell: Cell) -> Callable[[], object]:
            network = SuiteNetwork(cell, CLASSES).train()
            return lambda: [measure(name, network, *batch)]  # a number by itself would be taken for its seconds

        return prepare

    return {f"{prefix}/{name}": contender(name) for name in MEASURES}


def labelled_batch(batch_size: int) -> tuple[Tensor, Tensor]:  # [N, 3, 32, 32], [N]
    """Draw images and classes."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch_size, *SPACE.datasets["cifar10"].input_shape, generator=generator)
    return images, torch.randint(0, CLASSES, (batch_size,), generator=generator)


def published(checkout: Path) -> Published:
    """Return the published measures; packages that would import all of NASLib and tensorwatch are stood in for."""
    found = importlib.util.find_spec("tensorwatch")
    if found is None or not found.submodule_search_locations:
        sys.exit("--peer: the published measures import tensorwatch: pip install --no-deps tensorwatch")
    naslib, watch = checkout / "naslib", Path(found.submodule_search_locations[0])
    for name, path in {"naslib": naslib, "naslib.predictors": naslib / "predictors"}.items():
        _stand_in(name, path)
    _stand_in("tensorwatch.model_graph", watch / "model_graph")
    tensorwatch = _stand_in("tensorwatch", watch)
    from tensorwatch.model_graph.torchstat_utils import ModelStats

    tensorwatch.ModelStats = ModelStats  # type: ignore[attr-defined]
    from naslib.predictors.utils.pruners.predictive import find_measures

    def measure(name: str, model: nn.Module, inputs: Tensor, targets: Tensor) -> float:
        loader, info = [(inputs, targets)], ("random", 1, CLASSES)
        with contextlib.redirect_stdout(sys.stderr):  # it prints what it catches
            return float(find_measures(model, loader, info, torch.device("cpu"), F.cross_entropy, [name]))

    return measure


def _stand_in(name: str, path: Path) -> types.ModuleType:
    """Stand in for a package, so that its modules can be imported without what its ``__init__`` imports."""
    module = sys.modules[name] = types.ModuleType(name)
    module.__path__ = [str(path)]
    return module


def gate(batch_size: int, peer: Published | None) -> dict[str, dict[str, float]]:
    """Return the largest relative differences over three cells; stop if one is too large."""
    images, targets = labelled_batch(batch_size)
    exact: dict[str, float] = {}
    single: dict[str, float] = {}
    against_peer: dict[str, float] = {}
    for index in CELLS[:3]:
        model, network = twins(SPACE[index])
        if peer:
            values, theirs = (
                _values(partial(measure, model=network, inputs=images, targets=targets), MEASURES, seed=index)
                for measure in (measured, peer)
            )
            _note(against_peer, theirs, values, _scales(values, network, images, targets))
        scores = _ours(model, images, targets)
        model.double(), network.double()
        true = _values(partial(measured, model=network, inputs=images.double(), targets=targets), COMPARED, seed=index)
        scales = _scales(true, network, images.double(), targets)
        _note(single, scores, true, scales)
        _note(exact, _ours(model, images.double(), targets), true, scales)
    for errors, limits in ((exact, {}), (single, SINGLE), (against_peer, {})):
        if any(not error <= limits.get(name, TOLERANCE) for name, error in errors.items()):
            sys.exit(f"correctness gate: a relative error exceeds {limits or TOLERANCE}: {errors}")
    result = {"float64_errors": exact, "float32_errors": single}
    return {**result, "published_errors": against_peer} if peer else result


def twins(cell: Cell) -> tuple[nn.Module, SuiteNetwork]:
    """Return our network of a cell, dead edges included, and the baseline's with the same weights."""
    built = SPACE.build(cell, "cifar10", full=True)
    model = initialise(built.model, seed=0, space=SPACE.name, scope=SPACE.key(cell)).train()
    return model, SuiteNetwork(cell, CLASSES).take(model.state_dict()).train()


def _values(measure: Callable[[str], float], names: Iterable[str], seed: int) -> dict[str, float]:
    torch.manual_seed(seed)  # zen draws
    return {name: measure(name) for name in names}


def _ours(model: nn.Module, images: Tensor, targets: Tensor) -> dict[str, float]:
    """Return our values under the baseline's names and in its units; a failure is not a number there."""
    scores = zcpipe.score(model, images, targets, [NAMES.get(name, name) for name in COMPARED])
    values = {name: scores[NAMES.get(name, name)] for name in COMPARED}
    found = {name: math.nan if value is None else value for name, value in values.items()}
    return {**found, "params": found["params"] / 1e6, "synflow": math.exp(found["synflow"])}


def _scales(values: Mapping[str, float], network: nn.Module, images: Tensor, targets: Tensor) -> dict[str, float]:
    """Return what differences are relative to: of signed sums the sum of their terms' absolute values."""
    scales = {name: abs(value) for name, value in values.items()}
    for name, terms in SIGNED.items():
        scales[name] = float(sum(term.abs().sum() for term in terms(copy.deepcopy(network), images, targets)))
    return scales


def _note(
    worst: dict[str, float], values: Mapping[str, float], true: Mapping[str, float], scales: Mapping[str, float]
) -> None:
    """Keep the largest difference of each measure relative to its scale; two that are both undefined agree."""
    for name, value in values.items():
        agree = value == true[name] or (math.isnan(value) and math.isnan(true[name]))
        worst[name] = max(worst.get(name, 0.0), 0.0 if agree else abs(value - true[name]) / scales[name])


def collection_ms() -> float:
    """Return the CPU time of a gc.collect() that finds everything unfrozen, and freeze all that there is."""
    gc.unfreeze()
    gc.collect()
    start = time.process_time()
    gc.collect()
    elapsed = time.process_time() - start
    gc.freeze()
    return 1000 * elapsed


def result_of(seconds: Mapping[str, np.ndarray]) -> dict[str, object]:
    """Return what the benchmark reports."""
    total = {prefix: _sum_of(seconds, prefix) for prefix in ("eager", "published")}
    ratios: dict[str, tuple[np.ndarray, np.ndarray]] = {
        "speedup_over_eager": (total["eager"], seconds["suite"]),
        "speedup_without_grasp": (total["eager"] - seconds["eager/grasp"], seconds["suite_without_grasp"]),
        "all_over_aznas": (seconds["all_without_grasp"], seconds["aznas"]),
        "grasp_over_aznas": (seconds["all"] - seconds["all_without_grasp"], seconds["aznas"]),
        "fused_over_paper": (seconds["all_fused"], seconds["all"]),
    }
    if "published/grasp" in seconds:
        ratios["eager_over_published"] = (total["eager"], total["published"])
    result: dict[str, object] = {name: float(a.sum() / b.sum()) for name, (a, b) in ratios.items()}
    milliseconds = {name: float(1000 * s.mean()) for name, s in seconds.items() if name != "sgemm"}
    result["per_sample_ms"] = {name: milliseconds.pop(name) for name in PER_SAMPLE}
    sums = {prefix: float(1000 * s.mean()) for prefix, s in total.items() if s.any()}
    result["cpu_ms"] = {**sums, **milliseconds}
    result["spread"] = {name: spread_of(a, b) for name, (a, b) in ratios.items()}
    return result


def _sum_of(seconds: Mapping[str, np.ndarray], prefix: str) -> np.ndarray:  # [rounds, cells]
    return sum((s for name, s in seconds.items() if name.startswith(f"{prefix}/")), np.zeros_like(seconds["suite"]))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--cells", type=int, default=len(CELLS), help="how many of the 24 cells, from the first on")
    parser.add_argument("--rounds", type=int, default=1, help="repetitions over the cells")
    parser.add_argument("--peer", type=Path, help="a checkout of NASLib, branch Develop")
    options = parser.parse_args()
    if options.rounds < 1 or options.batch_size < 2:
        parser.error("--rounds must be at least 1 and --batch-size at least 2")
    if not 1 <= options.cells <= len(CELLS):
        parser.error(f"--cells must be from 1 to {len(CELLS)}")
    if options.peer and not (options.peer / "naslib" / "predictors" / "utils" / "pruners").is_dir():
        parser.error(f"--peer: {options.peer} is no checkout of NASLib (it has no naslib/predictors/utils/pruners)")
    as_a_worker("benchmarks.suite")
    torch.set_num_threads(1)
    peer = published(options.peer) if options.peer else None
    errors = gate(options.batch_size, peer)
    contenders = {**our_contenders(options.batch_size), **one_by_one(measured, options.batch_size, "eager")}
    if peer:
        contenders |= one_by_one(peer, options.batch_size, "published")
    for prepare in contenders.values():
        prepare(SPACE[CELLS[3]])()  # kernels are made when first used; this cell has every operation
    collection = collection_ms()
    seconds = run(contenders, options.rounds, CELLS[: options.cells])
    result = {
        **result_of(seconds),
        **errors,
        "gc_collect_ms": collection,
        "rounds": options.rounds,
        "cells": options.cells,
    }
    print_result(result, options.json)


if __name__ == "__main__":
    main()
