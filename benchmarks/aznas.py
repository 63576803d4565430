"""CPU time of one architecture's whole AZ-NAS scoring, on the 24 listed cells of NAS-Bench-201.

    python -m benchmarks.aznas                    # table
    python -m benchmarks.aznas --json
    python -m benchmarks.aznas --peer CHECKOUT    # beside the published code in a checkout of AZ-NAS

Ours counts everything: the batch, building and initialising the network, probes, passes and reductions. It is held
against

(a) plain eager PyTorch (`benchmarks/eager.py`): initialisation, batch and scoring, but not building its network;
(b) a bare forward and input-gradient backward of our pruned network in channels_last, in plain torch, nothing else;
(c) the multiply-accumulates of (b), forward and backward, at the rate of this core's sgemm of 1024 x 1024.

One thread, interleaved cell by cell, the CPU time of the process, in the environment that worker processes get (memory
that is freed stays with the process). The correctness gate compares our scores with a float64 run of the same weights
and probes. Ratios are those of summed times; the spread is over rounds, or over cells where there is one round.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.cells import CELLS
from benchmarks.eager import EagerNetwork, eager_aznas
from benchmarks.overhead import SmallImages
from zcpipe.inputs import batch_of
from zcpipe.proxies import resolve
from zcpipe.proxies.base import JacobianStatistic, Recipe
from zcpipe.run.process import worker_environment
from zcpipe.run.spec import RunSpec
from zcpipe.scoring.blocks import block_statistics
from zcpipe.scoring.guard import untouched
from zcpipe.scoring.init import initialise
from zcpipe.scoring.measure import Batch, measure, philox_probes
from zcpipe.scoring.rewrite import fast_operations
from zcpipe.scoring.rows import Batches, BuiltSubject, ClassScorer
from zcpipe.scoring.size import count
from zcpipe.spaces.classes import key_classes
from zcpipe.spaces.nasbench201 import SPACES, Cell

SPACE = SPACES[0]
TOLERANCE = {"expressivity": 1e-5, "trainability": 1e-3}  # one ReLU that rounding flips moves trainability by 1e-4
SGEMM = 1024

# Given a cell, prepares what is not counted and returns what is.
Contender = Callable[[Cell], Callable[[], object]]


def spec_of(batch_size: int) -> RunSpec:
    """Return the run whose scoring is measured."""
    proxies = tuple(proxy.name for proxy in resolve("aznas"))
    return RunSpec(space=SPACE.name, dataset="cifar10", proxies=proxies, batch_size=batch_size)


class _Exact(BuiltSubject):
    """A cell as a run sees it, in double precision."""

    @contextmanager
    def network(self, recipe: Recipe, full: bool) -> Iterator[nn.Module]:
        with super().network(recipe, full) as model:
            yield model.double()

    def batch(self, recipe: Recipe) -> Batch:
        return Batch([tensor.double() for tensor in super().batch(recipe).inputs])


def gate(spec: RunSpec) -> dict[str, float]:
    """Return the largest relative errors against float64 over four cells; stop if one is too large."""
    worst = dict.fromkeys(TOLERANCE, 0.0)
    for index in CELLS[:4]:
        cell = SPACE[index]
        row = ClassScorer(spec).score(cell, [cell])[0]
        exact = measure(_Exact(spec, cell, 0, Batches(spec)), resolve(TOLERANCE)).scores
        for name in TOLERANCE:
            ours, true = float(row[name]), float(exact[name])  # type: ignore[arg-type]
            worst[name] = max(worst[name], 0.0 if ours == true else abs(ours - true) / abs(true))
    if any(worst[name] > TOLERANCE[name] for name in TOLERANCE):
        sys.exit(f"correctness gate: relative errors {worst} exceed {TOLERANCE}")
    return worst


def ours(spec: RunSpec) -> Contender:
    """Score a cell as a run does."""
    scorer = ClassScorer(spec)
    return lambda cell: lambda: scorer.score(cell, [cell])


def small() -> Contender:
    """Score a cell as a run does, on one image of 8x8 pixels: what is left is the fixed cost of an architecture."""
    scorer = SmallImages(spec_of(1))
    return lambda cell: lambda: scorer.score(cell, [cell])


def both_ways(spec: RunSpec) -> Contender:
    """Run our forward and local backward alone: weights and probes are there, nothing is measured."""
    batch = batch_of(spec, 0).images

    def prepare(cell: Cell) -> Callable[[], object]:
        built, key = SPACE.build(cell, "cifar10"), SPACE.key(cell)
        model = initialise(built.model, seed=0, space=SPACE.name, scope=key)
        modules = dict(model.named_modules())
        draw, probes = philox_probes(0, SPACE.name, key, 0), {}

        def keep(block: str, output: Tensor) -> Tensor:
            return probes.setdefault(block, draw(block, output)) if block not in probes else probes[block]

        nothing = JacobianStatistic("nothing", "", lambda g_in, g_out: None, lambda moments: [0.0] * len(moments))

        def run() -> object:
            return block_statistics(model, modules, [batch], built.blocks, [nothing], keep)

        def guarded() -> float:
            with untouched(modules), fast_operations(modules):
                run()  # draws the probes
                start = time.process_time()
                run()
                return time.process_time() - start

        return guarded

    return prepare


def bare(spec: RunSpec) -> Contender:
    """Run the pruned network forward and backward to its input in plain torch."""
    batch = batch_of(spec, 0).images

    def prepare(cell: Cell) -> Callable[[], object]:
        model = initialise(SPACE.build(cell, "cifar10").model).to(memory_format=torch.channels_last).train()
        model.requires_grad_(False)
        inputs = batch.clone().requires_grad_()

        def run() -> None:
            output = model(inputs)
            output.backward(torch.ones_like(output))

        return run

    return prepare


def eager(spec: RunSpec) -> Contender:
    """Score a cell as one would write it in plain PyTorch."""

    def prepare(cell: Cell) -> Callable[[], object]:
        model = EagerNetwork(cell)
        return lambda: eager_aznas(model, spec.batch_size)

    return prepare


def published(checkout: Path, batch_size: int) -> Contender:
    """Score a cell with the published code; it asks for CUDA, so that call is neutralised."""
    sys.path[:0] = [str(checkout / "NB201")]
    torch.nn.Module.cuda = lambda self, device=None: self  # type: ignore[assignment,method-assign]
    from custom.tss_model import TinyNetwork
    from xautodl.models.cell_searchs import CellStructure
    from ZeroShotProxy.compute_az_nas_score import compute_nas_score

    def prepare(cell: Cell) -> Callable[[], object]:
        model = TinyNetwork(16, 5, CellStructure.str2structure(str(cell)), 10)
        return lambda: compute_nas_score(model, None, None, 32, batch_size)

    return prepare


def sgemm_seconds() -> float:
    """CPU time of one multiply-accumulate of a large float32 matrix product."""
    a, b = torch.randn(SGEMM, SGEMM), torch.randn(SGEMM, SGEMM)
    start = time.process_time()
    a @ b
    return (time.process_time() - start) / SGEMM**3


def live_macs(model: nn.Module) -> int:
    """Multiply-accumulates of a pruned network for one image."""
    return count(model, [torch.empty(1, 3, 32, 32)]).macs


def run(contenders: dict[str, Contender], rounds: int, cells: Sequence[int] = CELLS) -> dict[str, np.ndarray]:
    """Return the seconds of each contender, [rounds, cells]."""
    seconds = {name: np.zeros((rounds, len(cells))) for name in (*contenders, "sgemm")}
    for r in range(rounds):
        for i, index in enumerate(cells):
            for name, prepare in contenders.items():
                step = prepare(SPACE[index])
                start = time.process_time()
                returned = step()
                own = returned if isinstance(returned, float) else time.process_time() - start
                seconds[name][r, i] = own
            seconds["sgemm"][r, i] = sgemm_seconds()
    return seconds


def space_speedup(seconds: dict[str, np.ndarray], macs: np.ndarray) -> float:
    """Extrapolate to the whole space: all cells for the eager code, one network a key class for ours.

    Eager code pays the mean of the sample for each of 15,625 cells. Ours is taken as a + b * (live
    multiply-accumulates), fitted on the sample, and summed over the representatives of the 5,260 classes.
    """
    slope, constant = np.polyfit(macs, seconds["zcpipe"].mean(0), 1)
    representatives = key_classes(SPACE).representative
    live = [live_macs_of(SPACE[int(index)]) for index in representatives]
    ours = constant * len(live) + slope * sum(live)
    return float(len(SPACE) * seconds["eager"].mean() / ours)


def live_macs_of(cell: Cell) -> int:
    """Multiply-accumulates of a cell's network without its dead edges."""
    alive = tuple(name if lives else "none" for name, lives in zip(cell.operations, cell.live, strict=True))
    return SPACE.size(Cell(alive), "cifar10").macs  # type: ignore[arg-type]


def result_of(seconds: dict[str, np.ndarray], macs: np.ndarray, batch_size: int) -> dict[str, object]:
    """Return what the benchmark reports."""
    total = seconds["zcpipe"]
    flops = 2 * batch_size * macs * np.median(seconds["sgemm"])  # forward and the input's gradient
    ratios: dict[str, tuple[np.ndarray, np.ndarray]] = {
        "speedup_over_eager": (seconds["eager"], total),
        "cost_over_bare": (total, seconds["bare"]),
        "cost_over_flops": (total, np.broadcast_to(flops, total.shape)),
        "statistics_share": (total - seconds["both_ways"], total),
    }
    result: dict[str, object] = {name: float(a.sum() / b.sum()) for name, (a, b) in ratios.items()}
    result["overhead_ms"] = float(1000 * seconds["small"].mean())
    result["space_speedup"] = space_speedup(seconds, macs)
    result["spread"] = {name: spread_of(a, b) for name, (a, b) in ratios.items()}
    result["cpu_ms"] = {name: float(1000 * s.mean()) for name, s in seconds.items() if name != "sgemm"}
    result["sgemm_gflops"] = float(2e-9 / np.median(seconds["sgemm"]))
    if "published" in seconds:
        result["eager_over_published"] = float(seconds["eager"].sum() / seconds["published"].sum())
    return result


def spread_of(a: np.ndarray, b: np.ndarray) -> float:
    """Standard deviation of a ratio over rounds, or over cells where there is one round."""
    values = a.sum(1) / b.sum(1) if len(a) > 1 else (a / b)[0]
    return statistics.stdev(values.tolist())


def as_a_worker(module: str) -> None:
    """Start a benchmark again in the environment of worker processes, which only a new process can have."""
    if os.environ.get("ZCPIPE_BENCHMARK") is None:
        environment = {**worker_environment(), "ZCPIPE_BENCHMARK": "1"}
        os.execve(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]], environment)
    gc.freeze()
    gc.set_threshold(20_000)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2, help="repetitions over the 24 cells")
    parser.add_argument("--peer", type=Path, help="a checkout of the published AZ-NAS code")
    options = parser.parse_args()
    if options.rounds < 1 or options.batch_size < 2:
        parser.error("--rounds must be at least 1 and --batch-size at least 2")
    if options.peer and not (options.peer / "NB201" / "ZeroShotProxy").is_dir():
        parser.error(f"--peer: {options.peer} is no checkout of AZ-NAS (it has no NB201/ZeroShotProxy)")
    as_a_worker("benchmarks.aznas")
    torch.set_num_threads(1)
    spec = spec_of(options.batch_size)
    errors = gate(spec)
    contenders = {"zcpipe": ours(spec), "bare": bare(spec), "eager": eager(spec), "both_ways": both_ways(spec)}
    contenders["small"] = small()
    if options.peer:
        contenders["published"] = published(options.peer, options.batch_size)
    macs = np.array([live_macs(SPACE.build(SPACE[index], "cifar10").model) for index in CELLS])
    seconds = run(contenders, options.rounds)
    result = {**result_of(seconds, macs, options.batch_size), "relative_errors": errors, "rounds": options.rounds}
    print_result(result, options.json)


def print_result(result: dict[str, object], as_json: bool) -> None:
    """Print a result as one JSON object or one line a key."""
    if as_json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        if isinstance(value, dict):
            print(f"{name:22} " + ", ".join(f"{key} {number:.4g}" for key, number in value.items()))
        else:
            print(f"{name:22} {value:.4g}")


if __name__ == "__main__":
    main()
