"""TransNAS-Bench-101, cell level (Duan et al., CVPR 2021): 4,096 cells of six edges in a network of ten cells.

A cell has four nodes; each of its six directed edges carries one of four operations, a node is the sum of its incoming
edges, node 0 is the input and node 3 the output. The network is a stem of two strided convolutions, five modules of two
cells each and a classifier. The first cell of modules 0, 2 and 4 is a reduction: the edges from its input have stride 2
and double the channels, so that its skips are the weighted `FactorizedReduce` and an identity exists between inner
nodes only.

Built is what the benchmark trained for its two classification tasks, at the 256 x 256 pixels and with the 75 and 47
classes of its training configurations (the FLOPs in the benchmark's own file were counted at 224 x 224). The heads of
the other five tasks are not built: the regression of room layouts, the decoders of the three pixel tasks, and jigsaw's
classifier over nine tiles of 64 x 64. Their encoder is this one; but for jigsaw's it sees images of this size, so that
what is read of its blocks is the same for them.

Parameters and multiply-accumulates are proved against those that NAS-Bench-Suite-Zero published for networks of the
benchmark's code (there with 63 classes for scenes), not against the benchmark's own file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from zcpipe.errors import UsageError, unknown_name
from zcpipe.ops.philox import Stream
from zcpipe.spaces.base import Built, Dataset, Size, Slots
from zcpipe.spaces.graphs import Operation, Wiring, canonical_text, canonical_texts, correspondence, live_edges
from zcpipe.spaces.layers import Conv2d, Dag, Linear, Op, replica
from zcpipe.spaces.permutation import permuted

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3")  # the digits of a cell's text
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))  # (from, to) in the order of the cell's text
KERNELS = {2: 1, 3: 3}
WIDTH = 64
PAPER = "Duan et al., TransNAS-Bench-101: Improving Transferability and Generalizability of Cross-Task NAS, CVPR 2021"
DATASETS = {
    "class_object": Dataset("class_object", (3, 256, 256), 75),
    "class_scene": Dataset("class_scene", (3, 256, 256), 47),
}

STEM_SLOTS = ("stem.0", "stem.1")

_PREFIX = f"{WIDTH}-41414-"
_REDUCTION = (True, False, False, False) * 2 + (True, False)  # of each cell
_SKIP = 1
_LEADING = len(OPERATIONS) ** np.arange(len(EDGES))[::-1]

# The reduction is what tells cells apart: there skips from the input are weighted, elsewhere both kinds are alike.
_STRIDED_SKIP = 4
_WIRING = Wiring(
    operations=(
        Operation("zero"),
        Operation("identity"),
        Operation("weighted", "c1"),
        Operation("weighted", "c3"),
        Operation("weighted", "s"),
    ),
    inputs=("x",),
    edges=EDGES,
    outputs=(3,),
)
_FROM_INPUT = np.array([source == 0 for source, _ in EDGES])


@dataclass(frozen=True)
class Cell:
    """One architecture: the number of the operation on each edge, in the order of ``EDGES``."""

    operations: tuple[int, int, int, int, int, int]

    def __str__(self) -> str:
        a, b, c, d, e, f = self.operations
        return f"{_PREFIX}{a}_{b}{c}_{d}{e}{f}"

    @cached_property
    def live(self) -> tuple[bool, ...]:
        """Whether each edge lies on a path from input to output, in the order of ``EDGES``."""
        return tuple(live_edges(_WIRING, _in_reduction([self.operations]))[0].tolist())


class TransNasBench101Micro:
    """The space: cells in the order of their texts, networks for the classification tasks."""

    name = "transnasbench101_micro"
    paper = PAPER
    datasets = DATASETS

    def __len__(self) -> int:
        return int(len(OPERATIONS) ** len(EDGES))

    def __getitem__(self, index: int) -> Cell:
        if not 0 <= index < len(self):
            raise UsageError(f"{self.name} has cells 0 to {len(self) - 1}; there is no cell {index}")
        return Cell(tuple(_digits(index).tolist()))

    def __iter__(self) -> Iterator[Cell]:
        return (self[index] for index in range(len(self)))

    def index(self, arch: Cell) -> int:
        """Return the position of a cell in the order of the texts; the benchmark's file has another."""
        return sum(operation * int(weight) for operation, weight in zip(arch.operations, _LEADING, strict=True))

    def parse(self, text: str) -> Cell:
        """Read a cell such as ``64-41414-1_02_333``.

        Raises:
            UsageError: the text is no cell of this space; the message says where it goes wrong.
        """
        cell = text.strip()
        if not cell.startswith(_PREFIX):
            raise UsageError(f"malformed cell {text!r}: expected {_PREFIX!r} and a cell such as '1_02_333'")
        nodes = cell.removeprefix(_PREFIX).split("_")
        if [len(node) for node in nodes] != [1, 2, 3]:
            raise UsageError(f"malformed cell {text!r}: expected nodes of 1, 2 and 3 edges joined by '_'")
        digits = "".join(nodes)
        for digit in digits:
            if digit not in "0123":
                raise UsageError(f"malformed cell {text!r}: expected operations 0 to 3, got {digit!r}")
        return Cell(tuple(map(int, digits)))  # type: ignore[arg-type]

    def sample(self, seed: int, i: int) -> Cell:
        """Return the ``i``-th draw without replacement under ``seed``, ``0 <= i < 4096``."""
        return self[permuted(len(self), seed, self.name, i)]

    def neighbours(self, arch: Cell) -> list[Cell]:
        """Return the 18 cells that differ in the operation of one edge, in the order of edges and operations."""
        return [
            Cell((*arch.operations[:edge], operation, *arch.operations[edge + 1 :]))  # type: ignore[arg-type]
            for edge in range(len(EDGES))
            for operation in range(len(OPERATIONS))
            if operation != arch.operations[edge]
        ]

    def mutate(self, arch: Cell, seed: int, i: int) -> Cell:
        """Return the ``i``-th random neighbour of ``arch`` under ``seed``."""
        options = self.neighbours(arch)
        return options[int(Stream.of(seed, self.name, str(arch), i, "mutate").integers(1, len(options))[0])]

    def key(self, arch: Cell) -> str:
        """Return the canonical expression of the reduction cell's output.

        Cells share it exactly if they compute the same function of the same number of independent weights, in the
        reductions and therefore everywhere: see `zcpipe.spaces.graphs.canonical_texts`. A strided skip is ``s(x)``.
        """
        return canonical_text(_WIRING, _in_reduction([arch.operations])[0].tolist())

    def all_keys(self) -> list[str]:
        """Return the keys of all cells in index order."""
        return canonical_texts(_WIRING, _in_reduction(_digits(np.arange(len(self))[:, None])))

    def size(self, arch: Cell, dataset: str) -> Size:
        """Return parameters and multiply-accumulates of the FULL cell's network, dead edges included."""
        spec = dataset_of(dataset)
        height, width = spec.input_shape[1] // 4, spec.input_shape[2] // 4
        channels, total = WIDTH, stem_size(spec)
        for reduction in _REDUCTION:
            inputs = channels
            if reduction:
                channels, height, width = 2 * channels, height // 2, width // 2
            for (source, _), operation in zip(EDGES, arch.operations, strict=True):
                incoming = inputs if source == 0 else channels
                if operation in KERNELS or (operation == _SKIP and incoming != channels):
                    total += conv_size(KERNELS.get(operation, 1), incoming, channels, height * width)
        return total + Size((channels + 1) * spec.classes, channels * spec.classes)

    def slots(self, arch: Cell, dataset: str) -> Slots:
        """Return the slots that all networks of the space have."""
        return self.common_slots(dataset)

    def common_slots(self, dataset: str) -> Slots:
        """Return 11 blocks, the stem and ten cells, and 81 layers.

        An edge from the input of a reduction has three: for a convolution, and for the two halves of a strided skip.
        """
        return Slots(("stem", *(f"cells.{i}" for i in range(len(_REDUCTION)))), _SLOTS)

    def correspondence(self, representative: Cell, member: Cell, dataset: str) -> dict[str, str]:
        """Return for each slot that the pruned network of ``member`` fills, in order, that of ``representative``.

        Raises:
            UsageError: the cells have different keys.
        """
        matches = correspondence(_WIRING, *_in_reduction([representative.operations, member.operations]).tolist())
        slots = {slot: slot for slot in STEM_SLOTS}
        for cell in range(len(_REDUCTION)):
            for edge, match in matches.items():
                theirs = _edge_slots(cell, match, representative.operations[match])
                slots.update(zip(_edge_slots(cell, edge, member.operations[edge]), theirs, strict=True))
        return {**slots, "classifier": "classifier"}

    @property
    def cell_codes(self) -> dict[str, tuple[str, ...]]:
        """The six edges, with the operations that each may carry."""
        return {f"{source}-{target}": OPERATIONS for source, target in EDGES}

    def cell_code(self, arch: Cell) -> tuple[int, ...]:
        """Return the numbers of the edges' operations."""
        return arch.operations

    @property
    def choices(self) -> tuple[int, ...]:
        """An operation for each edge."""
        return (len(OPERATIONS),) * len(EDGES)

    def choose(self, numbers: Sequence[int]) -> Cell:
        """Return the cell with these operations on its edges."""
        return Cell(tuple(numbers))  # type: ignore[arg-type]

    def build(self, arch: Cell, dataset: str, *, full: bool = False) -> Built:
        """Build the network without the edges that cannot influence its output; weights are zero until initialised.

        Args:
            arch: the cell.
            dataset: ``class_object`` or ``class_scene``.
            full: keep the layers of dead edges. Their input is that of the published network as long as batch norms
                have bias 0, as in NAS-Bench-201.
        """
        return Built(_Network(arch, dataset_of(dataset), full), self.common_slots(dataset).blocks)


def dataset_of(name: str) -> Dataset:
    """Return a task; ``UsageError`` names the near ones of an unknown one."""
    if name not in DATASETS:
        raise unknown_name("dataset", name, DATASETS)
    return DATASETS[name]


def conv_size(kernel: int, inputs: int, outputs: int, pixels: int) -> Size:
    """Return the size of a bias-free convolution with its affine batch norm at ``pixels`` output positions."""
    weights = kernel * kernel * inputs * outputs
    return Size(weights + 2 * outputs, weights * pixels)


def stem_size(dataset: Dataset) -> Size:
    """Return the size of the stem, which quarters the image's sides."""
    channels, height, width = dataset.input_shape
    first = conv_size(3, channels, WIDTH // 2, (height // 2) * (width // 2))
    return first + conv_size(3, WIDTH // 2, WIDTH, (height // 4) * (width // 4))


def _digits(index: int | NDArray[np.int64]) -> NDArray[np.int64]:
    digits: NDArray[np.int64] = index // _LEADING % len(OPERATIONS)
    return digits


def _in_reduction(cells: ArrayLike) -> NDArray[np.int64]:  # [cells, edges]
    """Return cells by the operations of the wiring: skips from the input are strided."""
    array = np.asarray(cells)
    return np.where((array == _SKIP) & _FROM_INPUT, _STRIDED_SKIP, array)


def _edge_slots(cell: int, edge: int, operation: int) -> tuple[str, ...]:
    """Return the slots that an edge's operation fills."""
    place = f"cells.{cell}.layers.{edge}"
    strided = _REDUCTION[cell] and EDGES[edge][0] == 0
    if operation in KERNELS:
        return (f"{place}.op",) if strided else (place,)
    return (f"{place}.halves.0", f"{place}.halves.1") if strided and operation == _SKIP else ()


_SLOTS = (
    *STEM_SLOTS,
    *(
        slot
        for cell in range(len(_REDUCTION))
        for edge in range(len(EDGES))
        for operation in (3, _SKIP)
        for slot in _edge_slots(cell, edge, operation)
    ),
    "classifier",
)


class ReluConvBn(Op):
    """ReLU, bias-free convolution, batch norm: the benchmark's weighted operation."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        conv = Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        super().__init__(nn.ReLU(), conv, nn.BatchNorm2d(outputs))


def stem(dataset: Dataset) -> nn.Sequential:
    """Make the stem: two convolutions of stride 2, without a ReLU after the last."""
    first = Conv2d(dataset.input_shape[0], WIDTH // 2, 3, stride=2, padding=1, bias=False)
    norm = nn.BatchNorm2d(WIDTH // 2)
    return nn.Sequential(nn.Sequential(first, norm), ReluConvBn(WIDTH // 2, WIDTH, 3, stride=2))


class FactorizedReduce(nn.Module):
    """A skip that halves the pixels: two 1x1 convolutions for half of the channels, one of them a pixel further."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.halves = nn.ModuleList(Conv2d(inputs, outputs // 2, 1, stride=2, bias=False) for _ in range(2))
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:  # [N, C, H, W] -> [N, D, ceil(H/2), ceil(W/2)]
        """Join the halves; the pixel beyond the border, where an odd side needs one, is zero."""
        x = self.relu(x)
        shifted = F.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:]
        result: Tensor = self.norm(torch.cat([self.halves[0](x), self.halves[1](shifted)], dim=1))
        return result


class _Cell(Dag):
    """The live edges of a cell, or all that are not "none"."""

    def __init__(self, arch: Cell, inputs: int, outputs: int, full: bool) -> None:
        kept = [edge for edge, lives in enumerate(arch.live) if lives or (full and arch.operations[edge])]
        layers: dict[str, nn.Module] = {}
        made: dict[tuple[int, int], nn.Module] = {}
        for edge in kept:
            what = (arch.operations[edge], inputs if EDGES[edge][0] == 0 else outputs)
            layers[str(edge)] = replica(made[what]) if what in made else _operation(*what, outputs)
            made[what] = layers[str(edge)]
        dead = [str(edge) for edge in kept if not arch.live[edge]]
        super().__init__([EDGES[edge] for edge in kept], layers, output=3, dead=dead)
        self.reduces = inputs != outputs

    def zeros(self, x: Tensor) -> Tensor:  # [N, C, H, W]
        """Return a node to which no edge leads, which in a reduction has twice the channels and half the sides."""
        if not self.reduces:
            return super().zeros(x)
        n, channels, height, width = x.shape
        return x.new_zeros(n, 2 * channels, (height + 1) // 2, (width + 1) // 2)


def _operation(number: int, inputs: int, outputs: int) -> nn.Module:
    stride = 1 if inputs == outputs else 2
    if number in KERNELS:
        return ReluConvBn(inputs, outputs, KERNELS[number], stride)
    return nn.Identity() if stride == 1 else FactorizedReduce(inputs, outputs)


class _Network(nn.Module):
    """Stem, ten cells, classifier."""

    def __init__(self, arch: Cell, dataset: Dataset, full: bool) -> None:
        super().__init__()
        self.stem = stem(dataset)
        self.cells = nn.ModuleList()
        channels, normal = WIDTH, None
        for reduction in _REDUCTION:
            if reduction:
                self.cells.append(_Cell(arch, channels, 2 * channels, full))
                channels, normal = 2 * channels, None
            else:
                normal = _Cell(arch, channels, channels, full) if normal is None else replica(normal)
                self.cells.append(normal)
        self.global_pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = Linear(channels, dataset.classes)

    def forward(self, x: Tensor) -> Tensor:  # [N, 3, H, W] -> [N, classes]
        x = self.stem(x)
        for cell in self.cells:
            x = cell(x)
        result: Tensor = self.classifier(self.global_pooling(x).flatten(1))
        return result


SPACES = (TransNasBench101Micro(),)
