"""How the executor minds its workers: who is blamed for a death, what is computed again, and what stops a run."""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import os
import signal
import subprocess
import termios
import time
from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from small_executors import EXPRESSIVITY, SPEC, computed, executor, outcomes, processes, unit

from zcpipe.errors import CapabilityError
from zcpipe.run.events import Event, Warned
from zcpipe.run.executor import Died, Done, Lease, Outcome
from zcpipe.run.process import WorkerProcess
from zcpipe.run.rows import Failed
from zcpipe.run.work import Unit
from zcpipe.run.workers import WorkersExecutor

MIB = 1 << 20


@pytest.fixture
def one() -> Iterator[WorkersExecutor]:
    made = executor(1)
    yield made
    made.close()


def test_only_the_unit_that_was_executing_is_blamed(one: WorkersExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAZARDS", json.dumps({"4": "exit"}))
    made = WorkersExecutor(EXPRESSIVITY, [{}], 600.0)
    made.submit(Lease(tuple(map(unit, range(4)))))
    made.submit(Lease((unit(5),)))
    found = outcomes(made, 5)
    made.close()
    assert computed(found) == Counter(map(unit, (0, 1, 3, 5)))
    (died,) = (each for each in found if isinstance(each, Died))
    assert died.unit == unit(2) and died.failed.kind == "died" and "exited with code 7" in died.failed.message


def test_a_unit_that_loses_the_device_ends_its_worker_after_the_rows_before_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HAZARDS", json.dumps({"4": "lose device"}))
    made = WorkersExecutor(EXPRESSIVITY, [{}], 600.0)
    made.submit(Lease(tuple(map(unit, range(4)))))
    made.submit(Lease((unit(5),)))
    (before,) = processes(made)
    found = outcomes(made, 5)
    assert processes(made) != [before]
    made.close()
    assert computed(found) == Counter(map(unit, (0, 1, 3, 5)))
    (died,) = (each for each in found if isinstance(each, Died))
    assert died.unit == unit(2) and (died.failed.status, died.failed.kind) == ("error", "died")
    assert died.failed.message == "AcceleratorError: CUDA error: device-side assert triggered"


def test_what_comes_short_of_memory_beside_others_is_set_aside_and_final_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HAZARDS", json.dumps({"4": "greedy once", "6": "greedy"}))
    monkeypatch.setenv("HAZARD_MARKS", str(tmp_path))
    made = WorkersExecutor(EXPRESSIVITY, [{}], 600.0)
    made.submit(Lease(tuple(map(unit, range(5)))))
    (before,) = processes(made)
    found = outcomes(made, 5)
    assert computed(found) == Counter(map(unit, (0, 1, 4))) and processes(made) == [before]
    died = [each for each in found if isinstance(each, Died)]
    assert [(each.unit, each.failed.status) for each in died] == [(unit(2), "memory"), (unit(3), "memory")]
    assert "DefaultCPUAllocator" in died[0].failed.message
    for number in (2, 3):
        made.submit(Lease((unit(number),), alone=True))
    rows = [row for done in outcomes(made, 2) if isinstance(done, Done) for row in done.rows.to_pylist()]
    made.close()
    assert {row["index"]: row["status"] for row in rows} == {4: "ok", 5: "ok", 6: "memory", 7: "memory"}


def test_a_process_warms_up_before_any_unit_has_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARM_UP", "9")
    made = WorkersExecutor(EXPRESSIVITY, [{}], 3.0, scorer="zcpipe_substitutes:ColdScorer")
    made.submit(Lease((unit(0),)))
    assert computed(outcomes(made, 1)) == Counter([unit(0)])
    made.close()


def test_the_rows_of_a_failure_are_made_by_a_worker_of_its_own(one: WorkersExecutor) -> None:
    one.submit(Lease((unit(0),)))
    outcomes(one, 1)
    (before,) = processes(one)
    one.submit(Lease((unit(3),), alone=True, failed=Failed("timeout", "timeout", "too long", 1.5)))
    (done,) = outcomes(one, 1)
    assert processes(one) != [before]
    assert isinstance(done, Done) and done.units == (unit(3),)
    rows = done.rows.to_pylist()
    assert [row["index"] for row in rows] == [6, 7] and [row["macs"] for row in rows] == [6, 7]
    assert rows[0]["failures"] == [{"proxy": "*", "kind": "timeout", "message": "too long"}]


def test_workers_that_die_idle_are_replaced_without_blame(one: WorkersExecutor) -> None:
    for number in range(5):
        one.submit(Lease((unit(number),)))
        assert computed(outcomes(one, 1)) == Counter([unit(number)])
        (pid,) = processes(one)
        os.kill(pid, signal.SIGKILL)


def test_what_exceeds_its_memory_is_ended_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAZARDS", json.dumps({"2": "bloat"}))
    made = WorkersExecutor(EXPRESSIVITY, [{}], 600.0, memory=1200 * MIB)
    made.submit(Lease((unit(0), unit(1), unit(2))))
    found = outcomes(made, 3)
    made.close()
    (died,) = (each for each in found if isinstance(each, Died))
    assert died.unit == unit(1) and died.failed.status == "memory" and "1.17 GiB of a worker" in died.failed.message
    assert computed(found) == Counter(map(unit, (0, 2)))


def compute_three_in_turn(made: WorkersExecutor) -> None:
    """Compute units with a look at what workers hold after each."""
    for number in range(3):
        made.submit(Lease((unit(number),)))
        assert computed(outcomes(made, 1)) == Counter([unit(number)])
        time.sleep(0.3)
        made.collect(patience=0.0)
    made.close()


def test_a_worker_that_holds_much_is_replaced_between_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    started = list[int]()

    class Counted(WorkerProcess):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            started.append(self.pid)

    monkeypatch.setattr("zcpipe.run.workers.WorkerProcess", Counted)
    monkeypatch.setattr("zcpipe.run.workers.resident", lambda pid: 70 * MIB)  # what is really held depends on the day
    made = executor(1, memory=100 * MIB)
    compute_three_in_turn(made)
    assert len(set(started)) == 3


def test_workers_that_are_replaced_all_the_time_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zcpipe.run.workers.resident", lambda pid: 70 * MIB)
    monkeypatch.setattr("zcpipe.run.workers._SHORT_LIVES", 2)
    heard = list[Event]()
    made = WorkersExecutor(SPEC, [{}], 600.0, memory=100 * MIB, on_event=heard.append)
    compute_three_in_turn(made)
    (warned,) = heard
    assert isinstance(warned, Warned)
    assert warned.message.startswith(
        "2 workers in a row were replaced within 30 s, for each held more than half of the"
    )


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM, errno.EAGAIN])
def test_what_the_system_does_not_give_is_named(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(subprocess, "Popen", refuse)
    files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    made = executor(1000, timeout=1.0)
    with pytest.raises(CapabilityError, match=rf"worker 1 of 1000: {os.strerror(number).lower()}; use fewer workers"):
        made.submit(Lease((unit(0),)))
    made.close()
    assert len(os.listdir("/proc/self/fd")) == files  # noqa: PTH208


@pytest.mark.parametrize(("end", "kind"), [("exit", "died"), ("hang", "timeout"), ("hang", None)])
def test_what_a_worker_started_ends_with_it(
    end: str, kind: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HAZARDS", json.dumps({"2": f"start another, {end}"}))
    monkeypatch.setenv("HAZARD_MARKS", str(tmp_path))
    made = WorkersExecutor(EXPRESSIVITY, [{}], 1.0 if kind else 600.0)
    made.submit(Lease((unit(1),)))
    while not (marks := list(tmp_path.glob("child-*"))):
        made.collect(patience=0.01)
    if kind:
        (died,) = outcomes(made, 1)
        assert isinstance(died, Died) and died.failed.kind == kind
    made.close()
    child = int(marks[0].name.partition("-")[2])
    deadline = time.monotonic() + 10  # it is whoever adopted it that reaps it
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_the_system_does_not_give_now_costs_no_run_that_has_another_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("zcpipe.run.workers._PAUSE", 0.3)
    trials = list[float]()
    popen = subprocess.Popen

    def refuse(*args: Any, **options: Any) -> Any:
        trials.append(time.monotonic())
        if len(trials) in (2, 3, 4):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return popen(*args, **options)

    events = list[Event]()
    made = WorkersExecutor(SPEC, [{}] * 2, 600.0, on_event=events.append)
    monkeypatch.setattr(subprocess, "Popen", refuse)
    numbers = iter(range(2000))
    found = list[Outcome]()
    while len(processes(made)) < 2:
        assert not trials or time.monotonic() < trials[0] + 60
        while made.wants():
            made.submit(Lease((unit(next(numbers)),)))
        found += made.collect(patience=0.05)
    (warned,) = (event.message for event in events if isinstance(event, Warned))
    assert warned.startswith("cannot start worker 2 of 2: too many open files; the others go on, and it is tried again")
    assert len(trials) == 5
    waited = [after - before for before, after in itertools.pairwise(trials[1:])]
    assert waited[0] >= 0.3 and waited[1] >= 0.6 and waited[2] >= 1.2
    outcomes(made, next(numbers) - sum(computed(found).values()))
    made.close()


def test_what_the_system_does_not_give_ends_a_run_whose_last_worker_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    made = executor(2)
    made.submit(Lease((unit(0),)))

    def refuse(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("zcpipe.run.process.make_cell", refuse)
    made.submit(Lease((unit(1),)))
    (pid,) = processes(made)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(CapabilityError, match=r"worker 1 of 2: no space left on device; use fewer"):
        outcomes(made, 2)
    made.close()


def test_the_rows_that_a_worker_sends_in_pieces_come_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zcpipe.run.channel._CHUNK", 100)
    made = executor(1)
    made.submit(Lease(tuple(map(unit, range(12)))))
    assert computed(outcomes(made, 12)) == Counter(map(unit, range(12)))
    made.close()


# -- what passes while nothing runs


@contextmanager
def executing(hazard: str, timeout: float) -> Iterator[tuple[WorkersExecutor, WorkerProcess]]:
    """Lend an executor with little patience whose worker executes what is dangerous."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HAZARDS", json.dumps({"4": hazard}))
        patch.setattr("zcpipe.run.running_clock._STRIDE", 0.5)
        made = WorkersExecutor(EXPRESSIVITY, [{}], timeout)
        made.submit(Lease((unit(2),)))
        (worker,) = made._workers
        while worker.executing is None:
            made.collect(patience=0.01)
        yield made, worker
        made.close()


def test_a_machine_that_stood_still_costs_no_unit_its_time() -> None:
    with executing("nap long", timeout=2.5) as (made, worker):
        frozen(worker.pid)
        time.sleep(4)  # nor does the supervisor look
        assert not made.collect(patience=0.6)  # which looks at the worker before it has anything to say
        os.kill(worker.pid, signal.SIGCONT)
        (done,) = outcomes(made, 1)
    assert isinstance(done, Done)


def test_a_unit_that_hangs_is_ended_although_the_machine_stood_still() -> None:
    with executing("hang", timeout=1.0) as (made, _):
        time.sleep(2)
        (died,) = outcomes(made, 1)
    assert isinstance(died, Died) and died.failed.kind == "timeout" and died.failed.seconds < 3


# -- workers that are frozen


def frozen(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
        time.sleep(0.01)


def test_one_that_is_frozen_between_two_leases_is_replaced_without_blame(
    one: WorkersExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    one.submit(Lease((unit(0),)))
    outcomes(one, 1)
    (pid,) = processes(one)
    monkeypatch.setattr("zcpipe.run.workers._QUIET_LIMIT", 0.5)
    frozen(pid)
    one.submit(Lease((unit(1), unit(2))))
    one.submit(Lease((unit(3),)))
    assert computed(outcomes(one, 3)) == Counter(map(unit, (1, 2, 3)))
    assert processes(one) != [pid] and not psutil.pid_exists(pid)


def test_one_that_takes_no_message_holds_nobody(one: WorkersExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    one.submit(Lease((unit(0),)))
    outcomes(one, 1)
    (pid,) = processes(one)
    monkeypatch.setattr("zcpipe.run.workers._QUIET_LIMIT", 0.5)
    frozen(pid)
    long = "x" * (4 << 20)  # more than the socket takes
    one.submit(Lease((replace(unit(1), texts=(long,)),)))
    one.submit(Lease((unit(2),)))
    assert len(computed(outcomes(one, 2))) == 2
    assert processes(one) != [pid]


def test_one_that_stops_half_way_through_its_rows_is_replaced_without_blame(
    one: WorkersExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    one.submit(Lease((unit(1),)))
    outcomes(one, 1)  # it is ready
    monkeypatch.setattr("zcpipe.run.workers._QUIET_LIMIT", 1.0)
    many = Unit(0, 0, tuple(range(24)) * 2000)  # rows of megabytes, of which the socket takes a part
    one.submit(Lease((many,)))
    (worker,) = one._workers
    descriptor, _ = worker.interests[0]
    waiting = array("i", [0])
    while waiting[0] < 100_000:
        time.sleep(0.05)
        fcntl.ioctl(descriptor, termios.FIONREAD, waiting)
    frozen(worker.pid)
    assert computed(outcomes(one, 1)) == Counter([many])
    assert processes(one) != [worker.pid]


def test_one_that_is_frozen_as_it_starts_is_replaced(one: WorkersExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    one.submit(Lease((unit(0),)))
    (pid,) = processes(one)
    frozen(pid)
    with monkeypatch.context() as patch:
        patch.setattr("zcpipe.run.workers._START_LIMIT", 0.1)
        while pid in processes(one):
            one.collect(patience=0.1)
    assert computed(outcomes(one, 1)) == Counter([unit(0)])
