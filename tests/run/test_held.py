"""Workers that SIGKILL does not end, as where a driver or a file system hangs: a tracer stands in for those."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
from small_executors import EXPRESSIVITY, computed, outcomes, processes, unit

from zcpipe.errors import CapabilityError
from zcpipe.run.events import Event, Warned
from zcpipe.run.executor import Died, Done, Lease
from zcpipe.run.workers import WorkersExecutor

# It stops a process where that ends, until it has something to read itself; a minute at most, whatever is tested.
HOLD = """
import ctypes, os, select, sys
trace = ctypes.CDLL(None, use_errno=True).ptrace
trace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
SEIZE, DETACH, TRACEEXIT = 0x4206, 17, 0x40
pid = int(sys.argv[1])
refused = trace(SEIZE, pid, None, TRACEEXIT)
print(refused, flush=True)
if not refused:
    os.waitpid(pid, 0)
    select.select([sys.stdin], [], [], 60)
    trace(DETACH, pid, None, None)
"""


@pytest.fixture
def held() -> Iterator[Callable[[int], subprocess.Popen[bytes]]]:
    """Return what makes a process outlive its SIGKILL, until the tracer that is returned may end."""
    tracers = list[subprocess.Popen[bytes]]()

    def hold(pid: int) -> subprocess.Popen[bytes]:
        arguments = [sys.executable, "-c", HOLD, str(pid)]
        tracer = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        tracers.append(tracer)
        assert tracer.stdout is not None
        if tracer.stdout.readline() != b"0\n":
            pytest.skip("needs ptrace, which this system refuses")
        return tracer

    yield hold
    for tracer in tracers:
        tracer.communicate()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zcpipe.run.process._KILL_LIMIT", 0.5)


def executing(made: WorkersExecutor, number: int) -> int:
    """Return the process that executes a unit, as soon as one does."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for worker in made._workers:
            if worker.executing is not None and worker.executing[0] == unit(number):
                return worker.pid
        assert not made.collect(patience=0.01)
    raise AssertionError("none executes it")


def test_one_that_does_not_end_when_it_is_killed_costs_its_place_until_it_does(
    held: Callable[[int], subprocess.Popen[bytes]], impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HAZARDS", json.dumps({"2": "hang"}))
    events = list[Event]()
    places = [{"PLACE": "0"}, {"PLACE": "1"}]
    made = WorkersExecutor(EXPRESSIVITY, places, 6.0, on_event=events.append)
    made.submit(Lease((unit(1),)))
    pid = executing(made, 1)
    tracer = held(pid)
    for number in (0, 2, 3, 4):
        made.submit(Lease((unit(number),)))
    started = time.monotonic()
    found = outcomes(made, 5)
    assert time.monotonic() < started + 30
    (died,) = (each for each in found if isinstance(each, Died))
    assert died.unit == unit(1) and died.failed.kind == "timeout"
    assert computed(found) == {unit(number): 1 for number in (0, 2, 3, 4)}
    assert os.path.exists(f"/proc/{pid}") and len(processes(made)) <= 1  # noqa: PTH110
    (warned,) = events
    assert isinstance(warned, Warned)
    assert f"process {pid} with PLACE=0 computed architecture 2 when it was killed and does not" in warned.message

    made.submit(Lease((unit(5),), alone=True))  # which the other makes room for
    assert isinstance(outcomes(made, 1)[0], Done) and len(processes(made)) == 1
    tracer.communicate()
    while len(processes(made)) < 2:
        for number in (6, 7, 8):
            made.submit(Lease((unit(number),)))
        made.collect(patience=0.1)
    assert len(events) == 1 and not os.path.exists(f"/proc/{pid}")  # noqa: PTH110
    made.close()


def test_that_none_is_left_is_said(
    held: Callable[[int], subprocess.Popen[bytes]], impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zcpipe.run.workers._HELD_LIMIT", 2.0)
    monkeypatch.setenv("HAZARDS", json.dumps({"2": "hang"}))
    made = WorkersExecutor(EXPRESSIVITY, [{}], 1.0)
    made.submit(Lease((unit(1),)))
    pid = executing(made, 1)
    held(pid)
    made.submit(Lease((unit(2),)))
    (died,) = outcomes(made, 1)
    assert isinstance(died, Died)
    with pytest.raises(CapabilityError, match=rf"no worker is left: .* does not end \(process {pid}\)"):
        outcomes(made, 1)
    made.close()


def test_one_that_ends_late_is_waited_for_where_there_is_no_other(
    held: Callable[[int], subprocess.Popen[bytes]], impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HAZARDS", json.dumps({"2": "hang"}))
    made = WorkersExecutor(EXPRESSIVITY, [{}], 6.0)  # enough for what does not hang, on a busy machine, too
    made.submit(Lease((unit(1),)))
    tracer = held(executing(made, 1))
    made.submit(Lease((unit(2),)))
    outcomes(made, 1)
    assert not made.collect(patience=1.0) and not processes(made)
    tracer.communicate()
    assert computed(outcomes(made, 1)) == {unit(2): 1}
    made.close()


def test_closing_waits_once_for_all_that_do_not_end(held: Callable[[int], subprocess.Popen[bytes]]) -> None:
    events = list[Event]()
    made = WorkersExecutor(EXPRESSIVITY, [{}] * 3, 600.0, on_event=events.append)
    for number in range(3):
        made.submit(Lease((unit(number),)))
    for pid in processes(made):
        held(pid)
    started = time.monotonic()
    made.close()
    assert time.monotonic() < started + 10 and len(events) == 3
    assert all("was starting when it was killed" in event.message for event in events if isinstance(event, Warned))
