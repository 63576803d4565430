"""What an executor is: something that turns leases of units into their outcomes, in any order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from zcpipe.run.rows import Failed, Row
from zcpipe.run.work import Unit

Lease = Sequence[Unit]  # a piece of one shard, about two seconds of work


@dataclass(frozen=True)
class Outcome:
    """The rows of a unit, or why it has none; ``seconds`` is how long it took."""

    unit: Unit
    result: Sequence[Row] | Failed
    seconds: float


class Executor(Protocol):
    """Computes units somewhere. Every unit submitted has exactly one outcome, whatever dies on the way."""

    def wants(self) -> bool:
        """Whether another lease would keep it busy; it need not be given one."""
        ...

    def submit(self, lease: Lease) -> None:
        """Take over a lease."""
        ...

    def collect(self) -> list[Outcome]:
        """Wait for one or more outcomes; called only while units are under way."""
        ...

    def close(self) -> None:
        """Stop at once, abandoning what is under way."""
        ...
