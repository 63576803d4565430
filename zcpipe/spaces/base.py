"""What every search space offers, and what a built network tells about itself."""

from __future__ import annotations

from collections.abc import Callable, Container, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from torch import nn

from zcpipe.errors import UsageError


@dataclass(frozen=True)
class Dataset:
    """The shape of a task: what enters a network of this space and how many classes leave it."""

    name: str
    input_shape: tuple[int, int, int]  # C, H, W
    classes: int


@dataclass(frozen=True)
class Size:
    """How large the network of a FULL architecture is, dead layers included, as the benchmarks count it."""

    params: int  # independent scalars of all weights and biases
    macs: int  # multiply-accumulates of convolutions and linear layers for one input

    def __add__(self, other: Size) -> Size:
        return Size(self.params + other.params, self.macs + other.macs)


@dataclass(frozen=True)
class Built:
    """A network, by default without the layers that cannot influence its output.

    Its weights wait for a recipe: ``zcpipe.initialise`` fills them, and gives a model on the meta device its memory.
    """

    model: nn.Module
    blocks: tuple[str, ...]  # names of the modules whose outputs are the block maps, in order of depth


@dataclass(frozen=True)
class Slots:
    """The places of a full network that hold a node each, in order of depth.

    Attributes:
        blocks: the names of its block maps: those of `Built.blocks`, whatever was left out.
        layers: its places for weighted layers, which are convolutions and linear layers. The name of a slot is the
            module path of the layer that fills it, or one above it that holds no other weighted layer: `slot_of` finds
            it. The order is that in which the layers stand in the network's ``named_modules()``.
    """

    blocks: tuple[str, ...]
    layers: tuple[str, ...]


class Architecture(Hashable, Protocol):
    """One member of a space: frozen, hashable, and ``str`` gives its one canonical text."""

    def __str__(self) -> str: ...


A = TypeVar("A", bound=Architecture)


@runtime_checkable
class Space(Hashable, Protocol[A]):
    """A search space. ``parse`` and ``str`` are inverse; every random draw is a function of its arguments alone."""

    name: str
    datasets: Mapping[str, Dataset]
    paper: str

    def parse(self, text: str) -> A:
        """Read the canonical text of an architecture; ``UsageError`` names what is wrong with any other text."""
        ...

    def sample(self, seed: int, i: int) -> A:
        """Return the ``i``-th random architecture under ``seed``; it needs no earlier draw."""
        ...

    def mutate(self, arch: A, seed: int, i: int) -> A:
        """Return a random neighbour of ``arch``, the ``i``-th under ``seed``."""
        ...

    def neighbours(self, arch: A) -> list[A]:
        """Return every architecture one elementary change away, in a fixed order."""
        ...

    def key(self, arch: A) -> str:
        """Return the text shared by all architectures that compute the same function with the same free weights."""
        ...

    def size(self, arch: A, dataset: str) -> Size:
        """Return parameters and multiply-accumulates of the full architecture's network for ``dataset``."""
        ...

    def slots(self, arch: A, dataset: str) -> Slots:
        """Return the nodes of the full architecture's network: what the values of its statistics belong to."""
        ...

    def common_slots(self, dataset: str) -> Slots | None:
        """Return the nodes that every network of this space has, None where they differ between architectures."""
        ...

    def correspondence(self, representative: A, member: A, dataset: str) -> Mapping[str, str]:
        """Say which layer of one architecture is which of another with the same key.

        With the weights of its counterparts ``member`` computes what ``representative`` does. An architecture that
        shares its key with no other has itself for a counterpart: every slot is mapped to itself.

        Returns:
            For each slot of ``member`` that a layer fills once dead ones are left out, in order, the representative's.
        """
        ...

    def build(self, arch: A, dataset: str, *, full: bool = False) -> Built:
        """Build the network of ``arch`` for ``dataset`` on the CPU or the meta device; a recipe fills its weights.

        With ``full`` the layers that cannot influence the output are there, too. They run whenever the network does,
        forward only and without a trace in outputs and gradients, for statistics that count them.
        """
        ...


@runtime_checkable
class EnumerableSpace(Space[A], Protocol[A]):
    """A space whose members can be counted; ``sample`` draws without replacement (``i`` below the length)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> A: ...

    def index(self, arch: A) -> int:
        """Return the position of ``arch`` in the space's own order."""
        ...


@runtime_checkable
class KeyedAtOnce(Protocol):
    """What an enumerable space offers besides where its keys are cheaper together than one by one."""

    def all_keys(self) -> Sequence[str]:
        """Return the key of every member, in the space's own order."""
        ...


@runtime_checkable
class DrawsByDataset(Space[A], Protocol[A]):
    """What a space offers besides whose benchmark drew other architectures for other data sets."""

    def sample_for(self, dataset: str, seed: int, i: int) -> A:
        """Return the ``i``-th random architecture for a data set under ``seed``; it needs no earlier draw."""
        ...


@runtime_checkable
class MovesFromNetwork(Space[A], Protocol[A]):
    """What a space offers besides in which published searches move from one network to others."""

    def initial(self) -> A:
        """Return the network with which the searches start."""
        ...

    def mutate(self, arch: A, seed: int, i: int, places: int = 1) -> A:
        """Return the ``i``-th random move from ``arch`` under ``seed``, which changes so many places at most."""
        ...

    def num_layers(self, arch: A) -> int:
        """Return the layers of an architecture, as the searches limit them."""
        ...


@runtime_checkable
class PublishedFlops(Space[A], Protocol[A]):
    """What a space offers besides whose published searches limit a count of FLOPs that is not ours of operations."""

    def published_flops(self, arch: A, dataset: str) -> float:
        """Return what those searches call the FLOPs of an architecture."""
        ...


@runtime_checkable
class LimitsResolution(Protocol):
    """What a space offers besides whose networks do not take images of every size."""

    def check_resolution(self, side: int) -> None:
        """Refuse a side of images that no network of the space takes.

        Raises:
            UsageError: it is one; the message says which fit.
        """
        ...


@runtime_checkable
class DescribesCells(Space[A], Protocol[A]):
    """What a space offers besides whose architectures repeat a cell that a few choices make."""

    @property
    def cell_codes(self) -> Mapping[str, Sequence[str]]:
        """The choices by name, such as an edge, and for each what can be chosen, such as operations."""
        ...

    def cell_code(self, arch: A) -> Sequence[int]:
        """Return the number of what ``arch`` has for each of ``cell_codes``, in their order."""
        ...


@runtime_checkable
class MadeOfChoices(Space[A], Protocol[A]):
    """What a space offers besides whose architectures are made of a few independent choices.

    Some may decide nothing, such as those of layers beyond an architecture's depth: what differs in them alone is one
    architecture.
    """

    @property
    def choices(self) -> Sequence[int]:
        """How many options each choice has."""
        ...

    def choose(self, numbers: Sequence[int]) -> A | None:
        """Return the architecture made of these options, one of each choice; None where they make none."""
        ...


@dataclass(frozen=True)
class Entry:
    """An architecture of a benchmark's official file."""

    file: Path
    position: int  # in the file, from 0
    arch: Architecture
    dataset: str | None  # on which the file's architectures were trained, None where nothing says so
    content: Mapping[str, Any]  # what the file holds about it

    @property
    def where(self) -> str:
        """Say where the entry is, for messages."""
        return f"{self.file}, entry {self.position}"


@runtime_checkable
class ReadsEntries(Protocol):
    """What a space offers besides whose benchmark publishes architectures in JSON files."""

    def entries(self, path: Path, progress: Callable[[int, int], None] | None = None) -> list[Entry]:
        """Read an official file, or all in a directory.

        Args:
            path: the file or directory.
            progress: told (bytes read so far, bytes in all).

        Raises:
            DataError: a file is missing, damaged or foreign; file and entry are named.
        """
        ...


@dataclass(frozen=True)
class Verification:
    """How many of a file's networks have the counts that it states; the mismatches are records that JSON can hold."""

    n: int
    params_equal: int
    macs_equal: int
    mismatches: tuple[dict[str, Any], ...]


@runtime_checkable
class Verifies(Protocol):
    """What a space offers besides whose benchmark states how large its networks are."""

    def verify(self, path: Path, progress: Callable[[int, int], None] | None = None) -> Verification:
        """Build every architecture of official files and compare its counts with those that the files state.

        Args:
            path: an official file, or a directory of them.
            progress: told (networks done, networks in all).

        Raises:
            DataError: a file is missing, damaged or foreign; file and entry are named.
        """
        ...


def slot_of(layer: str, slots: Container[str]) -> str:
    """Return the slot that a weighted layer fills: the part of its module path that is one.

    Args:
        layer: the layer's module path, such as ``cells.3.layers.2.op.1``.
        slots: those of its space (`Space.slots`); a set or mapping where many layers are looked up.

    Returns:
        The slot, such as ``cells.3.layers.2``.

    Raises:
        UsageError: no part of the path is a slot.
    """
    path = layer
    while path not in slots:
        path, dot, _ = path.rpartition(".")
        if not dot:
            raise UsageError(f"layer {layer!r} fills no slot of its space")
    return path
