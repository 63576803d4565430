"""Cells of NAS-Bench-101 one elementary change away from another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from zcpipe.spaces.graphs import NASBENCH101_OPERATIONS, nasbench101_decode, nasbench101_encode

MOST_VERTICES, MOST_EDGES = 7, 9

_Edges = frozenset[tuple[int, int]]  # source and target


def changed(code: int) -> Iterator[int]:
    """Yield codes of the cells that differ by another operation, an edge less or more, or a vertex more.

    A new vertex has one edge to it and one from it. Edges go wherever they make no cycle, so that the cells do not
    depend on the order of the vertices. Some cells have vertices to prune, some do not connect input and output; none
    has more than 7 vertices or 9 edges.

    Args:
        code: of a cell without vertices to prune.
    """
    adjacency, operations = nasbench101_decode(code)
    vertices = len(adjacency)
    edges: _Edges = frozenset((x, y) for x, y in np.argwhere(adjacency).tolist())
    for v, operation in enumerate(operations):
        for other in NASBENCH101_OPERATIONS:
            if other != operation:
                yield nasbench101_encode(adjacency, [*operations[:v], other, *operations[v + 1 :]])
    reached = _reached(adjacency)
    pairs = [(x, y) for x in range(vertices - 1) for y in range(1, vertices) if x != y and not reached[y, x]]
    for pair in pairs:
        if pair in edges or len(edges) < MOST_EDGES:
            yield _encode(edges ^ {pair}, operations)
    if vertices < MOST_VERTICES and len(edges) + 2 <= MOST_EDGES:
        new = vertices - 1  # the place of the output, which moves on by one
        moved = frozenset((x, y + (y == new)) for x, y in edges)
        for x, y in pairs:
            for operation in NASBENCH101_OPERATIONS:
                yield _encode(moved | {(x, new), (new, y + (y == new))}, [*operations, operation])


def _reached(adjacency: NDArray[np.int8]) -> NDArray[np.bool_]:  # [vertices, vertices]
    """Say which vertices lie on paths from each."""
    reached = adjacency.astype(bool)
    for _ in range(len(adjacency).bit_length()):  # paths of twice as many edges each time
        reached |= reached @ reached
    return reached


def _encode(edges: _Edges, operations: Sequence[str]) -> int:
    """Return a code of a cell whose inner vertices come in any order."""
    last = len(operations) + 1
    order, waiting = [0], list(range(1, last))
    while waiting:
        ready = (v for v in waiting if not any(x in waiting for x, y in edges if y == v))
        order.append(next(ready))
        waiting.remove(order[-1])
    place = {v: i for i, v in enumerate([*order, last])}
    adjacency = np.zeros((last + 1, last + 1), np.int8)
    for x, y in edges:
        adjacency[place[x], place[y]] = 1
    return nasbench101_encode(adjacency, [operations[v - 1] for v in order[1:]])
