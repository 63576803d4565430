"""Cells as graphs: what they compute in one canonical text, which edges live, and NAS-Bench-101's cells.

Spaces use these for their keys. The native module does the work where it is built, a twin (the same name with a leading
underscore) where it is not; the results are the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from types import ModuleType
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zcpipe.errors import UsageError, unknown_name
from zcpipe.spaces import _graphs_twin as twin
from zcpipe.spaces import _native

Kind = Literal["zero", "identity", "free", "weighted"]

_KINDS: tuple[Kind, ...] = get_args(Kind)  # in the order of csrc/graph/cell.h
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*", re.ASCII)
_MOST = 64  # nodes and edges


@dataclass(frozen=True)
class Operation:
    """What an edge does to the map that passes it.

    Attributes:
        kind: ``zero`` (no edge), ``identity``, ``free`` (a function without weights) or ``weighted`` (one with weights
            of its own on every edge).
        symbol: its name in texts, a letter and then letters, digits and underscores; empty for zero and identity, which
            texts do not name.
    """

    kind: Kind
    symbol: str = ""

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise UsageError(f"kind: got {self.kind!r}, expected one of {', '.join(_KINDS)}")
        if self.kind in ("zero", "identity"):
            if self.symbol != "":
                raise UsageError(f"symbol: got {self.symbol!r}, expected none for kind {self.kind}")
        elif not _is_name(self.symbol):
            raise UsageError(f"symbol: got {self.symbol!r}, expected a letter and then letters, digits, underscores")


@dataclass(frozen=True)
class Wiring:
    """Everything about a cell but which operation its edges carry.

    A node is the sum of what its incoming edges bring; two edges may join the same nodes. A cell of a wiring is a
    sequence of numbers: for each edge the position of its operation in ``operations``.

    Attributes:
        operations: what an edge may carry; symbols differ.
        inputs: names of the first nodes, formed as symbols are.
        edges: source and target of each; a target is higher than its source and no input.
        outputs: the nodes that are concatenated to the cell's output, in whatever order.

    Raises:
        UsageError: this is no wiring, or it has more than 64 nodes or edges or 256 operations.
    """

    operations: tuple[Operation, ...]
    inputs: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]
    outputs: tuple[int, ...]

    def __post_init__(self) -> None:
        symbols = [operation.symbol for operation in self.operations if operation.symbol]
        if not 1 <= len(self.operations) <= 256 or len(set(symbols)) < len(symbols):
            raise UsageError(f"operations: got {symbols}, expected 1 to 256 operations with symbols that differ")
        if not self.inputs or not all(map(_is_name, self.inputs)) or len(set(self.inputs)) < len(self.inputs):
            raise UsageError(f"inputs: got {self.inputs!r}, expected one or more names that differ")
        if len(self.edges) > _MOST:
            raise UsageError(f"edges: got {len(self.edges)}, expected at most {_MOST}")
        for source, target in self.edges:
            if not (_is_node(source) and _is_node(target) and source < target and target >= len(self.inputs)):
                raise UsageError(f"edges: got {source!r} -> {target!r}, expected a higher node that is no input")
        if not self.outputs or not all(map(_is_node, self.outputs)):
            raise UsageError(f"outputs: got {self.outputs!r}, expected one or more nodes")
        if self.nodes > _MOST:
            raise UsageError(f"got {self.nodes} nodes, expected at most {_MOST}")

    @property
    def nodes(self) -> int:
        """How many nodes there are: as many as inputs, edges and outputs mention."""
        return max(len(self.inputs), *(target + 1 for _, target in self.edges), *(node + 1 for node in self.outputs))


def canonical_text(wiring: Wiring, cell: Sequence[int]) -> str:
    """Return the canonical text of one cell; see :func:`canonical_texts`."""
    return canonical_texts(wiring, [cell])[0]


def canonical_texts(wiring: Wiring, cells: ArrayLike) -> list[str]:
    """Write what cells compute, each as one text.

    Cells of one wiring share a text exactly if they compute the same function of the same number of independent
    weights, as far as sums, identities and the order of concatenated nodes decide it: dead edges vanish, identities
    pass their sum through, equal weight-free terms count with multiplicity. ``c3#1(x)+c3#2(x)+2p(x)`` is a sum of two
    convolutions with weights of their own and twice a pooling; ``[c3(x),x]`` a concatenation.

    Args:
        wiring: what the cells have in common.
        cells: integers, [cells, edges]: the number of each edge's operation.

    Returns:
        The texts. Tables on users' disks are keyed by them: they never change.

    Raises:
        UsageError: an operation is unknown, the array has another shape, or a text would be longer than 65,536
            characters or take too long to find (2**30 characters over all numberings of its weighted edges).
    """
    checked = _check_cells(wiring, cells)
    native = _native.module()
    if native is None:
        return [_of_cell(i, wiring, cell) for i, cell in enumerate(checked.tolist())]
    try:
        texts: list[str] = native.canonical_texts(_native_wiring(native, wiring), checked)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return texts


def live_edges(wiring: Wiring, cells: ArrayLike) -> NDArray[np.bool_]:
    """Say which edges lie on a path from an input to an output.

    Args:
        wiring: what the cells have in common.
        cells: integers, [cells, edges]: the number of each edge's operation.

    Returns:
        Whether each edge lives, [cells, edges].

    Raises:
        UsageError: an operation is unknown or the array has another shape.
    """
    checked = _check_cells(wiring, cells)
    native = _native.module()
    if native is None:
        rows = [twin._live_edges(wiring, cell) for cell in checked.tolist()]
        return np.array(rows, np.bool_).reshape(checked.shape)
    live: NDArray[np.bool_] = native.live_edges(_native_wiring(native, wiring), checked)
    return live


def correspondence(
    wiring: Wiring, representative: Sequence[int], member: Sequence[int], member_wiring: Wiring | None = None
) -> dict[int, int]:
    """Match the live weighted edges of two cells that compute the same function.

    Giving each edge of the member the weights of its match makes both cells the same function of them, but for the
    order of concatenated nodes. Where symmetries allow several ways, one is chosen that holds for all edges together,
    always the same.

    Edges are matched one by one: an edge of the member and a candidate get one mark, an operation that no other edge
    has, and match if the cells' texts agree. They keep their marks, so that what follows fits what is settled.

    Args:
        wiring: what the cells have in common, or that of the representative.
        representative: the number of each edge's operation.
        member: likewise.
        member_wiring: that of the member where it has one of its own, of the same operations and inputs.

    Returns:
        For each live weighted edge of the member, in order, one of the representative with the same operation.

    Raises:
        UsageError: the cells have different texts, or as for :func:`canonical_texts`; also where the wirings differ in
            operations or inputs, or have so many operations that there is none left for the marks (256 less the edges
            suffices).
    """
    other = member_wiring or wiring
    if (other.operations, other.inputs) != (wiring.operations, wiring.inputs):
        raise UsageError("member_wiring: expected the operations and inputs of the representative's wiring")
    theirs, ours = _check_cells(wiring, [representative])[0], _check_cells(other, [member])[0]
    first, second = canonical_text(wiring, theirs), canonical_text(other, ours)
    if first != second:
        raise UsageError(f"the cells compute different functions: {first} and {second}")
    free, edges = _live_weighted(wiring, theirs), _live_weighted(other, ours)
    marks = len(edges)
    marking, marking_other = _with_marks(wiring, marks), _with_marks(other, marks)
    given, asked = theirs.tolist(), ours.tolist()
    matches: dict[int, int] = {}
    for mark, edge in enumerate(edges, start=len(wiring.operations)):
        candidates = [place for place in free if given[place] == asked[edge]]
        ours[edge] = mark
        match = candidates[0]
        if len(candidates) > 1:
            marked = np.repeat(theirs[None], len(candidates), axis=0)
            marked[np.arange(len(candidates)), candidates] = mark
            match = candidates[canonical_texts(marking, marked).index(canonical_text(marking_other, ours))]
        theirs[match] = mark
        free.remove(match)
        matches[edge] = match
    return matches


def _live_weighted(wiring: Wiring, cell: NDArray[np.uint8]) -> list[int]:
    weighted = [number for number, operation in enumerate(wiring.operations) if operation.kind == "weighted"]
    places: list[int] = np.flatnonzero(live_edges(wiring, [cell])[0] & np.isin(cell, weighted)).tolist()
    return places


@lru_cache(maxsize=64)
def _with_marks(wiring: Wiring, marks: int) -> Wiring:
    """The wiring with so many weighted operations more; their symbols are longer than all others."""
    stem = "m" * max(len(operation.symbol) + 1 for operation in wiring.operations)
    added = tuple(Operation("weighted", f"{stem}{mark}") for mark in range(marks))
    return replace(wiring, operations=wiring.operations + added)


NASBENCH101_OPERATIONS = ("conv3x3-bn-relu", "conv1x1-bn-relu", "maxpool3x3")  # in the order of the benchmark's hash
_VERTICES = range(2, 8)


def nasbench101_encode(adjacency: ArrayLike, operations: Sequence[str]) -> int:
    """Write a NAS-Bench-101 cell as one number, its code.

    The code holds, from its high bits to its low ones, the number of vertices, the edges (21 bits, bit y(y - 1)/2 + x
    for the edge from x to y) and the operations of the inner vertices (10 bits, two each, the first leading).

    Args:
        adjacency: zeros and ones, [vertices, vertices], ones above the diagonal only; 2 to 7 vertices, the first being
            the input and the last the output.
        operations: those of the inner vertices, of ``NASBENCH101_OPERATIONS``.

    Returns:
        The code, a positive number below 2**34.

    Raises:
        UsageError: this is no cell; the message says why.
    """
    matrix = _integers("adjacency", adjacency)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) not in _VERTICES:
        raise UsageError(f"adjacency: got shape {matrix.shape}, expected a square of 2 to 7 vertices")
    if not np.isin(matrix, (0, 1)).all() or np.tril(matrix).any():
        raise UsageError("adjacency: expected zeros and ones, ones above the diagonal only")
    if len(operations) != len(matrix) - 2:
        raise UsageError(f"operations: got {len(operations)}, expected {len(matrix) - 2}, one for each inner vertex")
    for operation in operations:
        if operation not in NASBENCH101_OPERATIONS:
            raise unknown_name("operation", str(operation), NASBENCH101_OPERATIONS)
    edges = sum(twin._bit(x, y) for x, y in np.argwhere(matrix).tolist())
    return twin._pack((len(matrix), edges, tuple(map(NASBENCH101_OPERATIONS.index, operations))))


def nasbench101_decode(code: int) -> tuple[NDArray[np.int8], tuple[str, ...]]:
    """Return the adjacency, [vertices, vertices], and the operations of the inner vertices of a code.

    Raises:
        UsageError: this is the code of no cell.
    """
    vertices, edges, operations = twin._unpack(int(_check_codes([code])[0]))
    adjacency = np.zeros((vertices, vertices), np.int8)
    for x, y in twin._pairs(vertices, edges):
        adjacency[x, y] = 1
    return adjacency, tuple(NASBENCH101_OPERATIONS[operation] for operation in operations)


def nasbench101_prune(codes: ArrayLike) -> NDArray[np.int64]:
    """Drop the vertices that are on no path from input to output.

    Args:
        codes: cells by their codes, [cells].

    Returns:
        Codes of what is left, [cells]; -1 where input and output are not connected.

    Raises:
        UsageError: a code is that of no cell.
    """
    checked, native = _check_codes(codes), _native.module()
    return _mapped(twin._prune, checked) if native is None else native.nasbench101_prune(checked)


def nasbench101_canonical(codes: ArrayLike) -> NDArray[np.int64]:
    """Find the cell that stands for each cell: the smallest code among those that are the same graph once pruned.

    Args:
        codes: cells by their codes, [cells].

    Returns:
        Codes, [cells]; -1 where input and output are not connected. They are in :func:`nasbench101_cells` where the
        pruned cell has at most 9 edges.

    Raises:
        UsageError: a code is that of no cell.
    """
    checked, native = _check_codes(codes), _native.module()
    return _mapped(twin._canonical, checked) if native is None else native.nasbench101_canonical(checked)


def nasbench101_hashes(codes: ArrayLike) -> list[str]:
    """Compute the benchmark's own hashes of cells, vertices on no path from input to output dropped first.

    Args:
        codes: cells by their codes, [cells]. Neighbours of equal edges are hashed together, which is faster.

    Returns:
        32 hexadecimal digits for each; equal for isomorphic cells.

    Raises:
        UsageError: a code is that of no cell, or input and output are not connected.
    """
    pruned = nasbench101_prune(codes)
    if (pruned < 0).any():
        raise UsageError(f"cell {int(np.argmax(pruned < 0))}: input and output are not connected")
    native = _native.module()
    if native is None:
        return [twin._hash(code) for code in pruned.tolist()]
    hashes: list[str] = native.nasbench101_hashes(pruned)
    return hashes


def nasbench101_cells() -> NDArray[np.int64]:
    """Enumerate NAS-Bench-101: codes of its 423,624 cells, in ascending order.

    These are the cells of at most 7 vertices and 9 edges, all on a path from input to output, and of each isomorphism
    class the one of smallest code. The order is therefore by number of vertices, then edges, then operations.
    """
    native = _native.module()
    cells: NDArray[np.int64] = twin._cells() if native is None else native.nasbench101_cells()
    return cells


def _check_codes(codes: ArrayLike) -> NDArray[np.int64]:  # [cells]
    array = _integers("codes", codes)
    if array.ndim != 1:
        raise UsageError(f"codes: got shape {array.shape}, expected (cells,)")
    checked = np.ascontiguousarray(array, np.int64)
    vertices, inner = checked >> 31, checked & 0x3FF
    known = (vertices >= 2) & (vertices <= 7)
    known &= (checked >> 10 & 0x1FFFFF) < 1 << np.where(known, vertices * (vertices - 1) // 2, 0)
    known &= (inner < 1 << 2 * np.where(known, vertices - 2, 0)) & (inner & inner >> 1 & 0x155 == 0)
    if not known.all():
        raise UsageError(f"codes: got {array[np.argmin(known)]}, which is the code of no cell")
    return checked


def _mapped(function: Callable[[int], int], codes: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.fromiter(map(function, codes.tolist()), np.int64, len(codes))


def _check_cells(wiring: Wiring, cells: ArrayLike) -> NDArray[np.uint8]:  # [cells, edges]
    array = _integers("cells", cells)
    edges, operations = len(wiring.edges), len(wiring.operations)
    if array.shape == (0,):
        array = array.reshape(0, edges)
    if array.ndim != 2 or array.shape[1] != edges:
        raise UsageError(f"cells: got shape {array.shape}, expected (cells, {edges})")
    wrong = (array < 0) | (array >= operations)
    if wrong.any():
        cell, edge = np.argwhere(wrong)[0].tolist()
        got = array[cell, edge]
        raise UsageError(f"cell {cell}: got operation {got} on edge {edge}, expected 0 to {operations - 1}")
    return np.ascontiguousarray(array, np.uint8)


def _of_cell(index: int, wiring: Wiring, cell: Sequence[int]) -> str:
    try:
        return twin._canonical_text(wiring, cell)
    except UsageError as error:
        raise UsageError(f"cell {index}: {error}") from None


def _is_name(name: object) -> bool:
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def _is_node(node: object) -> bool:
    return isinstance(node, int) and node >= 0


def _integers(name: str, values: ArrayLike) -> NDArray[Any]:
    """Read an array of integers, naming the argument that is none."""
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, OverflowError) as error:
        raise UsageError(f"{name}: got no array of integers ({error})") from error
    if array.size and array.dtype.kind not in "biu":
        raise UsageError(f"{name}: got an array of {array.dtype}, expected integers")
    return array


@lru_cache(maxsize=64)
def _native_wiring(native: ModuleType, wiring: Wiring) -> Any:  # noqa: ANN401 - the module's own class
    operations = [(_KINDS.index(operation.kind), operation.symbol) for operation in wiring.operations]
    return native.Wiring(operations, wiring.inputs, wiring.edges, wiring.outputs)
