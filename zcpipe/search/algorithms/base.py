"""What a search algorithm is: asked for an architecture to train, told how accurate it has become."""

from __future__ import annotations

import hashlib
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

import numpy as np

from zcpipe.declared import bad_name, bad_text, lacking_methods
from zcpipe.search.candidates import Candidates
from zcpipe.search.features import Features
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
        features: what to learn from, None where nothing is learnt from features.
    """

    candidates: Candidates[A]
    seed: int
    budget: int
    warmup: WarmUp | None = None
    moves: Moves[A] | None = None
    features: Features | None = None

    def rng(self, purpose: str) -> np.random.Generator:
        """Return random numbers that belong to the seed and a purpose."""
        digest = hashlib.blake2b(f"{self.seed}:{purpose}".encode(), digest_size=16).digest()
        return np.random.default_rng(int.from_bytes(digest, "little"))


class Method(Protocol):
    """An algorithm by name with its parameters; its class offers itself in the tuple ``METHODS`` of its module.

    It is a frozen pydantic model of its parameters (`zcpipe.parzc.predictors.base.Parameters`), so it can be pickled.
    """

    name: ClassVar[str]
    takes: ClassVar[frozenset[str]]  # of "warmup", "moves" and "features"
    paper: ClassVar[str]

    @classmethod
    def model_validate(cls, obj: Any, /) -> Self:  # noqa: ANN401 - pydantic's own
        """Make it of what differs from its defaults; ``UsageError`` says what is wrong with a parameter."""
        ...

    def model_dump(self) -> dict[str, Any]:
        """Return its parameters."""
        ...

    def start(self, setting: Setting[A]) -> Algorithm[A]:
        """Begin a search.

        Raises:
            UsageError: the setting cannot be searched under: the space lacks something, or the warm-up does not fit.
            DataError: too few candidates.
        """
        ...


def faults(method: Any) -> Iterator[str]:  # noqa: ANN401
    """Find fault with an algorithm that an installed package offers, as `zcpipe.registry.Check` does."""
    if not isinstance(method, type):
        yield "an algorithm must be a class (zcpipe.search.algorithms.Method), not an instance"
        return
    yield from bad_name(getattr(method, "name", None))
    takes = getattr(method, "takes", None)
    if not isinstance(takes, frozenset) or not takes <= {"warmup", "moves", "features"}:
        yield f"its takes must be a frozenset of warmup, moves and features, got {reprlib.repr(takes)}"
    yield from bad_text(method, "paper")
    yield from lacking_methods(method, Method)
