"""What happens in a run, as it is told to whoever listens."""

from __future__ import annotations

from dataclasses import dataclass

from zcpipe.table.place import Place


@dataclass(frozen=True)
class Drawn:
    """So many of the random architectures to come are drawn, before the run is planned; told every thousand or so."""

    done: int
    total: int


@dataclass(frozen=True)
class Planned:
    """A run is about to begin."""

    rows: int
    present: int


@dataclass(frozen=True)
class Scored:
    """Rows have come in; ``failed`` of them are neither ok nor partial.

    ``seconds`` is how long they took one after the other, ``node`` where (nothing on one machine).
    """

    rows: int
    failed: int
    seconds: float = 0.0
    node: str = ""


@dataclass(frozen=True)
class Committed:
    """A shard became visible."""

    path: Place
    rows: int


@dataclass(frozen=True)
class Warned:
    """Something the user should know that does not stop the run."""

    message: str


@dataclass(frozen=True)
class Joined:
    """A node is used from now on, by so many actors."""

    node: str
    actors: int


@dataclass(frozen=True)
class Left:
    """A node is used no more."""

    node: str
    reason: str


Event = Drawn | Planned | Scored | Committed | Warned | Joined | Left
