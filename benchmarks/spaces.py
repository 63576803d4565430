"""Time and memory of one architecture's AZ-NAS scoring, space by space, beside plain eager PyTorch.

    python -m benchmarks.spaces --spaces nasbench201,nds/darts --architectures 5
    python -m benchmarks.spaces --spaces nds/darts --resolution 128 --batch-size 8 --json
    python -m benchmarks.spaces --spaces autoformer/tiny --proxies aznas_vit --batch-size 8
    python -m benchmarks.spaces --spaces mbv2 --device cuda   # on a machine with a GPU, both of them on it

The first random draws of each space, each scored in a process of its own, in the environment of worker processes and
with one thread: ours as a run does it, and the baseline (`benchmarks/eager.py`) on the same network. Of each process
the CPU seconds of scoring, the least of three rounds after one at small images, and the peak of what scoring held
beyond what was there before. On a GPU it is the time until the device is done, and the peak of what was allocated
there; both in float32 and in one order of sums (`zcpipe/scoring/arithmetic.py`), which torch by itself is not.

- ``speedup``: the baseline's seconds, on the network with its dead layers, over ours;
- ``dead_saves``: the share of the baseline's seconds that leaving the dead layers out saves it. With them it runs them
  forward only, so that this is the least;
- ``dead_macs``: the share of multiply-accumulates that are in dead layers.

Medians over the architectures; seconds and MiB are medians as well, ``most_mib`` the largest.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.eager import eager_aznas
from benchmarks.memory import peak_mib
from zcpipe.proxies import resolve
from zcpipe.run.device import resolve_device
from zcpipe.run.process import worker_environment
from zcpipe.run.spec import RunSpec, Sample
from zcpipe.scoring.arithmetic import plain_arithmetic
from zcpipe.scoring.rows import ClassScorer
from zcpipe.scoring.size import count_macs
from zcpipe.spaces import Architecture, Space, get_space
from zcpipe.spaces.base import DrawsByDataset

CONTENDERS = ("zcpipe", "eager", "eager_pruned")
WARM_UP = 32  # pixels
ROUNDS = 3  # of which the fastest counts: the others were disturbed


class _Maps(nn.Module):
    """A built network whose block maps are collected as it runs."""

    def __init__(self, space: Space[Architecture], arch: Architecture, dataset: str, full: bool) -> None:
        super().__init__()
        self.model, blocks = space.build(arch, dataset, full=full).model, space.slots(arch, dataset).blocks
        self._found: list[Tensor] = []
        for block in blocks:
            self.model.get_submodule(block).register_forward_hook(lambda *given: self._found.append(given[2]))

    def maps(self, x: Tensor) -> list[Tensor]:
        """Return the block maps."""
        self._found.clear()
        self.model(x)
        return list(self._found)


def scoring(name: str, spec: RunSpec, arch: Architecture) -> Callable[[], object]:
    """Return what scores an architecture; the baseline's network is built outside of it."""
    if name == "zcpipe":
        scorer = ClassScorer(spec)
        return lambda: scorer.score(arch, [arch])
    space = get_space(spec.space)
    model = _Maps(space, arch, spec.dataset, full=name == "eager").to(spec.device)
    resolution = spec.resolution or space.datasets[spec.dataset].input_shape[1]
    return lambda: eager_aznas(model, spec.batch_size, resolution)


def child(name: str, spec: RunSpec, index: int) -> dict[str, float]:
    """Score one architecture in this process."""
    torch.set_num_threads(1)
    arch = draw(spec, index)
    on_gpu = spec.device != "cpu"
    peak = (lambda: torch.cuda.max_memory_allocated() / 2**20) if on_gpu else peak_mib
    with plain_arithmetic(torch.device(spec.device)):
        scoring(name, spec.model_copy(update={"resolution": WARM_UP, "batch_size": 2}), arch)()
        before = peak()
        run, seconds = scoring(name, spec, arch), []
        for _ in range(ROUNDS):
            seconds.append(_until_done(run) if on_gpu else _cpu_seconds(run))
    return {"seconds": min(seconds), "mib": peak() - before}


def _cpu_seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def _until_done(run: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def draw(spec: RunSpec, index: int) -> Architecture:
    """Return a random architecture, as a run draws it."""
    space = get_space(spec.space)
    if isinstance(space, DrawsByDataset):
        return space.sample_for(spec.dataset, spec.seed, index)
    return space.sample(spec.seed, index)


def dead_macs(space: Space[Architecture], arch: Architecture, dataset: str) -> float:
    """Return the share of multiply-accumulates that are in dead layers."""
    image = torch.empty(1, *space.datasets[dataset].input_shape, device="meta")
    with torch.device("meta"):
        live = count_macs(space.build(arch, dataset).model, [image])
    return 1 - live / space.size(arch, dataset).macs


def measured(spec: RunSpec, architectures: int) -> dict[str, float]:
    """Measure the first draws of a space."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    for index in range(architectures):
        for name in CONTENDERS:
            command = [sys.executable, "-m", "benchmarks.spaces", "--child", name, spec.model_dump_json(), str(index)]
            output = subprocess.run(command, env=worker_environment(), check=True, capture_output=True, text=True)
            found[name].append(json.loads(output.stdout))
    space = get_space(spec.space)
    archs = [draw(spec, index) for index in range(architectures)]
    seconds = {name: [one["seconds"] for one in found[name]] for name in CONTENDERS}
    result = {f"{name}_s": statistics.median(seconds[name]) for name in CONTENDERS}
    pairs = list(zip(*(seconds[name] for name in CONTENDERS), strict=True))
    return {
        **result,
        "speedup": statistics.median(eager / ours for ours, eager, _ in pairs),
        "dead_saves": statistics.median(1 - pruned / eager for _, eager, pruned in pairs),
        "dead_macs": statistics.median(dead_macs(space, arch, spec.dataset) for arch in archs),
        **{f"{name}_mib": statistics.median(one["mib"] for one in found[name]) for name in CONTENDERS[:2]},
        **{f"{name}_most_mib": max(one["mib"] for one in found[name]) for name in CONTENDERS[:2]},
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--spaces", default="nasbench201", help="names, separated by commas")
    parser.add_argument("--proxies", default="aznas", help="aznas, or aznas_vit for transformers")
    parser.add_argument("--dataset", help="by default each space's first")
    parser.add_argument("--architectures", type=int, default=5, help="of each space")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--resolution", type=int, help="side of the images, by default the data set's")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda[:i]")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        name, spec, index = options.child
        print(json.dumps(child(name, RunSpec.model_validate_json(spec), int(index))))
        return
    rows = {}
    for name in options.spaces.split(","):
        datasets = get_space(name).datasets
        dataset = options.dataset or next(iter(datasets))
        spec = RunSpec(
            space=name,
            dataset=dataset,
            proxies=tuple(proxy.name for proxy in resolve(options.proxies)),
            selection=Sample(n=options.architectures),
            batch_size=options.batch_size,
            resolution=options.resolution,
            device=resolve_device(options.device),
        )
        rows[name] = measured(spec, options.architectures)
        if not options.json:
            print(f"{name:24} " + ", ".join(f"{key} {value:.3g}" for key, value in rows[name].items()), flush=True)
    if options.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
