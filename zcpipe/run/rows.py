"""Rows of key classes, computed or failed, as every executor makes them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F

from zcpipe.errors import CapabilityError, is_device_lost, is_out_of_memory, reason_of, trace
from zcpipe.inputs import NOISE, batch_of
from zcpipe.ops import build_info
from zcpipe.proxies import resolve
from zcpipe.run.code import code_digest, plugin_versions
from zcpipe.run.spec import RunSpec
from zcpipe.run.work import Unit, architectures, key_of, text_of
from zcpipe.scoring.columns import COUNTS
from zcpipe.scoring.rows import ClassScorer
from zcpipe.spaces import Architecture, asked, get_space
from zcpipe.table.schema import EVERYTHING, Header, package_version, to_arrow

Row = Mapping[str, Any]

_CROWDED = 0.1  # of the GPU's memory, this process's own kernels included


@dataclass(frozen=True)
class Failed:
    """Why a whole class has no scores; ``status`` is error, timeout or memory."""

    status: str
    kind: str
    message: str
    seconds: float


class SetAsideError(CapabilityError):
    """A unit that this process cannot judge and another may; ``failed`` says why."""

    def __init__(self, failed: Failed, mend: str) -> None:
        super().__init__(f"{failed.message}; {mend}")
        self.failed = failed


class DeviceLostError(SetAsideError):
    """The same, and this process can use its GPU no more."""


class UnitScorer:
    """Scores units of a run in the process it lives in.

    Raises:
        DataError: the run's images are not here, or others are.
    """

    def __init__(self, spec: RunSpec) -> None:
        self._spec = spec
        self._space = get_space(spec.space)
        self._frame = RowFrame(spec)
        self._scorer = ClassScorer(spec)
        if spec.inputs != NOISE:
            batch_of(spec, 0)  # what is wrong with the file must not end as rows
        self._static = [p for p in resolve(spec.proxies) if not p.statistics and p.name not in COUNTS]
        self.schema = Header(self._scorer.columns, spec.record(), spec.identity()).schema

    def warm_up(self) -> None:
        """Pay what the first use of the device and its libraries costs, seconds on a GPU that are no architecture's."""
        device = self._spec.device
        images = torch.ones(2, 3, 8, 8, device=device)
        weight = torch.ones(4, 3, 3, 3, device=device, requires_grad=True)
        maps = F.relu(F.batch_norm(F.conv2d(images, weight), None, None, training=True))
        scores = F.linear(maps.flatten(1), torch.ones(5, 144, device=device))
        torch.autograd.grad(scores.sum(), weight)
        if device != "cpu":
            torch.cuda.synchronize(device)
        self.tabulate([])  # the first table imports pandas

    def score(self, unit: Unit, final: bool = True) -> list[Row]:
        """Return one row per member; an exception ends as error rows, only the death of the process goes further.

        Args:
            unit: what to score.
            final: whether its rows are wanted although memory ran out that others may have held.

        Raises:
            SetAsideError: they are not; another time there may be enough.
            DeviceLostError: the unit has made the GPU useless for this process.
        """
        started = time.perf_counter()
        representative, members = architectures(self._space, unit)
        try:
            scored = self._scorer.score(representative, members)
            if self._spec.device != "cpu":
                torch.cuda.synchronize(self._spec.device)  # what a kernel did wrong is known by now
            rows: list[Row] = [{**frame, **row} for frame, row in zip(self._frame.of(unit), scored, strict=True)]
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a proxy or space that ends the process ends its row
            trace(error)
            seconds = time.perf_counter() - started
            if is_device_lost(error):
                mend = "the GPU is lost to this process: score with --workers, which replaces such processes"
                raise DeviceLostError(Failed("error", "died", reason_of(error), seconds), mend) from error
            kind = "memory" if is_out_of_memory(error) else "error"
            rows = self.fail(unit, Failed(kind, kind, reason_of(error), seconds))
        short = _short_of_memory(rows)
        if short and not final and self._crowded():
            seconds = time.perf_counter() - started
            raise SetAsideError(Failed("memory", "memory", short, seconds), "others may hold the memory")
        return rows

    def fail(self, unit: Unit, failed: Failed) -> list[Row]:
        """Return the rows of a class without scores: what they have whatever becomes of its network, and the reason."""
        counted = [self._count(member) for member in architectures(self._space, unit)[1]]
        return [{**row, **counts} for row, counts in zip(self._frame.failed(unit, failed), counted, strict=True)]

    def tabulate(self, rows: Sequence[Row]) -> pa.Table:
        """Return rows in the columns of the table."""
        return to_arrow(rows, self.schema)

    def _crowded(self) -> bool:
        """Whether others may hold a good part of the memory."""
        if self._spec.device == "cpu":
            return True  # nothing says for whom the limits of the system, a container or a user were reached
        free, whole = torch.cuda.mem_get_info(self._spec.device)
        return whole - free - torch.cuda.memory_reserved(self._spec.device) > _CROWDED * whole

    def _count(self, member: Architecture) -> Row:
        try:
            size = asked.size_of(self._space, member, self._spec.dataset)
            counts = {"params": np.array(size.params), "macs": np.array(size.macs)}
            row: dict[str, object] = {p.name: float(p.reduce(counts)) for p in self._static}
        except KeyboardInterrupt:
            raise
        except BaseException:  # a failure of the row that has a reason already, or will have it when it is scored
            return {}
        if self._spec.repeats > 1:
            row |= {f"{p.name}_sd": 0.0 for p in self._static}
        return {**row, "params": size.params, "macs": size.macs}


class RowFrame:
    """The part of a row that says which architecture it is about.

    The supervisor uses it too, and therefore nothing here asks the space for more than texts and keys.
    """

    def __init__(self, spec: RunSpec) -> None:
        self._space = get_space(spec.space)

    def of(self, unit: Unit) -> list[Row]:
        """Return index, architecture, key and space of the rows of a unit."""
        _, members = architectures(self._space, unit)
        return [
            self._row(index, arch, asked.key_of(self._space, arch))
            for index, arch in zip(unit.members, members, strict=True)
        ]

    def failed(self, unit: Unit, failed: Failed) -> list[Row]:
        """Return the rows of a class without scores; ``*`` in their failures stands for all that needs the network.

        Where the space raises for a key the architecture stands for itself.
        """
        outcome = {
            "status": failed.status,
            "failures": [{"proxy": EVERYTHING, "kind": failed.kind, "message": failed.message}],
            "seconds": failed.seconds / len(unit.members),
        }
        _, members = architectures(self._space, unit)
        return [
            {**self._row(index, arch, key_of(self._space, arch)), **outcome}
            for index, arch in zip(unit.members, members, strict=True)
        ]

    def _row(self, index: int, arch: Architecture, key: str) -> Row:
        return {"index": index, "arch": text_of(self._space, arch), "key": key, "space": self._space.name}


def _short_of_memory(rows: Sequence[Row]) -> str:
    """Return for which want of memory a unit lacks values, nothing where it is not that."""
    failures = (failure for row in rows for failure in row["failures"])
    return next((failure["message"] for failure in failures if failure["kind"] == "memory"), "")


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
    """Return what decides rows to the last bit: code, plugins, library, instruction set, torch and kind of device."""
    native = build_info()
    return {
        "zcpipe": package_version(),
        "code": code_digest(),
        "plugins": plugin_versions(),
        "native": native["native"],
        "library": None if native["path"] is None else _digest(Path(str(native["path"]))),
        "instruction_set": native["instruction_set"],
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device != "cpu" else "cpu",
    }


def _digest(file: Path) -> str:
    """Name the content of a file."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, lambda: hashlib.blake2b(digest_size=8)).hexdigest()


def check_device(device: str) -> None:
    """Refuse a device that is not there.

    Raises:
        CapabilityError: this machine or this torch lacks it.
    """
    if device != "cpu" and int(device.removeprefix("cuda:")) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise CapabilityError(f"no device {device}: torch {torch.__version__} sees {count} GPUs; use --device cpu")
