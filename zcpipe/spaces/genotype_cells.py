"""Genotypes: cells of two inputs, as NASNet, AmoebaNet, PNAS, ENAS and DARTS made them, and their texts.

A cell's nodes 0 and 1 are what the two cells before it gave, each brought to the cell's width by a layer of its own
(the older one first). Every further node is the sum of two edges, each an operation on an earlier node; the cell's
output is the concatenation of some of them. A network stacks normal cells and two reduction cells, whose edges from
nodes 0 and 1 halve the pixels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from zcpipe.errors import UsageError
from zcpipe.spaces.graphs import Operation, Wiring, canonical_text, correspondence, live_edges

Edge = tuple[str, int]
"""An operation and the node that it reads."""

OPERATIONS: Mapping[str, Operation] = {
    "none": Operation("zero"),
    "skip_connect": Operation("identity"),
    "avg_pool_3x3": Operation("free", "a3"),
    "max_pool_3x3": Operation("free", "m3"),
    "max_pool_5x5": Operation("free", "m5"),
    "max_pool_7x7": Operation("free", "m7"),
    "conv_1x1": Operation("weighted", "c1"),
    "conv_3x3": Operation("weighted", "c3"),
    "conv_3x1_1x3": Operation("weighted", "r3"),
    "conv_7x1_1x7": Operation("weighted", "r7"),
    "sep_conv_3x3": Operation("weighted", "s3"),
    "sep_conv_5x5": Operation("weighted", "s5"),
    "sep_conv_7x7": Operation("weighted", "s7"),
    "dil_conv_3x3": Operation("weighted", "d3"),
    "dil_conv_5x5": Operation("weighted", "d5"),
    "dil_sep_conv_3x3": Operation("weighted", "ds3"),
}
INPUTS = 2

_TEXT = re.compile(r"(\S+) w(\d{1,9}) d(\d{1,9})( aux)? normal (\S+) reduce (\S+)", re.ASCII)
_EDGE = re.compile(r"(\w+)~(\d{1,9})", re.ASCII)
_CONCAT = re.compile(r"\d{1,9}(,\d{1,9})*", re.ASCII)
_NUMBERS = {name: number for number, name in enumerate(OPERATIONS)}
_HALVING = len(OPERATIONS)  # what a skip is where it halves the pixels: two convolutions


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        nodes: the two edges of node 2, of node 3, and so on.
        concat: the nodes that make the output, in ascending order.
    """

    nodes: tuple[tuple[Edge, Edge], ...]
    concat: tuple[int, ...]

    def __str__(self) -> str:
        nodes = "+".join("|" + "".join(f"{operation}~{source}|" for operation, source in node) for node in self.nodes)
        return f"{nodes}@{','.join(map(str, self.concat))}"

    @cached_property
    def edges(self) -> tuple[Edge, ...]:
        """All edges, two for each node in turn."""
        return tuple(edge for node in self.nodes for edge in node)

    @cached_property
    def live(self) -> tuple[bool, ...]:
        """Whether each of ``edges`` lies on a path from an input to the output."""
        return tuple(live_edges(self._wiring, [self._numbers(reduction=False)])[0].tolist())

    @cached_property
    def read(self) -> tuple[bool, bool]:
        """Whether a live edge reads each of the two inputs."""
        sources = {source for (_, source), lives in zip(self.edges, self.live, strict=True) if lives}
        return 0 in sources, 1 in sources

    def key(self, reduction: bool) -> str:
        """Return what the cell computes of its inputs ``a``, the older one, and ``b`` in one canonical text."""
        return canonical_text(self._wiring, self._numbers(reduction))

    def matches(self, member: Cell, reduction: bool) -> dict[int, int]:
        """Return for each live weighted edge of a cell of the same key, by its position, one of this cell."""
        ours, theirs = self._numbers(reduction), member._numbers(reduction)
        return correspondence(self._wiring, ours, theirs, member._wiring)

    @property
    def _wiring(self) -> Wiring:
        return _wiring(tuple(source for _, source in self.edges), self.concat)

    def _numbers(self, reduction: bool) -> list[int]:
        return [_HALVING if halves_skip(edge, reduction) else _NUMBERS[edge[0]] for edge in self.edges]


@dataclass(frozen=True)
class CellNetwork:
    """One architecture: two cells and how they are stacked.

    Attributes:
        family: the first word of its text; the same cells in another family are another architecture.
        width: channels of the first normal cells.
        depth: how many cells there are, the two reduction cells among them.
        aux: whether training used an auxiliary classifier. The network's output does not depend on it; parameters and
            multiply-accumulates count it.
        normal: the cell that keeps the pixels.
        reduce: the cell that halves them.
    """

    family: str
    width: int
    depth: int
    normal: Cell
    reduce: Cell
    aux: bool = False

    def __str__(self) -> str:
        aux = " aux" if self.aux else ""
        return f"{self.family} w{self.width} d{self.depth}{aux} normal {self.normal} reduce {self.reduce}"

    @property
    def branch(self) -> int:
        """The position of the cell that an auxiliary classifier reads: the second reduction cell."""
        return 2 * self.depth // 3

    @property
    def reductions(self) -> frozenset[int]:
        """The positions of the reduction cells: one and two thirds of the depth."""
        return frozenset((self.depth // 3, self.branch))

    def cell(self, position: int) -> Cell:
        """Return the cell at a position."""
        return self.reduce if position in self.reductions else self.normal


def halves_skip(edge: Edge, reduction: bool) -> bool:
    """Whether an edge is a skip from an input of a reduction cell, and therefore no identity."""
    return reduction and edge[0] == "skip_connect" and edge[1] < INPUTS


def loose_ends(nodes: Sequence[tuple[Edge, Edge]]) -> tuple[int, ...]:
    """Return the nodes that no other reads."""
    read = {source for node in nodes for _, source in node}
    return tuple(node for node in range(INPUTS, INPUTS + len(nodes)) if node not in read)


@dataclass(frozen=True)
class TextParts:
    """What an architecture's text says, as yet unchecked: for each kind of cell its edges and concatenated nodes."""

    family: str
    width: int
    depth: int
    aux: bool
    cells: Mapping[str, tuple[list[Edge], list[int]]]


def split_text(text: str) -> TextParts:
    """Take an architecture's text apart.

    Raises:
        UsageError: it has not the form of one.
    """
    match = _TEXT.fullmatch(text)
    if match is None:
        raise UsageError("expected '<family> w<width> d<depth> normal <cell> reduce <cell>'")
    family, width, depth, aux, normal, reduce = match.groups()
    cells = {kind: _split_cell(kind, cell) for kind, cell in (("normal", normal), ("reduce", reduce))}
    return TextParts(family, int(width), int(depth), aux is not None, cells)


def _split_cell(kind: str, text: str) -> tuple[list[Edge], list[int]]:
    body, _, concat = text.partition("@")
    edges: list[Edge] = []
    for number, node in enumerate(body.split("+"), start=INPUTS):
        matches = [match for edge in node[1:-1].split("|") if (match := _EDGE.fullmatch(edge))]
        if len(matches) != 2 or node != "|" + "".join(f"{match[0]}|" for match in matches):
            raise UsageError(f"{kind}: node {number} must be two edges such as '|none~0|none~1|', got {node!r:.80}")
        edges += [(match[1], int(match[2])) for match in matches]
    if not _CONCAT.fullmatch(concat):
        raise UsageError(f"{kind}: expected the concatenated nodes at its end, such as '@2,3', got {concat!r:.80}")
    return edges, [int(node) for node in concat.split(",")]


@lru_cache(maxsize=1024)
def _wiring(sources: tuple[int, ...], concat: tuple[int, ...]) -> Wiring:
    edges = tuple((source, INPUTS + position // 2) for position, source in enumerate(sources))
    return Wiring((*OPERATIONS.values(), Operation("weighted", "f")), ("a", "b"), edges, concat)
