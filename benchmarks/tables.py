"""Time and peak memory of compacting a table of random rows: 30 proxies, 6 statistics of 20 slots, shards of 256 rows.

    python -m benchmarks.tables                     # 200,000 rows into files of 50,000
    python -m benchmarks.tables --rows 1000000 --rows-per-file 250000 --json

Each step runs in a process of its own. What it held before (Python, torch, pyarrow) is told apart from what it added.
The rows of a file are compared with those of the shards bit for bit, in an untimed step.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.memory import peak_mib
from zcpipe.scoring.columns import Column
from zcpipe.table import compact, open_table
from zcpipe.table.files import publish
from zcpipe.table.schema import Header, encode
from zcpipe.table.store import locked

SHARD = 256
SLOTS = tuple(f"slot{number}" for number in range(20))


def header() -> Header:
    """Return that of the table."""
    proxies = [Column(f"proxy{number}", "proxy", "nat", "higher", "function", "none", ()) for number in range(30)]
    statistics = [Column(f"s{number}@block", "statistic", "", "none", "function", "", SLOTS) for number in range(6)]
    identity = {"space": "random", "recipe": {"repeats": 1}, "seed": 0}
    return Header((*proxies, *statistics), {"proxies": [column.name for column in proxies]}, identity)


def make(out: Path, rows: int) -> None:
    """Write the table, its rows in random order over the shards, as those of key classes are."""
    draw = np.random.default_rng(0)
    head = header()
    order = draw.permutation(rows)
    with locked(out, head) as store:
        for number, begin in enumerate(range(0, rows, SHARD)):
            index = np.sort(order[begin : begin + SHARD])
            content = {"index": index, "arch": [f"|conv~{i}|" * 6 for i in index], "key": [f"k{i:x}" for i in index]}
            content |= {"space": ["random"] * len(index), "seconds": draw.random(len(index))}
            content |= {"status": ["ok"] * len(index), "failures": [[]] * len(index)}
            for column in head.columns:
                if column.kind == "proxy":
                    content[column.name] = draw.standard_normal(len(index))
                else:
                    values = pa.array(draw.standard_normal(len(index) * len(SLOTS), np.float32))
                    offsets = pa.array(np.arange(len(index) + 1, dtype=np.int32) * len(SLOTS))
                    content[column.name] = pa.ListArray.from_arrays(offsets, values)
            schema = head.file_schema(shard=number, build={})
            name = f"shard-{number:05d}-{head.content_hash(index)}.parquet"
            publish(store.directory / name, encode(pa.table(content, schema=schema)))


def step(name: str, home: Path, rows: int, rows_per_file: int) -> dict[str, float]:
    """Run one step in this process."""
    old, new = home / "old", home / "new"
    before, started = peak_mib(), time.perf_counter()
    match name:
        case "make":
            make(old, rows)
        case "compact":
            compact(old, new, rows_per_file)
        case "read shards":
            open_table(old).to_arrow(["index", "proxy0"])
        case "read files":
            open_table(new).to_arrow(["index", "proxy0"])
        case "compare":
            if not open_table(old).to_arrow().equals(open_table(new).to_arrow()):
                raise AssertionError("the compacted table has other rows")
    files = sum(1 for path in new.glob("rows-*"))
    size = sum(path.stat().st_size for path in new.glob("rows-*")) / 2**20
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "added_mib": peak_mib() - before, "files": files, "files_mib": size}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rows-per-file", type=int, default=50_000)
    parser.add_argument("--step", nargs=2, metavar=("NAME", "HOME"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(step(options.step[0], Path(options.step[1]), options.rows, options.rows_per_file)))
        return
    found = {}
    with tempfile.TemporaryDirectory() as home:
        for name in ("make", "compact", "compare", "read shards", "read files"):
            command = [sys.executable, "-m", "benchmarks.tables", "--step", name, home]
            command += ["--rows", str(options.rows), "--rows-per-file", str(options.rows_per_file)]
            found[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    if options.json:
        print(json.dumps(found))
        return
    for name, row in found.items():
        print(f"{name:12} {row['seconds']:7.1f} s {row['added_mib']:7.0f} MiB added")
    print(f"{options.rows} rows: {found['compact']['files']} files, {found['compact']['files_mib']:.0f} MiB")


if __name__ == "__main__":
    main()
