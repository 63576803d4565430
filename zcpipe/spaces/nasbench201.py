"""NAS-Bench-201 (Dong & Yang, ICLR 2020), also the topology space of NATS-Bench: 15,625 cells of six edges.

A cell has four nodes; each of its six directed edges carries one of five operations, a node is the sum of its incoming
edges, node 0 is the input and node 3 the output. The network is a stem, three stages of five cells with a residual
reduction block between stages, and a classifier. Modules are named as in the benchmark's published inference model, so
its checkpoints load (``strict=False`` where dead edges were left out).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from torch import Tensor, nn

from zcpipe.errors import UsageError, unknown_name
from zcpipe.ops.philox import Stream
from zcpipe.spaces.base import Built, Dataset, Size, Slots
from zcpipe.spaces.graphs import Operation, Wiring, canonical_text, canonical_texts, correspondence, live_edges
from zcpipe.spaces.layers import Conv2d, Dag, Linear, Op, add_to, made, replica
from zcpipe.spaces.permutation import permuted

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))  # (from, to) in the order of the cell's text
KERNELS = {"nor_conv_1x1": 1, "nor_conv_3x3": 3}
WIDTH, CELLS_PER_STAGE, STAGES = 16, 5, 3

_WIRING = Wiring(
    operations=(
        Operation("zero"),
        Operation("identity"),
        Operation("weighted", "c1"),
        Operation("weighted", "c3"),
        Operation("free", "p"),
    ),
    inputs=("x",),
    edges=EDGES,
    outputs=(3,),
)

# The benchmark numbered its cells by one shuffle of the lexicographic list under this seed.
_ORDER_SEED = 88


@dataclass(frozen=True)
class Cell:
    """One architecture: the operation on each edge, in the order of ``EDGES``."""

    operations: tuple[str, str, str, str, str, str]

    def __str__(self) -> str:
        a, b, c, d, e, f = self.operations
        return f"|{a}~0|+|{b}~0|{c}~1|+|{d}~0|{e}~1|{f}~2|"

    @cached_property
    def live(self) -> tuple[bool, ...]:
        """Whether each edge lies on a path from input to output, in the order of ``EDGES``."""
        return tuple(live_edges(_WIRING, [_numbers(self)])[0].tolist())


class NasBench201:
    """The space: cells in the benchmark's own index order, networks for its three data sets."""

    name = "nasbench201"
    paper = "Dong & Yang, NAS-Bench-201: Extending the Scope of Reproducible NAS, ICLR 2020"
    datasets = {  # noqa: RUF012 - a constant of the benchmark
        "cifar10": Dataset("cifar10", (3, 32, 32), 10),
        "cifar100": Dataset("cifar100", (3, 32, 32), 100),
        "imagenet16-120": Dataset("imagenet16-120", (3, 16, 16), 120),
    }

    def __len__(self) -> int:
        return int(len(OPERATIONS) ** len(EDGES))

    def __getitem__(self, index: int) -> Cell:
        if not 0 <= index < len(self):
            raise UsageError(f"nasbench201 has cells 0 to {len(self) - 1}; there is no cell {index}")
        return Cell(tuple(OPERATIONS[digit] for digit in _digits(_order()[index])))  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Cell]:
        return (self[index] for index in range(len(self)))

    def index(self, arch: Cell) -> int:
        """Return the benchmark's index of a cell."""
        number = 0
        for operation in _numbers(arch):
            number = number * len(OPERATIONS) + operation
        position: int = _position()[number]
        return position

    def parse(self, text: str) -> Cell:
        """Read a cell such as ``|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|avg_pool_3x3~2|``.

        Raises:
            UsageError: the text is no cell of this space; the message says where it goes wrong.
        """
        nodes = text.strip().split("+")
        if len(nodes) != 3:
            raise UsageError(f"malformed cell {text!r}: expected 3 nodes joined by '+', got {len(nodes)}")
        operations: list[str] = []
        for node, part in enumerate(nodes, start=1):
            edges = part.strip("|").split("|")
            if not (part.startswith("|") and part.endswith("|") and len(part) > 1) or len(edges) != node:
                raise UsageError(f"malformed cell {text!r}: node {node} must be {node} edges between '|', got {part!r}")
            for source, edge in enumerate(edges):
                operation, _, origin = edge.partition("~")
                if operation not in OPERATIONS:
                    raise UsageError(f"malformed cell {text!r}: {unknown_name('operation', operation, OPERATIONS)}")
                if origin != str(source):
                    raise UsageError(f"malformed cell {text!r}: node {node} expects '~{source}' at edge {edge!r}")
                operations.append(operation)
        cell = Cell(tuple(operations))  # type: ignore[arg-type]
        if str(cell) != text.strip():
            raise UsageError(f"malformed cell {text!r}: did you mean {str(cell)!r}?")
        return cell

    def sample(self, seed: int, i: int) -> Cell:
        """Return the ``i``-th draw without replacement under ``seed``, ``0 <= i < 15625``."""
        return self[permuted(len(self), seed, self.name, i)]

    def neighbours(self, arch: Cell) -> list[Cell]:
        """Return the 24 cells that differ in the operation of one edge, in the order of edges and operations."""
        return [
            Cell((*arch.operations[:edge], operation, *arch.operations[edge + 1 :]))  # type: ignore[arg-type]
            for edge in range(len(EDGES))
            for operation in OPERATIONS
            if operation != arch.operations[edge]
        ]

    def mutate(self, arch: Cell, seed: int, i: int) -> Cell:
        """Return the ``i``-th random neighbour of ``arch`` under ``seed``."""
        options = self.neighbours(arch)
        stream = Stream.of(seed, self.name, str(arch), i, "mutate")
        return options[int(stream.integers(1, len(options))[0])]

    def key(self, arch: Cell) -> str:
        """Return the canonical expression of the cell's output.

        Cells share it exactly if they compute the same function of the same number of independent weights: dead edges
        vanish, skips pass their sum through, equal weight-free terms count with multiplicity. 5,260 over the space.
        """
        return canonical_text(_WIRING, _numbers(arch))

    def all_keys(self) -> list[str]:
        """Return the keys of all cells in index order."""
        leading = len(OPERATIONS) ** np.arange(len(EDGES))[::-1]
        return canonical_texts(_WIRING, np.array(_order())[:, None] // leading % len(OPERATIONS))

    def size(self, arch: Cell, dataset: str) -> Size:
        """Return parameters and multiply-accumulates of the FULL cell's network, dead edges included."""
        spec = self._dataset(dataset)
        channels, pixels = spec.input_shape[0], spec.input_shape[1] * spec.input_shape[2]
        total = _conv(3, channels, WIDTH, pixels)
        for stage in range(STAGES):
            width = WIDTH << stage
            stage_pixels = pixels >> 2 * stage
            if stage:
                total += _conv(3, width // 2, width, stage_pixels) + _conv(3, width, width, stage_pixels)
                total += Size(width // 2 * width, width // 2 * width * stage_pixels)
            for operation in arch.operations:
                if operation in KERNELS:
                    convolution = _conv(KERNELS[operation], width, width, stage_pixels)
                    total += Size(CELLS_PER_STAGE * convolution.params, CELLS_PER_STAGE * convolution.macs)
        last = WIDTH << (STAGES - 1)
        return total + Size(2 * last + (last + 1) * spec.classes, last * spec.classes)

    def slots(self, arch: Cell, dataset: str) -> Slots:
        """Return the slots that all networks of the space have."""
        return self.common_slots(dataset)

    def common_slots(self, dataset: str) -> Slots:
        """Return 18 blocks, the stem and 17 cells, and 98 layers: of stem, six edges a cell, reductions, classifier."""
        return Slots(_block_names(CELLS_PER_STAGE), _SLOTS)

    def correspondence(self, representative: Cell, member: Cell, dataset: str) -> dict[str, str]:
        """Return for each slot that the pruned network of ``member`` fills, in order, that of ``representative``.

        Raises:
            UsageError: the cells have different keys.
        """
        matches = _matches(representative, member)
        slots: dict[str, str] = {}
        for position, (slot, edge) in enumerate(zip(_SLOTS, _EDGE_OF_SLOT, strict=True)):
            if edge is None:
                slots[slot] = slot
            elif edge in matches:
                slots[slot] = _SLOTS[position - edge + matches[edge]]
        return slots

    @property
    def cell_codes(self) -> dict[str, tuple[str, ...]]:
        """The six edges, with the operations that each may carry."""
        return {f"{source}-{target}": OPERATIONS for source, target in EDGES}

    def cell_code(self, arch: Cell) -> list[int]:
        """Return the numbers of the edges' operations."""
        return _numbers(arch)

    @property
    def choices(self) -> tuple[int, ...]:
        """An operation for each edge."""
        return (len(OPERATIONS),) * len(EDGES)

    def choose(self, numbers: Sequence[int]) -> Cell:
        """Return the cell with these operations on its edges."""
        return Cell(tuple(OPERATIONS[number] for number in numbers))  # type: ignore[arg-type]

    def build(self, arch: Cell, dataset: str, cells_per_stage: int = CELLS_PER_STAGE, *, full: bool = False) -> Built:
        """Build the network without the edges that cannot influence its output; weights are zero until initialised.

        Args:
            arch: the cell.
            dataset: ``cifar10``, ``cifar100`` or ``imagenet16-120``.
            cells_per_stage: the benchmark's networks have 5.
            full: keep the layers of dead edges. Their input is that of the published network as long as batch norms
                have bias 0: a dead edge whose input nothing reaches adds its bias to a live node there, nothing here.
        """
        model = _Network(arch, self._dataset(dataset), cells_per_stage, full)
        return Built(model, model.block_names)

    def _dataset(self, name: str) -> Dataset:
        if name not in self.datasets:
            raise unknown_name("dataset", name, self.datasets)
        return self.datasets[name]


@lru_cache(maxsize=1)
def _order() -> tuple[int, ...]:
    """Benchmark index -> number of the cell in base 5 (the first edge is the leading digit)."""
    numbers = list(range(len(OPERATIONS) ** len(EDGES)))
    random.Random(_ORDER_SEED).shuffle(numbers)  # noqa: S311 - the benchmark's own numbering
    return tuple(numbers)


@lru_cache(maxsize=1)
def _position() -> tuple[int, ...]:
    """Number of the cell in base 5 -> benchmark index."""
    positions = [0] * len(_order())
    for index, number in enumerate(_order()):
        positions[number] = index
    return tuple(positions)


def _digits(number: int) -> tuple[int, ...]:
    base = len(OPERATIONS)
    return tuple(number // base ** (len(EDGES) - 1 - edge) % base for edge in range(len(EDGES)))


def _numbers(arch: Cell) -> list[int]:
    return [OPERATIONS.index(operation) for operation in arch.operations]


def _conv(kernel: int, inputs: int, outputs: int, pixels: int) -> Size:
    """Size of a bias-free convolution with its affine batch norm at ``pixels`` output positions."""
    weights = kernel * kernel * inputs * outputs
    return Size(weights + 2 * outputs, weights * pixels)


def _block_names(cells_per_stage: int) -> tuple[str, ...]:
    return ("stem", *(f"cells.{i}" for i in range(STAGES * (cells_per_stage + 1) - 1)))


def _layer_names() -> Iterator[str]:
    yield "stem"
    for i in range(STAGES * (CELLS_PER_STAGE + 1) - 1):
        if (i + 1) % (CELLS_PER_STAGE + 1):
            yield from (f"cells.{i}.layers.{edge}" for edge in range(len(EDGES)))
        else:
            yield from (f"cells.{i}.{part}" for part in ("conv_a", "conv_b", "downsample"))
    yield "classifier"


_SLOTS = tuple(_layer_names())
_EDGE_OF_SLOT = tuple(int(slot[-1]) if ".layers." in slot else None for slot in _SLOTS)


@lru_cache(maxsize=1 << 14)
def _matches(representative: Cell, member: Cell) -> dict[int, int]:
    return correspondence(_WIRING, _numbers(representative), _numbers(member))


class _ReluConvBn(Op):
    """ReLU, bias-free convolution, batch norm: the benchmark's weighted operation."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        conv = Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        super().__init__(nn.ReLU(), conv, nn.BatchNorm2d(outputs))


class _Reduction(nn.Module):
    """The residual block between stages: halves the pixels, doubles the channels."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv_a = _ReluConvBn(inputs, outputs, 3, stride=2)
        self.conv_b = _ReluConvBn(outputs, outputs, 3)
        shortcut = Conv2d(inputs, outputs, 1, bias=False)
        self.downsample = nn.Sequential(nn.AvgPool2d(2), shortcut)

    def forward(self, x: Tensor) -> Tensor:  # [N, C, H, W] -> [N, 2C, H/2, W/2]
        return add_to(self.downsample(x), self.conv_b, self.conv_a(x))


class _Cell(Dag):
    """The live edges of a cell, or all that are not "none"; a cell without live ones gives zeros."""

    def __init__(self, arch: Cell, channels: int, full: bool) -> None:
        kept = [edge for edge, lives in enumerate(arch.live) if lives or (full and arch.operations[edge] != "none")]
        layers = {str(edge): made(_operation, arch.operations[edge], channels) for edge in kept}
        dead = [str(edge) for edge in kept if not arch.live[edge]]
        super().__init__([EDGES[edge] for edge in kept], layers, output=3, dead=dead)


def _operation(name: str, channels: int) -> nn.Module:
    if name in KERNELS:
        return _ReluConvBn(channels, channels, KERNELS[name])
    if name == "avg_pool_3x3":
        return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
    return nn.Identity()


def _stem(inputs: int) -> nn.Module:
    return nn.Sequential(Conv2d(inputs, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH))


def _last_activation(channels: int) -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())


class _Network(nn.Module):
    """Stem, stages of cells, classifier."""

    def __init__(self, arch: Cell, dataset: Dataset, cells_per_stage: int, full: bool) -> None:
        super().__init__()
        self.stem = made(_stem, dataset.input_shape[0])
        self.cells = nn.ModuleList()
        for stage in range(STAGES):
            width = WIDTH << stage
            if stage:
                self.cells.append(made(_Reduction, width // 2, width))
            cell = _Cell(arch, width, full)
            self.cells.extend(replica(cell) if i else cell for i in range(cells_per_stage))
        self.lastact = made(_last_activation, width)
        self.global_pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = made(Linear, width, dataset.classes)
        self.block_names = _block_names(cells_per_stage)

    def forward(self, x: Tensor) -> Tensor:  # [N, 3, H, W] -> [N, classes]
        x = self.stem(x)
        for cell in self.cells:
            x = cell(x)
        result: Tensor = self.classifier(self.global_pooling(self.lastact(x)).flatten(1))
        return result


SPACES = (NasBench201(),)
