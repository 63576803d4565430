"""What studies share: scoring into a table, stages that are not repeated, files written whole, options and errors."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from zcpipe.errors import ZcpipeError, trace
from zcpipe.run import RunSpec, run, show_progress
from zcpipe.table import Table


class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keep the description's lines and show defaults."""


def add_truth(parser: argparse.ArgumentParser, what: str) -> None:
    """Add ``--truth``, by default NAS-Bench-201's accuracies in the folder that the variable ZCPIPE_DATA names."""
    data = os.environ.get("ZCPIPE_DATA")
    default = Path(data) / "nasbench201_cifar10.parquet" if data else None
    parser.add_argument("--truth", type=Path, default=default, required=not data, help=what)


def listed(text: str) -> list[str]:
    """Read names that commas part."""
    return [part.strip() for part in text.split(",")]


def refuse_unknown(parser: argparse.ArgumentParser, kind: str, names: Iterable[str], known: Iterable[str]) -> None:
    """End with a usage error where names are not among those known."""
    if unknown := sorted(set(names) - set(known)):
        parser.error(f"no {kind} is called {', '.join(unknown)}; there are {', '.join(known)}")


def script(main: Callable[[], None]) -> None:
    """Run a study's main; an error of zcpipe's ends in one line on stderr and its exit code, as in its own commands."""
    try:
        main()
    except ZcpipeError as error:
        trace(error)
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def score(spec: RunSpec, directory: Path, workers: int) -> None:
    """Score into a table, resuming it, and log beside it (cpu.jsonl) the CPU seconds its workers took."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    before = _cpu_of_workers()
    with show_progress() as on_event:
        summary = run(spec, directory, workers, on_event=on_event)
    if summary.new:
        record = {"table": directory.name, "rows": summary.new, "cpu_seconds": _cpu_of_workers() - before}
        with (directory.parent / "cpu.jsonl").open("a") as log:
            log.write(json.dumps(record) + "\n")


def _cpu_of_workers() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def stage(path: Path, inputs: dict[str, Any], compute: Callable[[], Any]) -> Any:  # noqa: ANN401 - any JSON
    """Return what a stage made before from the same inputs, or make and keep it. Results are JSON without NaN."""
    given = json.loads(json.dumps(inputs))
    if path.exists():
        stored = json.loads(path.read_text())
        if stored["inputs"] == given:
            return stored["result"]
    text = json.dumps({"inputs": given, "result": compute()}, indent=1, allow_nan=False)
    with whole(path) as partial:
        partial.write_text(text + "\n")
    return json.loads(text)["result"]


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield where to write a file that then appears at a path, in the place of what was there, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{path.name}")  # by its ending matplotlib knows what to write
    partial.unlink(missing_ok=True)  # of a process that was killed
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def publish(base: Path, numbers: str, text: str, draw: Callable[[Path], None]) -> None:
    """Write a study's numbers (.json), page (.md) and figure (.png) together: none of them where drawing fails."""
    with whole(base.with_suffix(".png")) as drawn:
        draw(drawn)
        base.with_suffix(".json").write_text(numbers + "\n")
        base.with_suffix(".md").write_text(text)


def places(values: np.ndarray) -> np.ndarray:
    """Number values in their order, from 1 for the smallest; ties in the order they come in, NaN has no place."""
    known = ~np.isnan(values)
    found = np.full(len(values), np.nan)
    found[known] = np.argsort(np.argsort(values[known], kind="stable"), kind="stable") + 1
    return found


def contents(table: Table) -> str:
    """Name what the rows of a table hold, but for the seconds that they took."""
    rows = table.to_arrow([name for name in table.schema.names if name != "seconds"])
    held = hashlib.blake2b(digest_size=16)
    for name, column in zip(rows.column_names, rows.columns, strict=True):
        held.update(f"{name} {column.type} {len(column)}\n".encode())
        _hold(held, column.combine_chunks())
    return held.hexdigest()


def _hold(held: hashlib.blake2b, column: pa.Array) -> None:
    """Take in the values of a column; what lies where there is none may be anything."""
    if pa.types.is_list(column.type):
        held.update(pc.fill_null(pc.list_value_length(column), -1).to_numpy(zero_copy_only=False).tobytes())
        _hold(held, column.flatten())
    elif pa.types.is_floating(column.type) or pa.types.is_integer(column.type):
        held.update(column.is_valid().to_numpy(zero_copy_only=False).tobytes())
        held.update(column.drop_null().to_numpy().tobytes())
    else:
        held.update(json.dumps(column.to_pylist()).encode())


def without_nan(record: dict[str, Any]) -> dict[str, Any]:
    """Make a flat record that strict JSON can hold: NaN is null."""
    return {name: None if value != value else value for name, value in record.items()}


def dumped(value: Any, pad: str = "") -> str:  # noqa: ANN401 - any JSON
    """Write JSON with a line for whatever holds no object: a row of results is one."""
    text = json.dumps(value, allow_nan=False)
    if "{" not in text[1:]:
        return text
    inner = f"{pad} "
    if isinstance(value, dict):
        parts = [f"{json.dumps(name)}: {dumped(one, inner)}" for name, one in value.items()]
    else:
        parts = [dumped(one, inner) for one in value]
    return f"{text[0]}\n{inner}" + f",\n{inner}".join(parts) + f"\n{pad}{text[-1]}"
