"""The fixed cost of scoring one architecture: what is left where there is next to nothing to compute.

    python -m benchmarks.overhead            # table
    python -m benchmarks.overhead --json

The whole of `ClassScorer.score` for the 24 listed cells, with one image of 8x8 pixels, as a worker process does it: one
thread, garbage collected rarely, the scorer made before. The CPU time of the process; the least of the rounds of each
cell is least disturbed by other processes, the median is what they make of it.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time

import torch

from benchmarks.cells import CELLS
from zcpipe.proxies import resolve
from zcpipe.run.spec import RunSpec
from zcpipe.scoring.measure import Batch
from zcpipe.scoring.rows import Batches, ClassScorer
from zcpipe.spaces.nasbench201 import SPACES

SPACE = SPACES[0]
PIXELS = 8


class _Corner(Batches):
    """A corner of the run's images."""

    def of(self, repeat: int, noise: bool) -> Batch:
        batch = super().of(repeat, noise)
        corners = [images[:, :, :PIXELS, :PIXELS] for images in batch.inputs]
        return Batch([c.contiguous(memory_format=torch.channels_last) for c in corners], batch.targets)


class SmallImages(ClassScorer):
    """Scores on a corner of the run's images."""

    def __init__(self, spec: RunSpec) -> None:
        super().__init__(spec)
        self._batches = _Corner(spec)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rounds", type=int, default=10, help="repetitions over the 24 cells, after a first one")
    options = parser.parse_args()
    torch.set_num_threads(1)
    proxies = tuple(proxy.name for proxy in resolve("aznas"))
    scorer = SmallImages(RunSpec(space=SPACE.name, dataset="cifar10", proxies=proxies, batch_size=1))
    gc.freeze()
    gc.set_threshold(20_000)
    seconds: dict[int, list[float]] = {index: [] for index in CELLS}
    for number in range(options.rounds + 1):
        for index in CELLS:
            cell = SPACE[index]
            start = time.process_time()
            scorer.score(cell, [cell])
            if number:
                seconds[index].append(time.process_time() - start)
    least = 1000 * statistics.fmean(min(values) for values in seconds.values())
    median = 1000 * statistics.fmean(statistics.median(values) for values in seconds.values())
    if options.json:
        print(json.dumps({"cpu_ms_least": least, "cpu_ms_median": median, "rounds": options.rounds}))
    else:
        print(f"{least:.1f} ms CPU per architecture at least, {median:.1f} ms in the median of {options.rounds} rounds")


if __name__ == "__main__":
    main()
