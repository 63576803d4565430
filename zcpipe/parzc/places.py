"""Places in networks: which slot each value of a list column belongs to, in which order, and what stands together."""

from __future__ import annotations

import heapq
import re
from collections import defaultdict
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from zcpipe.errors import DataError, UsageError
from zcpipe.scoring.columns import Column
from zcpipe.spaces import get_space, list_spaces
from zcpipe.spaces.base import DescribesCells
from zcpipe.table import Table

Integers = NDArray[np.int64]
LARGEST_LAYOUT = 1 << 22  # tokens times width
GRAPH = "graph"  # the column and group of the cell's operations


@dataclass(frozen=True)
class Coordinate:
    """What one feature is.

    Attributes:
        column: of the table, or ``graph``.
        slot: the place in the network; packed, the number among the live nodes of a kind ("layer.3"); in the graph,
            choice and chosen ("0-1=nor_conv_3x3"); empty for a proxy.
        group: the part of the network, such as ``cells.3`` for the slot ``cells.3.layers.2``: a block of the space with
            all that it holds, or what else the first word of a slot names. Packed, each slot is a group. The graph is a
            group, and so are the proxies, whose group is empty.
    """

    column: str
    slot: str
    group: str


@dataclass(frozen=True)
class Sequences:
    """Sequences of slots, and which of them each row has."""

    names: tuple[str, ...]
    flat: Integers  # all sequences, one after the other, as positions in ``names``
    starts: Integers  # [sequences]: where each begins
    lengths: Integers  # [sequences]
    of_row: Integers  # [rows]

    def take(self, rows: NDArray[np.bool_]) -> Sequences:
        """Return what some rows have."""
        return replace(self, of_row=self.of_row[rows])

    def without_first(self) -> Sequences:
        """Return the sequences without the first slot of each."""
        return replace(self, starts=self.starts + 1, lengths=self.lengths - 1)

    def in_order(self) -> Integers:
        """Return the slots that a row has, each once, as positions in ``names`` and in network order.

        A slot comes before those that follow it in a row. Where that leaves a choice, numbers within names decide, and
        then letters: so, too, where rows contradict each other.
        """
        used = np.unique(self.of_row)
        lengths = self.lengths[used]
        flat = self.flat[ranges(self.starts[used], lengths)]
        inner = np.ones(len(flat), bool)
        inner[np.cumsum(lengths)[lengths > 0] - 1] = False  # the last of a sequence has none that follows
        first = np.flatnonzero(inner)
        pairs = np.unique(flat[first] * len(self.names) + flat[first + 1]) if len(first) else first
        before, after = np.divmod(pairs, len(self.names)) if len(first) else (first, first)
        return np.array(_sorted(np.unique(flat).tolist(), before.tolist(), after.tolist(), self.names), np.int64)


def ranges(starts: Integers, lengths: Integers) -> Integers:
    """Return the numbers from each start on, so many as its length, one range after the other."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts - ends + lengths, lengths) + np.arange(total)


def _sorted(items: Iterable[int], before: Sequence[int], after: Sequence[int], names: Sequence[str]) -> list[int]:
    followers: dict[int, list[int]] = defaultdict(list)
    waits: dict[int, int] = dict.fromkeys(items, 0)
    for first, second in zip(before, after, strict=True):
        followers[first].append(second)
        waits[second] += 1
    by_name = sorted((_natural(names[item]), item) for item in waits)
    ready = [entry for entry in by_name if not waits[entry[1]]]
    found: dict[int, None] = {}
    rest = iter(by_name)
    while len(found) < len(by_name):
        # Nothing is ready where rows contradict each other: then the next by name is as good as any.
        item = heapq.heappop(ready)[1] if ready else next(item for _, item in rest if item not in found)
        found[item] = None
        for follower in followers[item]:
            waits[follower] -= 1
            if not waits[follower] and follower not in found:
                heapq.heappush(ready, (_natural(names[follower]), follower))
    return list(found)


def _natural(name: str) -> list[tuple[int, str]]:
    """Return what sorts names by the numbers in them."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def places_of(table: Table, column: Column) -> Sequences:
    """Return the slots of each row's values of a statistic, in the order of the values.

    They are the column's where the space's networks share them. Where they differ every architecture is asked for its
    own, which takes its time; what the last two tables answered is kept.
    """
    if column.slots:
        size = len(column.slots)
        none = np.zeros(len(table), np.int64)
        return Sequences(column.slots, np.arange(size), np.array([0]), np.array([size]), none)
    layers, blocks = _own_slots(table)
    return layers if column.name.endswith("@layer") else blocks


@lru_cache(maxsize=2)
def _own_slots(table: Table) -> tuple[Sequences, Sequences]:
    """Return the layers and blocks of each row's network."""
    space, dataset = get_space(table.identity["space"]), table.identity["dataset"]
    numbers: tuple[dict[str, int], ...] = ({}, {})
    known: tuple[dict[bytes, int], ...] = ({}, {})
    parts: tuple[list[Integers], ...] = ([], [])
    rows = np.zeros((2, len(table)), np.int64)
    for row, arch in enumerate(table.to_arrow(["arch"])["arch"]):
        slots = space.slots(space.parse(arch.as_py()), dataset)
        for kind, names in enumerate((slots.layers, slots.blocks)):
            ids = np.array([numbers[kind].setdefault(name, len(numbers[kind])) for name in names], np.int64)
            rows[kind, row] = at = known[kind].setdefault(ids.tobytes(), len(known[kind]))
            if at == len(parts[kind]):
                parts[kind].append(ids)
    return _sequences(numbers[0], parts[0], rows[0]), _sequences(numbers[1], parts[1], rows[1])


def _sequences(numbers: Iterable[str], parts: Sequence[Integers], of_row: Integers) -> Sequences:
    lengths = np.array([len(part) for part in parts], np.int64)
    flat = np.concatenate([np.zeros(0, np.int64), *parts])
    return Sequences(tuple(numbers), flat, np.cumsum(lengths) - lengths, lengths, of_row)


def blocks_of(table: Table) -> frozenset[str]:
    """Return the names of all blocks of a table's networks."""
    common = get_space(table.identity["space"]).common_slots(table.identity["dataset"])
    return frozenset(_own_slots(table)[1].names if common is None else common.blocks)


def group_of(slot: str, blocks: Container[str]) -> str:
    """Return the block that a slot lies in or is, or its first word where it is outside of all."""
    path = slot
    while path and path not in blocks:
        path = path.rpartition(".")[0]
    return path or slot.partition(".")[0]


def token_layout(coordinates: Sequence[Coordinate]) -> Integers:  # [tokens, width]
    """Arrange coordinates in tokens: one for each group, in network order, then the graph, then the proxies.

    Among the parts of a network a channel means the same in all of them: a column and what is left of the slot without
    the group. The graph's and the proxies' coordinates come as they are.

    Returns:
        Positions in ``coordinates``, each exactly once, and -1 where a token has nothing.

    Raises:
        DataError: it would have more than `LARGEST_LAYOUT` elements.
    """
    tokens: dict[str, list[tuple[int, int]]] = {}  # of each group, channels and coordinates
    channels: dict[tuple[str, str], int] = {}
    numbers: dict[str, int] = {}  # of the groups of the network
    orders: dict[str, dict[int, None]] = {}  # of each column, its groups in order
    for at, coordinate in enumerate(coordinates):
        token = tokens.setdefault(coordinate.group, [])
        if coordinate.group in ("", GRAPH):
            token.append((len(token), at))
            continue
        key = (coordinate.column, coordinate.slot.removeprefix(coordinate.group))
        token.append((channels.setdefault(key, len(channels)), at))
        number = numbers.setdefault(coordinate.group, len(numbers))
        orders.setdefault(coordinate.column, {})[number] = None
    sequences = [np.array(list(order), np.int64) for order in orders.values()]
    places = _sequences(numbers, sequences, np.arange(len(sequences)))
    groups = [*(places.names[i] for i in places.in_order()), *(group for group in (GRAPH, "") if group in tokens)]
    width = 1 + max((channel for token in tokens.values() for channel, _ in token), default=-1)
    if len(groups) * width > LARGEST_LAYOUT:
        raise DataError(
            f"{len(coordinates)} features make {len(groups)} tokens of width {width}, too many for a network; choose "
            "fewer statistics, or a predictor without networks"
        )
    layout = np.full((len(groups), width), -1, np.int64)
    for row, group in enumerate(groups):
        for channel, at in tokens[group]:
            layout[row, channel] = at
    return layout


def graph_of(table: Table) -> tuple[list[Coordinate], Integers]:
    """Return what can be chosen for the cells of a table's space, and what is chosen.

    Returns:
        A coordinate for each thing that can be chosen, and the coordinates that each row has, [rows, choices].

    Raises:
        UsageError: as `choices_of`.
    """
    return choices_of(table.identity["space"]), _codes(table)


def choices_of(name: str) -> list[Coordinate]:
    """Return a coordinate for each thing that can be chosen for the cells of a space.

    Raises:
        UsageError: there is no such space, or it does not offer it; those that do are named.
    """
    space = get_space(name)
    if not isinstance(space, DescribesCells):
        able = [other for other in list_spaces() if isinstance(get_space(other), DescribesCells)]
        raise UsageError(f"{name} does not describe its cells, so that graph means nothing; {', '.join(able)} do")
    symbols = [(choice, symbol) for choice, symbols in space.cell_codes.items() for symbol in symbols]
    return [Coordinate(GRAPH, f"{choice}={symbol}", GRAPH) for choice, symbol in symbols]


@lru_cache(maxsize=2)
def _codes(table: Table) -> Integers:
    space = get_space(table.identity["space"])
    assert isinstance(space, DescribesCells)  # noqa: S101 - asked before
    sizes = [len(symbols) for symbols in space.cell_codes.values()]
    archs = table.to_arrow(["arch"])["arch"].to_pylist()
    codes = [list(space.cell_code(space.parse(arch))) for arch in archs]
    for arch, code in zip(archs, codes, strict=True):
        if len(code) != len(sizes) or not all(0 <= number < size for number, size in zip(code, sizes, strict=True)):
            raise UsageError(
                f"the space {space.name} gives {code} for the choices of the cell of {arch}, which have {sizes} "
                f"options: see zcpipe spaces check {space.name}"
            )
    found: Integers = np.array(codes, np.int64).reshape(-1, len(sizes)) + np.cumsum([0, *sizes[:-1]])
    return found
