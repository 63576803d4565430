"""What happens in a run, as it is told to whoever listens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Planned:
    """A run is about to begin."""

    rows: int
    present: int


@dataclass(frozen=True)
class Scored:
    """A key class is done; ``failed`` of its rows are not ok."""

    rows: int
    failed: int


@dataclass(frozen=True)
class Committed:
    """A shard became visible."""

    path: Path
    rows: int


@dataclass(frozen=True)
class Warned:
    """Something the user should know that does not stop the run."""

    message: str


Event = Planned | Scored | Committed | Warned
