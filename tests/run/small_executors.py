"""Small executors over the space `hazards`, without a run around them."""

from __future__ import annotations

import time
from collections import Counter

from zcpipe.run import RunSpec
from zcpipe.run.executor import Done, Outcome
from zcpipe.run.work import Unit
from zcpipe.run.workers import WorkersExecutor

SPEC = RunSpec.model_validate({"space": "hazards", "dataset": "tiny", "proxies": ("params",)})
EXPRESSIVITY = SPEC.model_copy(update={"proxies": ("expressivity",)})


def unit(number: int) -> Unit:
    return Unit(0, 2 * number, (2 * number, 2 * number + 1))


def executor(workers: int, timeout: float = 600.0, memory: int | None = None) -> WorkersExecutor:
    return WorkersExecutor(SPEC, [{}] * workers, timeout, memory)


def outcomes(made: WorkersExecutor, units: int) -> list[Outcome]:
    """Collect until so many units are accounted for."""
    found: list[Outcome] = []
    deadline = time.monotonic() + 120
    while sum(len(each.units) if isinstance(each, Done) else 1 for each in found) < units:
        assert time.monotonic() < deadline
        found += made.collect()
    return found


def computed(found: list[Outcome]) -> Counter[Unit]:
    return Counter(each for done in found if isinstance(done, Done) for each in done.units)


def processes(made: WorkersExecutor) -> list[int]:
    return [worker.pid for worker in made._workers]
