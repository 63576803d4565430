"""The slow reference twin of csrc/graph: the same texts, hashes and cells from plain Python."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from zcpipe.errors import UsageError

if TYPE_CHECKING:
    from zcpipe.spaces.graphs import Wiring

_MAX_TEXT, _MAX_WORK = 2**16, 2**30  # characters; numberings times characters


def _live_edges(wiring: Wiring, cell: Sequence[int]) -> list[bool]:
    there = [wiring.operations[operation].kind != "zero" for operation in cell]
    reached, useful = set(range(len(wiring.inputs))), set(wiring.outputs)
    order = sorted(range(len(wiring.edges)), key=lambda edge: wiring.edges[edge][1])
    for edge in order:
        source, target = wiring.edges[edge]
        if there[edge] and source in reached:
            reached.add(target)
    for edge in reversed(order):
        source, target = wiring.edges[edge]
        if there[edge] and target in useful:
            useful.add(source)
    return [
        there[edge] and source in reached and target in useful for edge, (source, target) in enumerate(wiring.edges)
    ]


def _canonical_text(wiring: Wiring, cell: Sequence[int]) -> str:
    """Canonical text of one cell; see `zcpipe.spaces.graphs.canonical_texts`.

    A weighted edge is an atom with weights of its own, so edges of equal text are told apart by numbers; the numbering
    that gives the smallest text is canonical.
    """
    live = _live_edges(wiring, cell)
    twins: dict[str, list[int]] = {}  # text without numbers -> weighted edges that have it
    plain = _render(wiring, cell, live, {}, twins)
    groups = [edges for edges in twins.values() if len(edges) > 1]
    if math.prod(math.factorial(len(edges)) for edges in groups) > _MAX_WORK // len(plain):
        raise UsageError("its weighted edges can be numbered in too many ways")
    texts = []
    for orders in itertools.product(*(itertools.permutations(edges) for edges in groups)):
        numbers = {edge: f"#{number}" for order in orders for number, edge in enumerate(order, start=1)}
        texts.append(_render(wiring, cell, live, numbers, {}))
    return min(texts)


def _render(
    wiring: Wiring, cell: Sequence[int], live: Sequence[bool], numbers: dict[int, str], twins: dict[str, list[int]]
) -> str:
    """Write a cell's output as text, weighted edges marked by ``numbers``; collect the weighted edges by text."""
    sums = [Counter({name: 1}) for name in wiring.inputs]
    sums += [Counter() for _ in range(wiring.nodes - len(wiring.inputs))]
    for edge in sorted(range(len(wiring.edges)), key=lambda edge: wiring.edges[edge][1]):
        source, target = wiring.edges[edge]
        operation = wiring.operations[cell[edge]]
        if not live[edge]:
            continue
        if operation.kind == "identity":
            sums[target].update(sums[source])
            continue
        term = _checked(f"{operation.symbol}{numbers.get(edge, '')}({_sum_text(sums[source])}")
        if operation.kind == "weighted":
            twins.setdefault(term, []).append(edge)
        sums[target][f"{term})"] += 1
    parts = sorted(_sum_text(sums[node]) for node in wiring.outputs)
    return _checked(parts[0] if len(parts) == 1 else f"[{','.join(parts)}]")


def _sum_text(terms: Counter[str]) -> str:
    return "+".join(f"{count}{term}" if count > 1 else term for term, count in sorted(terms.items())) or "0"


def _checked(text: str) -> str:
    if len(text) > _MAX_TEXT:
        raise UsageError("its text is too long")
    return text


# NAS-Bench-101. A code is vertices, edges (bit y(y - 1)/2 + x for the edge from x to y > x) and operations (two bits
# each, the first leading); `_unpack` gives the three.

_Cell = tuple[int, int, tuple[int, ...]]


def _unpack(code: int) -> _Cell:
    vertices, edges = code >> 31, code >> 10 & (1 << 21) - 1
    return vertices, edges, tuple(code >> 2 * (vertices - 3 - v) & 3 for v in range(vertices - 2))


def _pack(cell: _Cell) -> int:
    vertices, edges, operations = cell
    return (vertices << 21 | edges) << 10 | sum(operation << 2 * v for v, operation in enumerate(reversed(operations)))


def _bit(x: int, y: int) -> int:
    return 1 << y * (y - 1) // 2 + x


def _pairs(vertices: int, edges: int) -> list[tuple[int, int]]:
    return [(x, y) for y in range(vertices) for x in range(y) if edges & _bit(x, y)]


def _prune(code: int) -> int:
    """Code without the vertices on no path from input to output; -1 where there is no path."""
    vertices, edges, operations = _unpack(code)
    pairs = _pairs(vertices, edges)
    reached, useful = {0}, {vertices - 1}
    for x, y in sorted(pairs):
        if x in reached:
            reached.add(y)
    for x, y in sorted(pairs, reverse=True):
        if y in useful:
            useful.add(x)
    kept = sorted(reached & useful)
    if 0 not in kept:
        return -1
    place = {v: i for i, v in enumerate(kept)}
    edges = sum(_bit(place[x], place[y]) for x, y in pairs if x in place and y in place)
    return _pack((len(kept), edges, tuple(operations[v - 1] for v in kept[1:-1])))


def _orders(vertices: int) -> Iterator[tuple[int, ...]]:
    """Where each vertex goes when the inner ones are reordered."""
    for inner in itertools.permutations(range(1, vertices - 1)):
        yield (0, *inner, vertices - 1)


def _canonical(code: int) -> int:
    """Smallest code of the pruned cell under reordering; -1 where input and output are not connected."""
    pruned = _prune(code)
    if pruned < 0:
        return -1
    vertices, edges, operations = _unpack(pruned)
    pairs = _pairs(vertices, edges)
    found = []
    for order in _orders(vertices):
        if all(order[x] < order[y] for x, y in pairs):
            moved = [0] * len(operations)
            for v, operation in enumerate(operations, start=1):
                moved[order[v] - 1] = operation
            found.append(_pack((vertices, sum(_bit(order[x], order[y]) for x, y in pairs), tuple(moved))))
    return min(found)


def _hash(code: int) -> str:
    """The benchmark's hash of a cell without vertices to prune."""
    vertices, edges, operations = _unpack(code)
    pairs = _pairs(vertices, edges)
    labels = (-1, *operations, -2)
    into = [[x for x, y in pairs if y == v] for v in range(vertices)]
    out_of = [[y for x, y in pairs if x == v] for v in range(vertices)]
    hashes = [_md5(str((len(out_of[v]), len(into[v]), labels[v]))) for v in range(vertices)]
    for _ in range(vertices):
        hashes = [
            _md5("|".join((_joined(hashes, into[v]), _joined(hashes, out_of[v]), hashes[v]))) for v in range(vertices)
        ]
    return _md5(str(sorted(hashes)))


def _joined(hashes: Sequence[str], vertices: Sequence[int]) -> str:
    return "".join(sorted(hashes[v] for v in vertices))


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def _cells(max_vertices: int = 7) -> NDArray[np.int64]:
    """Codes of all cells; see `zcpipe.spaces.graphs.nasbench101_cells`."""
    return np.concatenate([_cells_of(vertices) for vertices in range(2, max_vertices + 1)])


def _cells_of(vertices: int) -> NDArray[np.int64]:
    """The smallest graph of each isomorphism class with those operations that no automorphism makes smaller."""
    masks = np.arange(1 << vertices * (vertices - 1) // 2)
    masks = masks[sum(masks >> bit & 1 for bit in range(21)) <= 9]
    for v in range(vertices):
        into, out_of = sum(_bit(x, v) for x in range(v)), sum(_bit(v, y) for y in range(v + 1, vertices))
        masks = masks[((v == 0) | (masks & into != 0)) & ((v == vertices - 1) | (masks & out_of != 0))]
    moved = {order: _moved(masks, order) for order in _orders(vertices)}
    smallest = np.all([reordered >= masks for reordered in moved.values()], axis=0)
    choices = np.array(list(itertools.product(range(3), repeat=vertices - 2)), np.int64)
    choices = choices.reshape(3 ** (vertices - 2), vertices - 2)
    weights = 4 ** np.arange(vertices - 2)[::-1]
    digits = choices @ weights
    kept = np.ones((np.count_nonzero(smallest), len(choices)), bool)
    for order, reordered in moved.items():
        automorphic = reordered[smallest] == masks[smallest]
        target = [order[v + 1] - 1 for v in range(vertices - 2)]
        kept &= ~automorphic[:, None] | (digits <= choices @ weights[target])
    graph, choice = np.nonzero(kept)
    codes: NDArray[np.int64] = (vertices << 21 | masks[smallest][graph]) << 10 | digits[choice]
    return codes


def _moved(masks: NDArray[np.int64], order: Sequence[int]) -> NDArray[np.int64]:
    """Edges after reordering; the largest integer where one would lead to a lower vertex."""
    moved = np.zeros_like(masks)
    for y in range(len(order)):
        for x in range(y):
            there = masks & _bit(x, y) != 0
            reordered = _bit(order[x], order[y]) if order[x] < order[y] else np.iinfo(np.int64).max
            moved |= np.where(there, reordered, 0)
    return moved
