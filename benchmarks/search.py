"""Time of keeping the best of a growing history of random scores, as AZ-NAS's search does after each batch.

    python -m benchmarks.search                                   # 4 proxies, 100,000 candidates, batches of 64
    python -m benchmarks.search --candidates 1000000 --json
    python -m benchmarks.search --batch 1                         # the published loop

A candidate's update is to append it and to find the best ``--best`` by the log-rank aggregate over all, as search
parents are taken from; its time is that of the last tenth of the history divided by its candidates, the passes over
everything included. The proxies have a part in common, values that tie, and -inf among them.

- ``update_ms``: of a candidate;
- ``longest_ms``: of a batch, which is one that goes through everything;
- ``recomputation_ms``: of what `zcpipe.rank` does for the whole history, once;
- ``speedup``: recomputation after each batch over ours.

CPU time of the process, which computes with one thread. Before anything is timed the best, and the aggregate of
everybody, are compared with the recomputation, bit for bit, after each batch of a history of a hundredth of the size,
and once more at the end of the timed one.
"""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np

from benchmarks.aznas import print_result
from zcpipe.rank import aggregate, top
from zcpipe.rank.ranking import Floats
from zcpipe.search.incremental import History

Columns = dict[str, Floats]


def scores(candidates: int, proxies: int) -> Columns:
    """Draw a history."""
    rng = np.random.default_rng(0)
    common = rng.normal(size=candidates)
    columns = {f"p{i}": common + rng.normal(size=candidates) for i in range(proxies)}
    columns["p0"] = np.round(columns["p0"], 3)
    columns["p1"][rng.random(candidates) < 0.01] = -np.inf
    return columns


def part(columns: Columns, start: int, stop: int) -> Columns:
    """Return some candidates."""
    return {name: values[start:stop] for name, values in columns.items()}


def compare(history: History, columns: Columns, ways: dict[str, str], best: int) -> float:
    """Return the seconds of a recomputation; stop if it is another."""
    start = time.process_time()
    expected = aggregate("logrank", columns, ways)
    expected_best = top(expected, best)
    seconds = time.process_time() - start
    found = history.best(best)
    same = np.array_equal(found, expected_best)
    same &= np.array_equal(history.aggregate(found), expected[found]) and np.array_equal(history.aggregate(), expected)
    if not same:
        sys.exit(f"correctness gate: the history of {len(history)} differs from its recomputation")
    return seconds


def gate(candidates: int, proxies: int, batch: int, best: int) -> None:
    """Stop if a small history differs from its recomputation after any batch."""
    columns = scores(candidates, proxies)
    ways = dict.fromkeys(columns, "higher")
    history = History(ways)
    for start in range(0, candidates, batch):
        history.append(part(columns, start, start + batch))
        compare(history, part(columns, 0, start + batch), ways, best)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--candidates", type=int, default=100_000)
    parser.add_argument("--proxies", type=int, default=4)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--best", type=int, default=1023)
    options = parser.parse_args()
    if options.candidates < 1000 or options.proxies < 2 or options.batch < 1 or options.best < 1:
        parser.error("at least 1000 candidates, 2 proxies, a batch of 1 and the best 1")
    gate(options.candidates // 100, options.proxies, max(options.batch, 16), min(options.best, 50))
    columns = scores(options.candidates, options.proxies)
    ways = dict.fromkeys(columns, "higher")
    history = History(ways)
    begun = options.candidates * 9 // 10
    history.append(part(columns, 0, begun))
    history.best(options.best)
    seconds = []
    for start in range(begun, options.candidates, options.batch):
        clock = time.process_time()
        history.append(part(columns, start, start + options.batch))
        history.best(options.best)
        seconds.append(time.process_time() - clock)
    update = sum(seconds) / (options.candidates - begun)
    recomputation = compare(history, columns, ways, options.best)
    result: dict[str, object] = {
        "candidates": options.candidates,
        "update_ms": 1e3 * update,
        "longest_ms": 1e3 * max(seconds),
        "recomputation_ms": 1e3 * recomputation,
        "speedup": recomputation * len(seconds) / sum(seconds),
    }
    print_result(result, options.json)


if __name__ == "__main__":
    main()
