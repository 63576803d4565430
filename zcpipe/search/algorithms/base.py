"""What a search algorithm is: asked for an architecture to train, told how accurate it has become."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np

from zcpipe.search.candidates import Candidates
from zcpipe.search.moves import Moves
from zcpipe.search.warmup import WarmUp
from zcpipe.spaces.base import Architecture

A = TypeVar("A", bound=Architecture)


class Algorithm(Protocol[A]):
    """One search under one seed: `ask` and `tell` alternate, and what it asks depends on what it was told alone."""

    def ask(self) -> A | None:
        """Return the architecture to train next, None if it has none left.

        It may ask for what it has asked for before, or for another architecture of a key that is trained: it is told
        what that training gave, and nothing is trained.

        Raises:
            ZcpipeError: scores that it needs cannot be had.
        """
        ...

    def tell(self, arch: A, accuracy: float) -> None:
        """Take the accuracy of what was asked last: higher is better whatever the target; NaN if training failed."""
        ...


@dataclass(frozen=True)
class Setting(Generic[A]):
    """What an algorithm searches under.

    Attributes:
        candidates: what it may ask for.
        seed: of all that it draws.
        budget: how many models will be trained.
        warmup: how to begin, None to begin without scores.
        moves: how to choose among neighbours, None to choose at random.
    """

    candidates: Candidates[A]
    seed: int
    budget: int
    warmup: WarmUp | None = None
    moves: Moves | None = None

    def rng(self, purpose: str) -> np.random.Generator:
        """Return random numbers that belong to the seed and a purpose."""
        digest = hashlib.blake2b(f"{self.seed}:{purpose}".encode(), digest_size=16).digest()
        return np.random.default_rng(int.from_bytes(digest, "little"))


class Method(Protocol):
    """An algorithm by name with its parameters, which are the fields of a frozen dataclass: it can be pickled.

    A module of this package offers its own in a tuple ``METHODS``.
    """

    name: str
    takes: frozenset[str]  # of "warmup" and "moves"
    paper: str

    def start(self, setting: Setting[A]) -> Algorithm[A]:
        """Begin a search.

        Raises:
            UsageError: the setting cannot be searched under: the space lacks something, or the warm-up does not fit.
            DataError: too few candidates.
        """
        ...
