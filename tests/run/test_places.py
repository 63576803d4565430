"""Places in which workers do not start, as with a GPU that is broken, beside others in which they do."""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import Any

import pytest
from small_executors import SPEC, computed, outcomes, processes, unit

from zcpipe.errors import CapabilityError
from zcpipe.run.events import Event, Warned
from zcpipe.run.executor import Lease
from zcpipe.run.process import WorkerProcess
from zcpipe.run.workers import WorkersExecutor

BROKEN = "zcpipe_substitutes:BrokenScorer"


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the workers that are started in each place."""
    found = Counter[str]()

    class Counted(WorkerProcess):
        def __init__(self, spec: Any, environment: Any, scorer: str) -> None:
            found[environment["PLACE"]] += 1
            super().__init__(spec, environment, scorer)

    monkeypatch.setattr("zcpipe.run.workers.WorkerProcess", Counted)
    return found


def executor(
    broken: dict[str, float], places: list[str], patch: pytest.MonkeyPatch
) -> tuple[WorkersExecutor, list[Event]]:
    patch.setenv("BROKEN", json.dumps(broken))
    events = list[Event]()
    environments = [{"PLACE": place} for place in places]
    return WorkersExecutor(SPEC, environments, 600.0, scorer=BROKEN, on_event=events.append), events


def test_a_place_in_which_none_starts_is_left_alone_and_named(
    starts: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, events = executor({"1": 0.0}, ["0", "1"], monkeypatch)
    assert made.capacity == 2
    number = 0
    deadline = time.monotonic() + 120
    while not events:  # results of the other place come in between
        assert time.monotonic() < deadline
        made.submit(Lease((unit(number % 12),), alone=number == 3))
        number += 1
        assert computed(outcomes(made, 1)).total() == 1
    for more in range(5):
        made.submit(Lease((unit(more),)))
    assert computed(outcomes(made, 5)).total() == 5
    assert starts["1"] == 3 and made.capacity == 1
    (warned,) = events
    assert isinstance(warned, Warned)
    assert warned.message.startswith("workers with PLACE=1 do not start: 3 in a row ended before they were ready (")
    assert "CUDA error: device unavailable" in warned.message and "goes on with 1 of 2 workers" in warned.message
    made.close()


def test_nothing_waits_for_a_worker_that_is_never_ready(starts: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    made, _ = executor({"0": 3600.0}, ["0", "1"], monkeypatch)
    for number in range(6):
        made.submit(Lease((unit(number),)))
    assert computed(outcomes(made, 6)) == {unit(number): 1 for number in range(6)}
    assert starts == {"0": 1, "1": 1} and len(processes(made)) == 2
    monkeypatch.setattr("zcpipe.run.workers._SLOW_START", 1.0)
    made.submit(Lease((unit(6),), alone=True))
    for number in range(7, 10):
        made.submit(Lease((unit(number),)))
    assert computed(outcomes(made, 4)) == {unit(number): 1 for number in range(6, 10)}
    assert starts == {"0": 1, "1": 2}, "a fresh one, in the place that is well"
    made.close()


def test_that_no_place_is_left_ends_a_run(starts: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    made, events = executor({"0": 0.0, "1": 0.0}, ["0", "1", "1", "1", "1"], monkeypatch)
    for number in range(6):
        made.submit(Lease((unit(number),)))
    with pytest.raises(
        CapabilityError,
        match=r"workers with PLACE=. do not start: [34] in a row .*device unavailable; run without --wor",
    ):
        outcomes(made, 6)
    assert starts["0"] == 3 and starts["1"] >= 4 and len(events) == 1
    made.close()
