"""What an executor is: something that turns leases of units into their outcomes, in any order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from zcpipe.run.rows import Failed
from zcpipe.run.work import Unit


@dataclass(frozen=True)
class Lease:
    """A piece of one shard, about two seconds of work.

    Attributes:
        units: computed by one worker, one after the other.
        alone: its unit has ended a worker: it gets a fresh one, which has nothing else meanwhile.
        failed: its unit has no scores, for this reason: only its rows are made.
        avoid: the place where its unit ended a worker; another is better, where there is one.
    """

    units: tuple[Unit, ...]
    alone: bool = False
    failed: Failed | None = None
    avoid: str = ""


@dataclass(frozen=True)
class Done:
    """Units that have their rows, whatever the status of those.

    Attributes:
        units: whole, in the order of ``rows``.
        rows: one per member of each unit, in the columns of the table.
        seconds: that all of them took, one after the other.
        build: what computed them (`zcpipe.run.rows.build`), as JSON.
        place: where that was: a node, or nothing on one machine.
    """

    units: tuple[Unit, ...]
    rows: pa.Table
    seconds: float
    build: str = ""
    place: str = ""


@dataclass(frozen=True)
class Died:
    """A unit that had its worker end, or be ended, without rows, or that its worker set aside.

    Attributes:
        unit: the one that was being executed, and the only one that is suspected.
        failed: how it ended.
        place: where that was: a node, or nothing on one machine.
    """

    unit: Unit
    failed: Failed
    place: str = ""


Outcome = Done | Died


class Executor(Protocol):
    """Computes units somewhere. Every unit submitted has exactly one outcome, whatever else dies on the way."""

    @property
    def capacity(self) -> int:
        """How many units can be computed at one time."""
        ...

    def wants(self) -> bool:
        """Whether another lease would keep it busy; it need not be given one."""
        ...

    def submit(self, lease: Lease) -> None:
        """Take over a lease."""
        ...

    def collect(self) -> Sequence[Outcome]:
        """Wait a while for outcomes; called only while units are under way."""
        ...

    def close(self) -> None:
        """Stop at once, abandoning what is under way."""
        ...
