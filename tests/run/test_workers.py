"""How the executor minds its workers: who is blamed for a death, and what stops a run."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections import deque
from collections.abc import Iterator

import pytest

from zcpipe.errors import CapabilityError
from zcpipe.run import RunSpec
from zcpipe.run.executor import Lease
from zcpipe.run.work import Unit
from zcpipe.run.workers import WorkersExecutor

SPEC = RunSpec.model_validate({"space": "hazards", "dataset": "tiny", "proxies": ("params",)})


class Scripted:
    """A worker that says what it is told to, one message each time it is read, and then dies."""

    scripts: Iterator[list[tuple[str, object]]]
    made = 0

    def __init__(self, spec: RunSpec) -> None:
        self.script = list(next(self.scripts))
        self.waiting: deque[Unit] = deque()
        self.executing: Unit | None = None
        self.alone = self.ready = False
        self.since = time.monotonic()
        reading, self.writing = os.pipe()
        self.connection = os.fdopen(reading)
        os.write(self.writing, b"there is always news")
        self.channels = [self.connection]
        Scripted.made += 1

    @property
    def idle(self) -> bool:
        return self.executing is None and not self.waiting

    def give(self, lease: Lease) -> None:
        self.waiting.extend(lease)

    def messages(self) -> list[tuple[str, object]]:
        if not self.script:
            raise EOFError
        kind, content = self.script.pop(0)
        return [] if kind == "nothing" else [(kind, content)]

    def end(self) -> str:
        self.connection.close()
        os.close(self.writing)
        return "its process was ended"

    def kill(self) -> None:
        self.script.clear()

    def last_lines(self) -> str:
        return "no luck"


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> type[Scripted]:
    monkeypatch.setattr("zcpipe.run.workers.WorkerProcess", Scripted)
    monkeypatch.setattr(Scripted, "made", 0)
    return Scripted


def unit(number: int) -> Unit:
    return Unit(0, number, (number,))


def life(number: int) -> list[tuple[str, object]]:
    """What a worker says that scores one unit."""
    return [("ready", None), ("started", unit(number)), ("finished", (unit(number), [], 0.1))]


def test_workers_that_die_idle_are_no_futile_starts(scripted: type[Scripted]) -> None:
    slow = [("nothing", None)] * 9 + life(4)
    scripted.scripts = iter([life(0), life(1), life(2), life(3), slow, life(5)])
    executor = WorkersExecutor(SPEC, 5, timeout=1e9)
    for number in range(5):
        executor.submit([unit(number)])
    found = []
    while len(found) < 5:  # four of the workers die meanwhile
        found += executor.collect()
    executor.submit([unit(5)])
    executor.close()
    assert sorted(outcome.unit.representative for outcome in found) == [0, 1, 2, 3, 4]


def test_workers_that_were_never_ready_are(scripted: type[Scripted]) -> None:
    scripted.scripts = iter([[]] * 9)
    executor = WorkersExecutor(SPEC, 1, timeout=1e9)
    executor.submit([unit(0)])
    with pytest.raises(CapabilityError, match=r"do not start: 3 in a row .*it said: no luck"):
        executor.collect()
    assert scripted.made == 3


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM, errno.EAGAIN])
def test_what_the_system_does_not_give_is_named(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(subprocess, "Popen", refuse)
    files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    executor = WorkersExecutor(SPEC, 1000, timeout=1.0)
    with pytest.raises(CapabilityError, match=rf"worker 1 of 1000: {os.strerror(number).lower()}; use fewer --workers"):
        executor.submit([unit(0)])
    executor.close()
    assert len(os.listdir("/proc/self/fd")) == files  # noqa: PTH208
