"""What a run costs beside the scoring: rows a second that one supervisor commits, idle workers, scaling.

    python -m benchmarks.pipeline                # table
    python -m benchmarks.pipeline --json

- ``rows_per_second``: rows of 30 float64 and 6 lists of 98 float32, made at once by a scorer that only pretends, from
  the first row that comes in to the last shard that is on the disk, everything on this machine's cores: workers,
  supervisor, encoding, fsync. ``driver_mib`` is what the supervisor held at a quarter of the run and at its end,
  ``ten_million_s`` how long ten million rows would take at that rate (extrapolated).
- ``rows_per_second_ray``: the same, the rows coming through Ray from an agent on each of two simulated nodes.
- ``scheduling_overhead``: of architectures that take 0.3 s (asleep), the share of the workers' time between the first
  row and the last in which none was being scored.
- ``scaling_2``: AZ-NAS of the same cells of NAS-Bench-201, rows a second of two workers over those of one, the median
  over interleaved pairs, from the first row to the last; ``busy``: seconds of scoring over seconds of two workers.
- ``independent_2``: the same of two processes that score these cells each for itself, without supervisor or workers,
  over one such process: what the machine's two cores allow, because they share caches and memory.

Before anything is reported the tables are compared: every row once, and one worker's equal to two workers' bit for bit
in every column but ``seconds``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import patch

import numpy as np
import psutil
import torch

from benchmarks.aznas import print_result
from zcpipe.run import Event, Range, RunSpec, Sample, run
from zcpipe.run.events import Committed, Scored
from zcpipe.run.nodes.cluster import Cluster
from zcpipe.run.process import worker_environment
from zcpipe.run.workers import WorkersExecutor
from zcpipe.table import open_table

PLUGINS = str(Path(__file__).parent / "plugins")
LISTS = ("fisher", "grad_norm", "snip", "plain", "synflow", "zico")
SCALARS = ("jacob_cov", "nwot", "zen", "swap", "meco", "vkdnw", "epe_nas", "linear_regions", "ntk_condition")
CORES = 2


@dataclass
class Clock:
    """When rows came in and became visible, and what scoring them took."""

    scored: list[tuple[float, int, float]] = field(default_factory=list)  # time, rows, seconds
    committed: float = 0.0
    held: list[int] = field(default_factory=list)  # bytes, by this process

    def __call__(self, event: Event) -> None:
        """Take note of an event."""
        if isinstance(event, Scored):
            self.scored.append((time.monotonic(), event.rows, event.seconds))
        elif isinstance(event, Committed):
            self.committed = time.monotonic()
            self.held.append(psutil.Process().memory_info().rss)

    @property
    def rate(self) -> float:
        """Rows a second, from the first that came in to the last."""
        (first, rows, _), (last, *_) = self.scored[0], self.scored[-1]
        return (sum(row for _, row, _ in self.scored) - rows) / (last - first)

    @property
    def busy(self) -> float:
        """Seconds of scoring, after the first rows, over the time since."""
        return sum(seconds for *_, seconds in self.scored[1:]) / (self.scored[-1][0] - self.scored[0][0])


def timed(spec: RunSpec, out: Path, workers: int | None, scorer: str | None = None, nodes: int | None = None) -> Clock:
    """Run and take the time, in worker processes or on simulated nodes."""
    clock = Clock()
    cluster = None if nodes is None else Cluster(nodes, simulated=True)
    with ExitStack() as stack:
        if scorer is not None:
            stack.enter_context(
                patch("zcpipe.run.drive.WorkersExecutor", partial(WorkersExecutor, scorer=f"zcpipe_wide:{scorer}"))
            )
            if nodes is not None:
                agent = import_module("zcpipe_wide").PretendingAgent  # as a worker that Ray starts finds it, too
                stack.enter_context(patch("zcpipe.run.nodes.executor.Agent", agent))
        summary = run(spec, out, workers=workers, on_event=clock, cluster=cluster)
    if summary.by_status != {"ok": summary.planned}:
        raise SystemExit(f"not every row is ok: {summary.by_status}")
    return clock


def wide(rows: int) -> RunSpec:
    """Return a run of rows as wide as real ones."""
    return RunSpec(
        space="wide",
        dataset="none",
        proxies=(*LISTS, *SCALARS),
        repeats=2,
        selection=Range(start=0, stop=rows),
    )


def through_ray(out: Path, rows: int) -> float:
    """Measure rows a second that one supervisor commits of what comes from the nodes of a cluster."""
    clock = timed(wide(rows), out, None, "Pretender", nodes=CORES)
    assert np.array_equal(open_table(out).to_arrow(["index"])["index"].to_numpy(), np.arange(rows))
    return rows / (clock.committed - clock.scored[0][0])


def throughput(out: Path, rows: int) -> dict[str, object]:
    """Measure rows a second that one supervisor commits."""
    clock = timed(wide(rows), out, CORES, "Pretender")
    table = open_table(out)
    kinds = [str(field.type) for field in table.schema]
    assert kinds.count("double") == 31 and sum("list<" in kind and "float" in kind for kind in kinds) == len(LISTS)
    assert np.array_equal(table.to_arrow(["index"])["index"].to_numpy(), np.arange(rows))
    first, _, _ = clock.scored[0]
    rate = rows / (clock.committed - first)
    return {
        "rows_per_second": rate,
        "ten_million_s": 1e7 / rate,
        "driver_mib": {"quarter": clock.held[len(clock.held) // 4] / 2**20, "end": clock.held[-1] / 2**20},
    }


def overhead(out: Path, architectures: int) -> float:
    """Measure the share of the workers' time in which nothing is scored, at 0.3 s an architecture."""
    spec = RunSpec(space="wide", dataset="none", proxies=("params",), selection=Sample(n=3 * architectures))
    return 1 - timed(spec, out, CORES, "Sleeper").busy / CORES


def alone(spec: RunSpec) -> float:
    """Score in this process and return rows a second."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as out:
        return timed(spec, Path(out) / "table", None).rate


def independent(spec: RunSpec, processes: int) -> float:
    """Measure rows a second of processes that score the same at once and know nothing of each other."""
    with patch.dict(os.environ, worker_environment()), ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        return sum(pool.map(alone, [spec] * processes))


def scaling(out: Path, cells: int, batch_size: int, pairs: int) -> dict[str, object]:
    """Measure two workers against one, and two processes on their own against one."""
    spec = RunSpec(
        space="nasbench201",
        dataset="cifar10",
        proxies=("expressivity", "progressivity", "trainability", "complexity"),
        selection=Sample(n=cells),
        batch_size=batch_size,
    )
    ratios, busy, baseline, tables = [], [], [], []
    for pair in range(pairs):
        clocks = {}
        for workers in (1, 2) if pair % 2 else (2, 1):
            clocks[workers] = timed(spec, out / f"{pair}-{workers}", workers)
            tables.append(open_table(out / f"{pair}-{workers}").to_arrow().drop_columns(["seconds"]))
        ratios.append(clocks[2].rate / clocks[1].rate)
        busy.append(clocks[2].busy / 2)
        rates = {processes: independent(spec, processes) for processes in ((1, 2) if pair % 2 else (2, 1))}
        baseline.append(rates[2] / rates[1])
    assert all(table.equals(tables[0]) for table in tables)
    return {
        "scaling_2": statistics.median(ratios),
        "scaling_2_spread": max(ratios) - min(ratios),
        "busy": statistics.median(busy),
        "independent_2": statistics.median(baseline),
        "independent_2_spread": max(baseline) - min(baseline),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rows", type=int, default=300_000, help="rows of the first measurement, at most a million")
    parser.add_argument("--architectures", type=int, default=200, help="of 0.3 s each, of the second")
    parser.add_argument("--cells", type=int, default=150, help="of NAS-Bench-201, of the third")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=5, help="of runs, of the third")
    options = parser.parse_args()
    sys.path.insert(0, PLUGINS)  # workers import what this process does
    # So do the processes that Ray starts, which it makes nice unless it is told not to.
    os.environ |= {"PYTHONPATH": PLUGINS, "RAY_worker_niceness": "0"}
    with tempfile.TemporaryDirectory() as directory:
        base = Path(directory)
        result = throughput(base / "wide", options.rows)
        result["rows_per_second_ray"] = through_ray(base / "ray", options.rows)
        result["scheduling_overhead"] = overhead(base / "slow", options.architectures)
        result |= scaling(base / "cells", options.cells, options.batch_size, options.pairs)
    print_result(result, options.json)


if __name__ == "__main__":
    main()
