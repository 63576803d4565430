"""Rows of one key class, computed or failed, as every executor makes them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from zcpipe.errors import CapabilityError
from zcpipe.ops import build_info
from zcpipe.run.spec import RunSpec
from zcpipe.run.work import Locator, Unit
from zcpipe.scoring.measure import is_out_of_memory
from zcpipe.scoring.rows import ClassScorer
from zcpipe.spaces import get_space

Row = Mapping[str, object]


@dataclass(frozen=True)
class Failed:
    """Why a whole class has no scores; ``status`` is error, timeout or memory."""

    status: str
    kind: str
    message: str
    seconds: float


class UnitScorer:
    """Scores units of a run in the process it lives in."""

    def __init__(self, spec: RunSpec) -> None:
        self._frame = RowFrame(spec)
        self._locate = Locator(spec)
        self._scorer = ClassScorer(spec)

    def score(self, unit: Unit) -> list[Row]:
        """Return one row per member; an exception ends as error rows, only the death of the process goes further."""
        started = time.perf_counter()
        try:
            representative = self._locate(unit.representative)
            members = [self._locate(index) for index in unit.members]
            scored = self._scorer.score(representative, members)
        except Exception as error:
            kind = "memory" if is_out_of_memory(error) else "error"
            reason = (str(error).splitlines() or [""])[0]
            message = f"{type(error).__name__}: {reason}".rstrip(": ")
            return self._frame.failed(unit, Failed(kind, kind, message, time.perf_counter() - started))
        return [{**self._frame.of(i), **row} for i, row in zip(unit.members, scored, strict=True)]


class RowFrame:
    """The part of a row that says which architecture it is about."""

    def __init__(self, spec: RunSpec) -> None:
        self._space = get_space(spec.space)
        self._locate = Locator(spec)

    def of(self, index: int) -> Row:
        """Return index, architecture, key and space of a row."""
        arch = self._locate(index)
        return {"index": index, "arch": str(arch), "key": self._space.key(arch), "space": self._space.name}

    def failed(self, unit: Unit, failed: Failed) -> list[Row]:
        """Return the rows of a class without scores; ``*`` in their failures stands for every proxy."""
        outcome = {
            "status": failed.status,
            "failures": [{"proxy": "*", "kind": failed.kind, "message": failed.message}],
            "seconds": failed.seconds / len(unit.members),
        }
        return [{**self.of(index), **outcome} for index in unit.members]


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread, as workers do: sums are then taken in one order and rows are equal bit for bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def build(device: str) -> dict[str, Any]:
    """Return what decides the last bits of rows: library, instruction set, torch and kind of device."""
    native = build_info()
    return {
        "native": native["native"],
        "instruction_set": native["instruction_set"],
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device != "cpu" else "cpu",
    }


def check_device(device: str) -> None:
    """Refuse a device that is not there.

    Raises:
        CapabilityError: this machine or this torch lacks it.
    """
    if device != "cpu" and int(device.removeprefix("cuda:")) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise CapabilityError(f"no device {device}: torch {torch.__version__} sees {count} GPUs; use --device cpu")
