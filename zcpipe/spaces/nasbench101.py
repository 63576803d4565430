"""NAS-Bench-101 (Ying et al., ICML 2019): 423,624 cells of at most seven vertices and nine edges.

A cell is a directed graph. Its first vertex is the input and its last the output; every other one applies an operation
to the sum of what its edges bring. An edge from the input is a projection (1x1 convolution, batch norm, ReLU) of its
own. The vertices before the output are concatenated, each giving its share of the channels, and to that the projected
input is added where an edge leads from input to output. The network is a stem, three stacks of three cells with a
maximum pool before the second and the third, where channels double, and a classifier.

The benchmark knows cells up to the order of their vertices: a member is the cell that it trained, the first of its
class in its own order, with no vertex off the way from input to output. `NasBench101.parse` and `NasBench101.cell` take
any valid cell to the member that stands for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from zcpipe.errors import UsageError, unknown_name
from zcpipe.ops.philox import Stream
from zcpipe.spaces._nasbench101_changes import MOST_EDGES, MOST_VERTICES, changed
from zcpipe.spaces.base import Built, Dataset, Size, Slots
from zcpipe.spaces.graphs import (
    NASBENCH101_OPERATIONS,
    nasbench101_canonical,
    nasbench101_cells,
    nasbench101_decode,
    nasbench101_encode,
    nasbench101_hashes,
)
from zcpipe.spaces.layers import Conv2d, Linear, add_to, replica
from zcpipe.spaces.permutation import permuted

KERNELS = {"conv3x3-bn-relu": 3, "conv1x1-bn-relu": 1}
WIDTH, CELLS_PER_STACK, STACKS = 128, 3, 3
LENGTH = 423_624


@dataclass(frozen=True)
class Cell:
    """One architecture, by its code (`zcpipe.spaces.graphs.nasbench101_encode`)."""

    code: int

    def __str__(self) -> str:
        adjacency, operations = nasbench101_decode(self.code)
        rows = ("".join(map(str, row[v + 1 :])) for v, row in enumerate(adjacency[:-1].tolist()))
        return f"{'.'.join(rows)}:{','.join(('input', *operations, 'output'))}"

    @property
    def adjacency(self) -> NDArray[np.int8]:  # [vertices, vertices]
        """Zeros and ones, a one where an edge leads from the row's vertex to the column's."""
        return nasbench101_decode(self.code)[0]

    @property
    def operations(self) -> tuple[str, ...]:
        """What each vertex does, from ``input`` to ``output``."""
        return ("input", *nasbench101_decode(self.code)[1], "output")


class NasBench101:
    """The space: cells by vertices, then edges, then operations, the order in which the benchmark found them."""

    name = "nasbench101"
    paper = "Ying et al., NAS-Bench-101: Towards Reproducible Neural Architecture Search, ICML 2019"
    datasets = {"cifar10": Dataset("cifar10", (3, 32, 32), 10)}  # noqa: RUF012 - a constant of the benchmark

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> Cell:
        if not 0 <= index < len(self):
            raise UsageError(f"nasbench101 has cells 0 to {len(self) - 1}; there is no cell {index}")
        return Cell(int(_codes()[index]))

    def __iter__(self) -> Iterator[Cell]:
        return map(Cell, _codes().tolist())

    def index(self, arch: Cell) -> int:
        """Return the position of a member.

        Raises:
            UsageError: the cell is another form of a member; `cell` finds that.
        """
        index = int(np.searchsorted(_codes(), arch.code))
        if index == len(self) or _codes()[index] != arch.code:
            raise UsageError(f"{arch} is no member of nasbench101, at most another form of one")
        return index

    def cell(self, adjacency: ArrayLike, operations: Sequence[str]) -> Cell:
        """Return the member that stands for a cell, as the benchmark looks it up.

        Vertices on no path from input to output are dropped first. Which order its vertices come in may decide which of
        those before the output get a channel more; members have the order of the networks that were trained.

        Args:
            adjacency: zeros and ones, [vertices, vertices], ones above the diagonal only; 2 to 7 vertices.
            operations: those of all vertices: ``input``, some of ``conv3x3-bn-relu``, ``conv1x1-bn-relu`` and
                ``maxpool3x3``, ``output``.

        Raises:
            UsageError: this is no cell of the space; the message says why.
        """
        if len(operations) < 2 or operations[0] != "input" or operations[-1] != "output":
            raise UsageError(f"operations: got {list(operations)}, expected 'input' first and 'output' last")
        canonical = int(nasbench101_canonical([nasbench101_encode(adjacency, operations[1:-1])])[0])
        if canonical < 0:
            raise UsageError("input and output are not connected")
        edges = int(nasbench101_decode(canonical)[0].sum())
        if edges > MOST_EDGES:
            raise UsageError(f"got {edges} edges between input and output, expected at most {MOST_EDGES}")
        return Cell(canonical)

    def parse(self, text: str) -> Cell:
        """Read a cell such as ``110.01.1:input,conv3x3-bn-relu,maxpool3x3,output``; see `cell` for what it stands for.

        Before the colon are the rows of the adjacency matrix from behind the diagonal on: the example's edges lead from
        vertex 0 to 1 and 2, from 1 to 3 and from 2 to 3. After it are the operations of the vertices.

        Raises:
            UsageError: the text is no cell of this space; the message says where it goes wrong.
        """
        shape, colon, names = text.strip().partition(":")
        rows, operations = shape.split("."), names.split(",")
        vertices = len(rows) + 1
        if not colon:
            raise UsageError(f"malformed cell {text!r}: expected rows joined by '.', a colon, operations joined by ','")
        if vertices > MOST_VERTICES:
            raise UsageError(f"malformed cell {text!r}: got {vertices} vertices, expected at most {MOST_VERTICES}")
        adjacency = np.zeros((vertices, vertices), np.int8)
        for v, row in enumerate(rows):
            if len(row) != vertices - 1 - v or set(row) - {"0", "1"}:
                raise UsageError(
                    f"malformed cell {text!r}: row {v} must be {vertices - 1 - v} zeros and ones, got {row!r}"
                )
            adjacency[v, v + 1 :] = list(map(int, row))
        try:
            return self.cell(adjacency, operations)
        except UsageError as error:
            raise UsageError(f"malformed cell {text!r}: {error}") from None

    def sample(self, seed: int, i: int) -> Cell:
        """Return the ``i``-th draw without replacement under ``seed``, ``0 <= i < 423624``."""
        return self[permuted(len(self), seed, self.name, i)]

    def neighbours(self, arch: Cell) -> list[Cell]:
        """Return the members one elementary change away, in a fixed order and each once.

        Changes are another operation at a vertex, an edge less, an edge more, and a new vertex with one edge to it and
        one from it. What an edge less leaves on no path from input to output goes with it.
        """
        codes = nasbench101_canonical(list(changed(arch.code))).tolist()
        return [Cell(code) for code in dict.fromkeys(codes) if code not in (-1, arch.code)]

    def mutate(self, arch: Cell, seed: int, i: int) -> Cell:
        """Return the ``i``-th random neighbour of ``arch`` under ``seed``."""
        options = self.neighbours(arch)
        stream = Stream.of(seed, self.name, str(arch), i, "mutate")
        return options[int(stream.integers(1, len(options))[0])]

    def key(self, arch: Cell) -> str:
        """Return the benchmark's own hash of the cell, under which its files have it: 32 hexadecimal digits.

        No two members share it. A few compute the same function all the same, such as one that pools a vertex twice for
        two readers and one that pools it once for both; they are not merged.
        """
        return nasbench101_hashes([arch.code])[0]

    def all_keys(self) -> list[str]:
        """Return the keys of all cells in index order."""
        return nasbench101_hashes(_codes())

    def size(self, arch: Cell, dataset: str) -> Size:
        """Return parameters and multiply-accumulates of the network, which has no dead layers."""
        spec = self._dataset(dataset)
        channels, pixels = spec.input_shape[0], spec.input_shape[1] * spec.input_shape[2]
        total = _conv(3, channels, WIDTH, pixels)
        for position in range(STACKS * CELLS_PER_STACK):
            stack = position // CELLS_PER_STACK
            for _, kernel, inputs, outputs in _weighted(arch, *_widths(WIDTH, CELLS_PER_STACK, position)):
                total += _conv(kernel, inputs, outputs, pixels >> 2 * stack)
        last = WIDTH << (STACKS - 1)
        return total + Size((last + 1) * spec.classes, last * spec.classes)

    def slots(self, arch: Cell, dataset: str) -> Slots:
        """Return 10 blocks, the stem and 9 cells, and the layers of stem, cells and classifier.

        A pool before a stack belongs to the block of the cell that follows.
        """
        self._dataset(dataset)
        names = [name for name, *_ in _weighted(arch, WIDTH, WIDTH)]
        cells = (f"cells.{cell}.layers.{name}" for cell in range(STACKS * CELLS_PER_STACK) for name in names)
        return Slots(_block_names(CELLS_PER_STACK), ("stem", *cells, "classifier"))

    def common_slots(self, dataset: str) -> None:
        """Return None: cells differ in their layers."""
        self._dataset(dataset)

    def correspondence(self, representative: Cell, member: Cell, dataset: str) -> dict[str, str]:
        """Map every slot to itself: no two members share a key.

        Raises:
            UsageError: the cells differ.
        """
        if representative != member:
            raise UsageError(f"the cells have different keys: {representative} and {member}")
        return {slot: slot for slot in self.slots(member, dataset).layers}

    @property
    def cell_codes(self) -> dict[str, tuple[str, ...]]:
        """The 21 edges that there may be between 7 vertices, then what the 5 inner vertices do."""
        edges = {f"{x}-{y}": ("absent", "present") for x, y in combinations(range(MOST_VERTICES), 2)}
        inner = {str(v): ("none", *NASBENCH101_OPERATIONS) for v in range(1, MOST_VERTICES - 1)}
        return {**edges, **inner}

    def cell_code(self, arch: Cell) -> list[int]:
        """Return the upper triangle of the adjacency matrix and the vertices' operations.

        The output is vertex 6 whatever the number of vertices. Vertices that are not there come before it and do
        "none".
        """
        adjacency, operations = nasbench101_decode(arch.code)
        places = [*range(len(operations) + 1), MOST_VERTICES - 1]
        padded = np.zeros((MOST_VERTICES, MOST_VERTICES), np.int8)
        padded[np.ix_(places, places)] = adjacency
        numbers = [1 + NASBENCH101_OPERATIONS.index(operation) for operation in operations]
        absent = [0] * (MOST_VERTICES - len(adjacency))
        return [*padded[np.triu_indices(MOST_VERTICES, 1)].tolist(), *numbers, *absent]

    @property
    def choices(self) -> tuple[int, ...]:
        """Whether each of the 21 edges between 7 vertices is there, then what the 5 inner vertices do."""
        return (2,) * (MOST_VERTICES * (MOST_VERTICES - 1) // 2) + (len(NASBENCH101_OPERATIONS),) * (MOST_VERTICES - 2)

    def choose(self, numbers: Sequence[int]) -> Cell | None:
        """Return the member that stands for a cell; None for too many edges, and where none lead to the output."""
        adjacency = np.zeros((MOST_VERTICES, MOST_VERTICES), np.int8)
        adjacency[np.triu_indices(MOST_VERTICES, 1)] = numbers[: 2 - MOST_VERTICES]
        operations = [NASBENCH101_OPERATIONS[number] for number in numbers[2 - MOST_VERTICES :]]
        try:
            return self.cell(adjacency, ("input", *operations, "output"))
        except UsageError:
            return None

    def build(
        self,
        arch: Cell,
        dataset: str,
        stem: int = WIDTH,
        cells_per_stack: int = CELLS_PER_STACK,
        *,
        full: bool = False,
    ) -> Built:
        """Build the network; weights are zero until initialised.

        Args:
            arch: the cell.
            dataset: ``cifar10``.
            stem: channels of the stem and the first stack; 128 in the benchmark's networks, 16 in those NASWOT scored.
            cells_per_stack: the benchmark's networks have 3.
            full: changes nothing, since no layer of a member is dead.
        """
        model = _Network(arch, self._dataset(dataset), stem, cells_per_stack)
        return Built(model, _block_names(cells_per_stack))

    def _dataset(self, name: str) -> Dataset:
        if name not in self.datasets:
            raise unknown_name("dataset", name, self.datasets)
        return self.datasets[name]


def vertex_channels(adjacency: NDArray[np.int8], inputs: int, outputs: int) -> list[int]:
    """Return the channels of each vertex's result, as the benchmark infers them.

    Vertices before the output share its channels, the first ones getting one more where they do not divide; a vertex
    before others has as many as the widest of these, which take the first of them.

    Args:
        adjacency: of a cell without vertices to drop, [vertices, vertices].
        inputs: channels of the cell's input.
        outputs: channels of its output.
    """
    last = len(adjacency) - 1
    channels = [inputs, *[0] * (last - 1), outputs]
    ends = [v for v in range(1, last) if adjacency[v, last]]
    for place, v in enumerate(ends):
        channels[v] = outputs // len(ends) + (place < outputs % len(ends))
    for v in range(last - 1, 0, -1):
        if v not in ends:
            channels[v] = max(channels[w] for w in range(v + 1, last) if adjacency[v, w])
    return channels


@lru_cache(maxsize=1)
def _codes() -> NDArray[np.int64]:  # [cells], ascending
    return nasbench101_cells()


def _conv(kernel: int, inputs: int, outputs: int, pixels: int) -> Size:
    """Size of a bias-free convolution with its affine batch norm at ``pixels`` output positions."""
    weights = kernel * kernel * inputs * outputs
    return Size(weights + 2 * outputs, weights * pixels)


def _widths(stem: int, cells_per_stack: int, position: int) -> tuple[int, int]:
    """Channels that enter and leave the cell at a position."""
    stack, place = divmod(position, cells_per_stack)
    outputs = stem << stack
    return outputs // 2 if stack and not place else outputs, outputs


def _weighted(arch: Cell, inputs: int, outputs: int) -> Iterator[tuple[str, int, int, int]]:
    """Yield name, kernel size, input and output channels of each convolution of a cell, in order of depth."""
    adjacency, operations = arch.adjacency, arch.operations
    for v, channels in enumerate(vertex_channels(adjacency, inputs, outputs)):
        if adjacency[0, v]:
            yield f"input_{v}", 1, inputs, channels
        if operations[v] in KERNELS:
            yield f"vertex_{v}", KERNELS[operations[v]], channels, channels


def _block_names(cells_per_stack: int) -> tuple[str, ...]:
    return ("stem", *(f"cells.{cell}" for cell in range(STACKS * cells_per_stack)))


def _conv_bn_relu(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    conv = Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class _Cell(nn.Module):
    """A cell: ``input_<v>`` projects its input for vertex v, ``vertex_<v>`` is what v does."""

    def __init__(self, arch: Cell, inputs: int, outputs: int) -> None:
        super().__init__()
        adjacency = arch.adjacency
        self.channels = vertex_channels(adjacency, inputs, outputs)
        # Of each vertex, the inner ones that lead to it.
        self.sources = [[x for x in range(1, v) if adjacency[x, v]] for v in range(len(adjacency))]
        self.layers = nn.ModuleDict()
        for name, kernel, taken, given in _weighted(arch, inputs, outputs):
            self.layers[name] = _conv_bn_relu(taken, given, kernel)
        for v, operation in enumerate(arch.operations):
            if operation == "maxpool3x3":
                self.layers[f"vertex_{v}"] = nn.MaxPool2d(3, stride=1, padding=1)

    def forward(self, x: Tensor) -> Tensor:  # [N, inputs, H, W] -> [N, outputs, H, W]
        """Return the output vertex."""
        values = [x]
        last = len(self.channels) - 1
        for v in range(1, last):
            total: Tensor | None = None
            for source in self.sources[v]:
                # A source may have a channel more than its reader.
                part = values[source][:, : self.channels[v]]
                total = part if total is None else total + part
            values.append(self.layers[f"vertex_{v}"](self._with_input(v, total, x)))
        ends = [values[source] for source in self.sources[last]]
        return self._with_input(last, torch.cat(ends, 1) if ends else None, x)

    def _with_input(self, vertex: int, total: Tensor | None, x: Tensor) -> Tensor:
        """Add the projected input to what arrives at a vertex, where an edge brings it there."""
        name = f"input_{vertex}"
        if name in self.layers:
            return add_to(total, self.layers[name], x)
        assert total is not None  # noqa: S101 - something arrives at every vertex
        return total


class _Network(nn.Module):
    """Stem, stacks of cells, classifier."""

    def __init__(self, arch: Cell, dataset: Dataset, stem: int, cells_per_stack: int) -> None:
        super().__init__()
        self.cells_per_stack = cells_per_stack
        self.stem = _conv_bn_relu(dataset.input_shape[0], stem, 3)
        self.pools = nn.ModuleList(nn.MaxPool2d(2) for _ in range(STACKS - 1))
        self.cells = nn.ModuleList()
        for position in range(STACKS * cells_per_stack):
            widths = _widths(stem, cells_per_stack, position)
            same = position % cells_per_stack > 1  # as the one before
            self.cells.append(replica(self.cells[-1]) if same else _Cell(arch, *widths))
        self.pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = Linear(stem << (STACKS - 1), dataset.classes)

    def forward(self, x: Tensor) -> Tensor:  # [N, 3, H, W] -> [N, classes]
        """Return the logits."""
        x = self.stem(x)
        for position, cell in enumerate(self.cells):
            stack, place = divmod(position, self.cells_per_stack)
            if stack and not place:
                x = self.pools[stack - 1](x)
            x = cell(x)
        logits: Tensor = self.classifier(self.pooling(x).flatten(1))
        return logits


SPACES = (NasBench101(),)
