"""CPU time of one architecture's whole AZ-NAS scoring against plain eager PyTorch, on the 24 listed cells.

    python -m benchmarks.aznas                    # table
    python -m benchmarks.aznas --json
    python -m benchmarks.aznas --peer CHECKOUT    # beside the published code in a checkout of AZ-NAS

Ours counts everything: the batch, building and initialising the network, probes, passes and reductions. The baselines
count initialisation, the batch and scoring, but not the construction of their network. One thread, interleaved, the
CPU time of the process; the correctness gate compares our scores with a float64 run of the same weights and probes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks.cells import CELLS
from benchmarks.eager import EagerNetwork, eager_aznas
from zcpipe.proxies import resolve
from zcpipe.run.spec import RunSpec
from zcpipe.scoring.init import initialise
from zcpipe.scoring.measure import measure, philox_probes
from zcpipe.scoring.rows import ClassScorer, noise_batch
from zcpipe.spaces.nasbench201 import SPACES, Cell

SPACE = SPACES[0]
TOLERANCE = {"expressivity": 1e-5, "trainability": 1e-3}  # one ReLU that rounding flips moves trainability by 1e-4


def gate(spec: RunSpec) -> dict[str, float]:
    """Return the largest relative errors against float64 over four cells; stop if one is too large."""
    worst = dict.fromkeys(TOLERANCE, 0.0)
    for index in CELLS[:4]:
        cell = SPACE[index]
        row = ClassScorer(spec).score(cell, [cell])[0]
        built, key = SPACE.build(cell, "cifar10"), SPACE.key(cell)
        exact = measure(
            initialise(built.model, seed=0, space=SPACE.name, scope=key).double(),
            [noise_batch(spec, 0).double()],
            resolve(TOLERANCE),
            built.blocks,
            philox_probes(0, SPACE.name, key, 0),
            partial(SPACE.size, cell, "cifar10"),
        ).scores
        for name in TOLERANCE:
            ours, true = float(row[name]), float(exact[name])  # type: ignore[arg-type]
            worst[name] = max(worst[name], 0.0 if ours == true else abs(ours - true) / abs(true))
    if any(worst[name] > TOLERANCE[name] for name in TOLERANCE):
        sys.exit(f"correctness gate: relative errors {worst} exceed {TOLERANCE}")
    return worst


def published(checkout: Path, batch_size: int) -> Callable[[Cell], Callable[[], object]]:
    """Return how to prepare the published code's score of a cell; it asks for CUDA, so that call is neutralised."""
    sys.path[:0] = [str(checkout / "NB201")]
    torch.nn.Module.cuda = lambda self, device=None: self  # type: ignore[assignment,method-assign]
    from custom.tss_model import TinyNetwork
    from xautodl.models.cell_searchs import CellStructure
    from ZeroShotProxy.compute_az_nas_score import compute_nas_score

    def prepare(cell: Cell) -> Callable[[], object]:
        model = TinyNetwork(16, 5, CellStructure.str2structure(str(cell)), 10)
        return lambda: compute_nas_score(model, None, None, 32, batch_size)

    return prepare


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=1, help="repetitions over the 24 cells")
    parser.add_argument("--peer", type=Path, help="a checkout of the published AZ-NAS code")
    options = parser.parse_args()
    torch.set_num_threads(1)
    proxies = tuple(proxy.name for proxy in resolve("aznas"))
    spec = RunSpec(space=SPACE.name, dataset="cifar10", proxies=proxies, batch_size=options.batch_size)
    errors = gate(spec)
    contenders: dict[str, Callable[[Cell], Callable[[], object]]] = {
        "zcpipe": lambda cell: lambda: ClassScorer(spec).score(cell, [cell]),
        "eager": lambda cell: _eager(cell, options.batch_size),
    }
    if options.peer:
        contenders["published"] = published(options.peer, options.batch_size)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(options.rounds):
        for index in CELLS:
            for name, prepare in contenders.items():
                run = prepare(SPACE[index])
                start = time.process_time()
                run()
                seconds[name].append(time.process_time() - start)
    _report(seconds, errors, options.json)


def _eager(cell: Cell, batch_size: int) -> Callable[[], object]:
    model = EagerNetwork(cell)
    return lambda: eager_aznas(model, batch_size)


def _report(seconds: dict[str, list[float]], errors: dict[str, float], as_json: bool) -> None:
    means = {name: statistics.fmean(values) for name, values in seconds.items()}
    result = {
        "cpu_ms": {name: 1000 * mean for name, mean in means.items()},
        "speedup_over_eager": means["eager"] / means["zcpipe"],
        "relative_errors": errors,
        "samples": len(seconds["zcpipe"]),
    }
    if "published" in means:
        result["eager_over_published"] = means["eager"] / means["published"]
    if as_json:
        print(json.dumps(result))
        return
    for name, mean in means.items():
        print(f"{name:10} {1000 * mean:8.1f} ms CPU per architecture (mean of {result['samples']})")
    print(f"zcpipe is {result['speedup_over_eager']:.2f}x the eager baseline")
    if "published" in means:
        print(f"the eager baseline takes {result['eager_over_published']:.3f} of the published code's time")


if __name__ == "__main__":
    main()
