"""A space as long as one likes, with rows as wide as NAS-Bench-201's, and scorers that only pretend.

Three neighbours share a key, as in NAS-Bench-201 about three cells do. Its members are never built.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from zcpipe.errors import UsageError
from zcpipe.proxies import resolve
from zcpipe.run.nodes.agent import Agent
from zcpipe.run.rows import Failed
from zcpipe.run.spec import RunSpec
from zcpipe.run.work import Unit
from zcpipe.scoring.columns import columns_of
from zcpipe.spaces.base import Built, Dataset, Size, Slots
from zcpipe.table.schema import Header

LENGTH = 1_000_000
_SLOTS = tuple(f"layer{i}" for i in range(98))


@dataclass(frozen=True)
class Number:
    """A member."""

    value: int

    def __str__(self) -> str:
        return f"wide-{self.value}"


class Wide:
    """A million members without networks."""

    name = "wide"
    datasets: ClassVar = {"none": Dataset("none", (3, 8, 8), 10)}
    paper = "none"

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> Number:
        return Number(index)

    def index(self, arch: Number) -> int:
        return arch.value

    def parse(self, text: str) -> Number:
        if not text.startswith("wide-"):
            raise UsageError(f"{text!r} is not of this space; write wide-<number>")
        return Number(int(text.removeprefix("wide-")))

    def sample(self, seed: int, i: int) -> Number:
        return Number((seed + i) % LENGTH)

    def mutate(self, arch: Number, seed: int, i: int) -> Number:
        return Number((arch.value + 1) % LENGTH)

    def neighbours(self, arch: Number) -> list[Number]:
        return [Number((arch.value + 1) % LENGTH)]

    def key(self, arch: Number) -> str:
        return f"key-{arch.value // 3:07d}"

    def size(self, arch: Number, dataset: str) -> Size:
        return Size(params=arch.value, macs=arch.value)

    def slots(self, arch: Number, dataset: str) -> Slots:
        return self.common_slots(dataset)

    def common_slots(self, dataset: str) -> Slots:
        return Slots(_SLOTS[:18], _SLOTS)

    def correspondence(self, representative: Number, member: Number, dataset: str) -> dict[str, str]:
        return {slot: slot for slot in _SLOTS}

    def build(self, arch: Number, dataset: str, *, full: bool = False) -> Built:
        raise NotImplementedError("members of this space are never built")


class Pretender:
    """Answers for a unit at once, with random numbers in every column."""

    seconds = 0.0

    def __init__(self, spec: RunSpec) -> None:
        columns = columns_of(WIDE, spec.dataset, resolve(spec.proxies))
        self.schema = Header(columns, spec.record(), spec.identity()).schema
        self._random = np.random.default_rng(0)

    def warm_up(self) -> None:
        """Do nothing: there is no device."""

    def score(self, unit: Unit, final: bool = True) -> list[int]:
        """Return the indices of the rows."""
        time.sleep(self.seconds) if self.seconds else None
        return list(unit.members)

    def fail(self, unit: Unit, failed: Failed) -> list[int]:
        """Never called: nothing fails here."""
        raise NotImplementedError

    def tabulate(self, rows: Sequence[int]) -> pa.Table:
        """Return rows of random numbers."""
        index = np.asarray(rows)
        return pa.table([self._column(field, index) for field in self.schema], schema=self.schema)

    def _column(self, field: pa.Field, index: NDArray[np.int64]) -> pa.Array:
        count = len(index)
        match field.name:
            case "index":
                return pa.array(index)
            case "arch":
                return pa.array([f"wide-{i}" for i in index.tolist()])
            case "key":
                return pa.array([f"key-{i // 3:07d}" for i in index.tolist()])
            case "space" | "status":
                return pa.array(["ok" if field.name == "status" else "wide"] * count)
            case "failures":
                return pa.array([[]] * count, field.type)
        if pa.types.is_list(field.type):
            values = self._random.random(count * len(_SLOTS), np.float32)
            return pa.ListArray.from_arrays(np.arange(count + 1, dtype=np.int32) * len(_SLOTS), values)
        if pa.types.is_integer(field.type):
            return pa.array(index)
        return pa.array(self._random.random(count))


class PretendingAgent(Agent):
    """Minds workers that only pretend."""

    scorer = "zcpipe_wide:Pretender"


class Sleeper(Pretender):
    """Takes 0.3 s for a unit and computes nothing meanwhile."""

    seconds = 0.3


WIDE = Wide()
