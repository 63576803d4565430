"""Peak memory of a process that scores the 24 listed cells at batch 64: ours and plain eager PyTorch, each in its own.

    python -m benchmarks.memory            # table
    python -m benchmarks.memory --json

Both run in the environment of worker processes. What the process held before the first cell (Python, torch, the
library) is told apart from what scoring added.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys

import torch

from benchmarks.aznas import SPACE, eager, ours, spec_of
from benchmarks.cells import CELLS
from zcpipe.run.process import worker_environment

CONTENDERS = {"zcpipe": ours, "eager": eager}


def peak_mib() -> float:
    """Return the largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def child(name: str, batch_size: int) -> dict[str, float]:
    """Score every cell in this process."""
    torch.set_num_threads(1)
    before = peak_mib()
    prepare = CONTENDERS[name](spec_of(batch_size))
    for index in CELLS:
        prepare(SPACE[index])()
    return {"before_mib": before, "peak_mib": peak_mib(), "added_mib": peak_mib() - before}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--child", choices=sorted(CONTENDERS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(options.child, options.batch_size)))
        return
    rows = {}
    for name in CONTENDERS:
        command = [sys.executable, "-m", "benchmarks.memory", "--child", name, "--batch-size", str(options.batch_size)]
        output = subprocess.run(command, env=worker_environment(), check=True, capture_output=True, text=True).stdout
        rows[name] = json.loads(output)
    if options.json:
        print(json.dumps(rows))
        return
    for name, row in rows.items():
        print(f"{name:8} peak {row['peak_mib']:7.0f} MiB, of which scoring {row['added_mib']:6.0f} MiB")


if __name__ == "__main__":
    main()
