"""What a check of a space has found, and how it asks code that may be anybody's."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import torch

from zcpipe.errors import reason_of

Kind = Literal[
    "space",  # what every space has: a name, data sets, methods
    "text",  # parse and str
    "hash",  # equality and hash
    "sample",
    "index",  # of enumerable spaces: index, position, length
    "moves",  # mutate and neighbours
    "choices",  # what options make
    "cells",  # the options of cells
    "key",  # and the function of what shares one
    "size",
    "build",
    "blocks",
    "layers",  # slots of layers
    "correspondence",
    "init",  # parameters that a recipe cannot draw
]

T = TypeVar("T")


@dataclass(frozen=True)
class Finding:
    """One place where a space does not keep its contract, or that its user should know of.

    Attributes:
        kind: what part of the contract.
        architecture: the canonical text of the one that was asked about, None where it is the space itself.
        message: what was expected, and what was there.
    """

    kind: Kind
    architecture: str | None
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.kind, self.architecture, self.message) if part)


class Findings:
    """Collects problems and notes, each once."""

    def __init__(self) -> None:
        self._problems: dict[Finding, None] = {}
        self._notes: dict[Finding, None] = {}

    @property
    def problems(self) -> tuple[Finding, ...]:
        """What does not keep the contract, in the order in which it was found."""
        return tuple(self._problems)

    @property
    def notes(self) -> tuple[Finding, ...]:
        """What does no harm to scores."""
        return tuple(self._notes)

    def problem(self, kind: Kind, architecture: str | None, message: str) -> None:
        """Add a problem."""
        self._problems[Finding(kind, architecture, message)] = None

    def note(self, kind: Kind, architecture: str | None, message: str) -> None:
        """Add a note."""
        self._notes[Finding(kind, architecture, message)] = None

    def require(self, fine: bool, kind: Kind, architecture: str | None, message: str) -> bool:
        """Add a problem unless all is fine; return whether it is."""
        if not fine:
            self.problem(kind, architecture, message)
        return fine

    @contextmanager
    def asking(self, kind: Kind, architecture: str | None, what: str) -> Iterator[None]:
        """Turn whatever a space raises into a problem; what was left to do inside is skipped.

        Args:
            kind: of the problem.
            architecture: that the space is asked about.
            what: is asked for, such as "its size".
        """
        try:
            yield
        except (KeyboardInterrupt, GeneratorExit):  # the latter where an interruption hit between two lines
            raise
        except BaseException as error:  # a space is anybody's code: a fault in it, sys.exit too, is what we look for
            self.problem(kind, architecture, f"{what} raises {reason_of(error)}")


def shown(text: str, most: int = 60) -> str:
    """Return a text in quotes as a message shows it, cut where it is long."""
    return repr(text if len(text) <= most else f"{text[: most - 3]}...")


def spread(things: Sequence[T], most: int, turn: int = 0) -> list[T]:
    """Choose so many, evenly; another turn chooses others."""
    if len(things) <= most:
        return list(things)
    return [things[(i * len(things) // most + turn) % len(things)] for i in range(most)]


RandomStates = dict[str, object]


def random_states() -> RandomStates:
    """Return the global random states by whose they are, as they can be compared."""
    _, key, position, *_ = np.random.get_state()
    return {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "random": random.getstate(),
        "numpy": (key.tobytes() if isinstance(key, np.ndarray) else key, position),
    }


def drawn_from(before: RandomStates) -> list[str]:
    """Name the global random states that are other than before."""
    now = random_states()
    return [name for name, state in before.items() if state != now[name]]


@contextmanager
def other_random_states(seed: int) -> Iterator[None]:
    """Seed the global random states for a while: what depends on them comes out otherwise."""
    kept = torch.get_rng_state(), random.getstate(), np.random.get_state()
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(kept[0])
        random.setstate(kept[1])
        np.random.set_state(kept[2])
