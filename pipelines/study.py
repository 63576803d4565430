"""What the studies share: scoring into a table with a log of CPU seconds, stages that are not repeated, help texts."""

from __future__ import annotations

import argparse
import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from zcpipe.run import RunSpec, run, show_progress


class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keep the description's lines and show defaults."""


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
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(text + "\n")
    partial.replace(path)
    return json.loads(text)["result"]


def places(values: np.ndarray) -> np.ndarray:
    """Number values in their order, from 1 for the smallest; ties in the order they come in."""
    return np.argsort(np.argsort(values, kind="stable"), kind="stable") + 1


def without_nan(record: dict[str, Any]) -> dict[str, Any]:
    """Make a flat record that strict JSON can hold: NaN is null."""
    return {name: None if value != value else value for name, value in record.items()}
