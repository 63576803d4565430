"""Networks of genotypes: what they cost, which nodes they have, their modules.

The stacks are those that DARTS published and NDS (Radosavovic et al., 2019) trained: for CIFAR a stem of three times
the width; for ImageNet two stems that bring 224 pixels down to 28; channels double in each of the two reduction cells;
a pool over all pixels and a linear classifier end it. Separable and dilated convolutions, pools and skips are DARTS's,
batch norms are affine, pools have none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zcpipe.spaces.base import Dataset, Size, Slots
from zcpipe.spaces.genotype_cells import INPUTS, Cell, CellNetwork, halves_skip
from zcpipe.spaces.layers import Conv2d, Linear, Op, add_to, replica

_DEPTHWISE = {  # kernel, dilation, how often it comes
    "sep_conv_3x3": (3, 1, 2),
    "sep_conv_5x5": (5, 1, 2),
    "sep_conv_7x7": (7, 1, 2),
    "dil_conv_3x3": (3, 2, 1),
    "dil_conv_5x5": (5, 2, 1),
    "dil_sep_conv_3x3": (3, 2, 2),
}
_SQUARE = {"conv_1x1": 1, "conv_3x3": 3}
_CROSSED = {"conv_3x1_1x3": 3, "conv_7x1_1x7": 7}  # a row, then a column
_POOLS = {"avg_pool_3x3": 3, "max_pool_3x3": 3, "max_pool_5x5": 5, "max_pool_7x7": 7}
_AUXILIARY = (128, 768)


@dataclass(frozen=True)
class _Cost:
    params: int = 0
    macs: int = 0
    other: int = 0  # what NDS counts besides multiply-accumulates

    def __add__(self, more: _Cost) -> _Cost:
        return _Cost(self.params + more.params, self.macs + more.macs, self.other + more.other)


@dataclass(frozen=True)
class _Place:
    """Where a cell stands: channels of its inputs, its own, the pixels' side after it, which of all that halve."""

    older: int
    newer: int
    channels: int
    side: int
    reduction: bool
    older_halves: bool  # the older input has twice the newer one's side


def size_of(arch: CellNetwork, dataset: Dataset) -> Size:
    """Count parameters and multiply-accumulates of the full network, the auxiliary classifier's among them."""
    cost = _cost(arch, dataset)
    return Size(cost.params, cost.macs)


def published_flops(arch: CellNetwork, dataset: Dataset) -> int:
    """Count as NDS did for its files.

    To the multiply-accumulates of convolutions and the classifier come its biases, one for each number that enters a
    ReLU or the last pool, and the kernel's size for each that leaves another pool; batch norms and sums are free. A
    dilated convolution counts with the pixels that its padding would give without dilation, which are too many.
    """
    cost = _cost(arch, dataset)
    return cost.macs + cost.other


def slots_of(arch: CellNetwork, dataset: Dataset) -> Slots:
    """Return the nodes of the full network."""
    stems = ("stem0", "stem1") if _is_large(dataset) else ("stem",)
    layers = ["stem0.0.0", "stem0.1.0", "stem1.1"] if _is_large(dataset) else ["stem.0"]
    for position, place in enumerate(_places(arch, dataset)):
        cell = f"cells.{position}"
        layers += (f"{cell}.preprocess0.{name}" for name in _layer_names("preprocess", place.older_halves))
        layers += (f"{cell}.preprocess1.{name}" for name in _layer_names("preprocess", False))
        for number, edge in enumerate(arch.cell(position).edges):
            names = _layer_names(edge[0], halves_skip(edge, place.reduction))
            layers += (f"{cell}.ops.{number}.{name}" for name in names)
    if arch.aux:
        layers += ["auxiliary_head.2.0", "auxiliary_head.3", "auxiliary_head.6"]
    return Slots((*stems, *(f"cells.{i}" for i in range(arch.depth))), (*layers, "classifier"))


def weighted_slots(cell: Cell, number: int, reduction: bool) -> tuple[str, ...]:
    """Return the slots of one edge of a cell, as they are called within it."""
    edge = cell.edges[number]
    return tuple(f"ops.{number}.{name}" for name in _layer_names(edge[0], halves_skip(edge, reduction)))


def _is_large(dataset: Dataset) -> bool:
    return dataset.name == "imagenet"


def _places(arch: CellNetwork, dataset: Dataset) -> Iterator[_Place]:
    large, channels = _is_large(dataset), arch.width
    older = newer = channels if large else 3 * channels
    side, older_halves = dataset.input_shape[1] // (8 if large else 1), large
    for position in range(arch.depth):
        reduction = position in arch.reductions
        if reduction:
            channels, side = 2 * channels, side // 2
        yield _Place(older, newer, channels, side, reduction, older_halves)
        older, newer, older_halves = newer, len(arch.cell(position).concat) * channels, reduction


def _cost(arch: CellNetwork, dataset: Dataset) -> _Cost:
    width, (colours, height, _) = arch.width, dataset.input_shape
    if _is_large(dataset):
        half, quarter, eighth = ((height // by) ** 2 for by in (2, 4, 8))
        total = _conv(9 * colours * (width // 2), half, width // 2) + _Cost(other=half * (width // 2))
        total += _conv(9 * (width // 2) * width, quarter, width) + _Cost(other=quarter * width)
        total += _conv(9 * width * width, eighth, width)
    else:
        total = _conv(27 * colours * width, height**2, 3 * width)
    of_edges: dict[tuple[bool, int], _Cost] = {}  # those of one kind and width cost the same
    for position, place in enumerate(_places(arch, dataset)):
        cell, channels, side = arch.cell(position), place.channels, place.side
        before = side * 2 if place.reduction else side
        for inputs, halves in ((place.older, place.older_halves), (place.newer, False)):
            total += _conv(inputs * channels, before**2, channels) + _Cost(other=inputs * (before * (1 + halves)) ** 2)
        if (place.reduction, channels) not in of_edges:
            of_edges[place.reduction, channels] = _cell_cost(cell, place)
        total += of_edges[place.reduction, channels]
        outputs = len(cell.concat) * channels
        if arch.aux and position == arch.branch:
            total += _auxiliary_cost(outputs, side, dataset)
    return total + _linear(outputs, dataset.classes) + _Cost(other=outputs * side**2)


def _conv(weights: int, pixels: int, normed: int = 0) -> _Cost:
    return _Cost(weights + 2 * normed, weights * pixels)


def _linear(inputs: int, outputs: int) -> _Cost:
    return _Cost((inputs + 1) * outputs, inputs * outputs, outputs)


def _cell_cost(cell: Cell, place: _Place) -> _Cost:
    """Cost of a cell's edges."""
    total = _Cost()
    for operation, source in cell.edges:
        total += _edge_cost(operation, place.channels, 2 if place.reduction and source < INPUTS else 1, place.side)
    return total


@lru_cache(maxsize=1 << 14)
def _edge_cost(operation: str, channels: int, stride: int, side: int) -> _Cost:
    """Cost of an edge whose result has ``side`` x ``side`` pixels."""
    pixels = side * side
    relu = _Cost(other=channels * pixels * stride**2)
    if operation in _DEPTHWISE:
        kernel, dilation, repeats = _DEPTHWISE[operation]
        total = _Cost()
        for step in [stride, 1][:repeats]:
            weights = kernel**2 * channels
            counted = ((side * step + 2 * dilation * (kernel // 2) - kernel) // step + 1) ** 2
            total += _conv(weights, pixels) + _conv(channels**2, pixels, channels)
            total += _Cost(other=channels * pixels * step**2 + weights * (counted - pixels))
        return total
    if operation in _SQUARE:
        return relu + _conv(_SQUARE[operation] ** 2 * channels**2, pixels, channels)
    if operation in _CROSSED:
        weights = _CROSSED[operation] * channels**2
        return relu + _conv(weights, pixels * stride) + _conv(weights, pixels, channels)
    if operation in _POOLS:
        return _Cost(other=_POOLS[operation] ** 2 * channels * pixels)
    if operation == "skip_connect" and stride == 2:
        return relu + _conv(channels**2, pixels, channels)
    return _Cost()


def _auxiliary_cost(inputs: int, side: int, dataset: Dataset) -> _Cost:
    narrow, wide = _AUXILIARY
    relus = inputs * side**2 + narrow * 4 + wide
    total = _conv(inputs * narrow, 4, narrow) + _conv(4 * narrow * wide, 1, 0 if _is_large(dataset) else wide)
    return total + _linear(wide, dataset.classes) + _Cost(other=relus + 25 * inputs * 4)


@lru_cache(maxsize=64)
def _layer_names(operation: str, halves: bool) -> tuple[str, ...]:
    """Names of the convolutions within an edge, or within what brings an input to the cell's width."""
    layer = _preprocess(2, 2, halves) if operation == "preprocess" else _operation(operation, 2, 1 + halves)
    return tuple(name for name, module in layer.named_modules() if isinstance(module, nn.Conv2d))


class _HalvingSkip(nn.Module):
    """ReLU, two pointwise convolutions of the pixels at even places and of those at odd ones, batch norm.

    The published layer gives its convolutions a stride. Here they get the pixels: oneDNN's strided pointwise
    convolution of eight channels writes beyond its memory in the backward (torch 2.13).
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.conv_1 = Conv2d(inputs, outputs // 2, 1, bias=False)
        self.conv_2 = Conv2d(inputs, outputs // 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:  # [N, C, H, W] -> [N, C', ceil(H/2), ceil(W/2)]
        """Join the halves; the pixel beyond the border, where an odd side needs one, is zero."""
        x = self.relu(x)
        odd = [side % 2 for side in x.shape[2:]]
        if any(odd):
            x = F.pad(x, (0, odd[1], 0, odd[0]))
        halves = [self.conv_1(x[:, :, ::2, ::2]), self.conv_2(x[:, :, 1::2, 1::2])]
        y: Tensor = self.bn(torch.cat(halves, dim=1))
        return y


def _preprocess(inputs: int, outputs: int, halves: bool) -> nn.Module:
    if halves:
        return _HalvingSkip(inputs, outputs)
    return Op(nn.ReLU(), Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))


def _operation(name: str, channels: int, stride: int) -> nn.Module:
    """Make an edge's layer; pointwise convolutions and their batch norms are chains that have a fused operation."""
    if name in _DEPTHWISE:
        kernel, dilation, repeats = _DEPTHWISE[name]
        parts: list[nn.Module] = [nn.ReLU()]
        for half in range(repeats):
            step, padding = 1 if half else stride, dilation * (kernel // 2)
            parts.append(Conv2d(channels, channels, kernel, step, padding, dilation, groups=channels, bias=False))
            pointwise = [Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels)]
            parts.append(nn.Sequential(*pointwise, *([] if half == repeats - 1 else [nn.ReLU()])))
        return Op(*parts)
    if name in _SQUARE:
        kernel = _SQUARE[name]
        conv = Conv2d(channels, channels, kernel, stride, kernel // 2, bias=False)
        return Op(nn.ReLU(), conv, nn.BatchNorm2d(channels))
    if name in _CROSSED:
        kernel = _CROSSED[name]
        row = Conv2d(channels, channels, (1, kernel), (1, stride), (0, kernel // 2), bias=False)
        column = Conv2d(channels, channels, (kernel, 1), (stride, 1), (kernel // 2, 0), bias=False)
        return Op(nn.ReLU(), row, column, nn.BatchNorm2d(channels))
    if name == "avg_pool_3x3":
        return nn.AvgPool2d(3, stride, 1, count_include_pad=False)
    if name in _POOLS:
        return nn.MaxPool2d(_POOLS[name], stride, _POOLS[name] // 2)
    return nn.Identity() if stride == 1 else _HalvingSkip(channels, channels)


class _Cell(nn.Module):
    """The live edges of a cell, or all that are not "none". A node that no live edge enters is zero.

    Dead layers run after the others, outside autograd, for whoever watches their modules; the output does not depend
    on them, nor on whether they are there.
    """

    def __init__(self, cell: Cell, place: _Place, full: bool) -> None:
        super().__init__()
        self.stride = 2 if place.reduction else 1
        self.channels, self.concat, self.read = place.channels, cell.concat, cell.read
        if full or cell.read[0]:
            self.preprocess0 = _preprocess(place.older, place.channels, place.older_halves)
        if full or cell.read[1]:
            self.preprocess1 = _preprocess(place.newer, place.channels, False)
        made: dict[tuple[str, int], nn.Module] = {}
        layers: dict[str, nn.Module] = {}
        for number, (operation, source) in enumerate(cell.edges):
            if cell.live[number] or (full and operation != "none"):
                kind = (operation, self.stride if source < INPUTS else 1)
                layers[str(number)] = (
                    replica(made[kind]) if kind in made else _operation(kind[0], self.channels, kind[1])
                )
                made[kind] = layers[str(number)]
        self.ops = nn.ModuleDict(layers)
        self.ends = {number: (cell.edges[int(number)][1], INPUTS + int(number) // 2) for number in layers}
        self.dead = frozenset(number for number in layers if not cell.live[int(number)])
        self.has_dead = full and (bool(self.dead) or not all(cell.read))

    def forward(self, older: Tensor, newer: Tensor) -> Tensor:  # [N, C, H, W] of any C, the older one's H maybe twice
        """Return the concatenation, [N, C', H, W], or of half the pixels."""
        nodes: dict[int, Tensor] = {}
        if self.read[0]:
            nodes[0] = self.preprocess0(older)
        if self.read[1]:
            nodes[1] = self.preprocess1(newer)
        for number, layer in self.ops.items():
            if number not in self.dead:
                source, target = self.ends[number]
                nodes[target] = add_to(nodes.get(target), layer, nodes[source])
        if self.has_dead:
            self._run_dead(nodes, older, newer)
        parts = [nodes[node] if node in nodes else self._zeros(newer) for node in self.concat]
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    def _zeros(self, newer: Tensor) -> Tensor:
        images, _, height, width = newer.shape
        return newer.new_zeros(images, self.channels, -(-height // self.stride), -(-width // self.stride))

    @torch.no_grad()
    def _run_dead(self, live: dict[int, Tensor], older: Tensor, newer: Tensor) -> None:
        """Run the dead layers. A node that has no live layer is the sum of its dead ones, zeros where it has none."""
        nodes = {node: value.detach() for node, value in live.items()}
        if 0 not in live:
            nodes[0] = self.preprocess0(older.detach())
        if 1 not in live:
            nodes[1] = self.preprocess1(newer.detach())
        for number, layer in self.ops.items():
            if number in self.dead:
                source, target = self.ends[number]
                x = nodes[source] if source in nodes else self._zeros(newer)
                total = add_to(None if target in live else nodes.get(target), layer, x)
                if target not in live:
                    nodes[target] = total


class GenotypeNetwork(nn.Module):
    """Stems, cells, classifier; what never reaches the logits only where ``full``."""

    def __init__(self, arch: CellNetwork, dataset: Dataset, *, full: bool = False) -> None:
        super().__init__()
        colours, width = dataset.input_shape[0], arch.width
        self.large = _is_large(dataset)
        if self.large:
            half = width // 2
            first = nn.Sequential(Conv2d(colours, half, 3, 2, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU())
            second = nn.Sequential(Conv2d(half, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width))
            self.stem0 = nn.Sequential(first, second)
            self.stem1 = nn.Sequential(nn.ReLU(), Conv2d(width, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width))
        else:
            self.stem = nn.Sequential(Conv2d(colours, 3 * width, 3, 1, 1, bias=False), nn.BatchNorm2d(3 * width))
        self.cells = nn.ModuleList()
        self.branch = arch.branch if full and arch.aux else None
        made: dict[_Place, _Cell] = {}
        for position, place in enumerate(_places(arch, dataset)):
            cell = replica(made[place]) if place in made else _Cell(arch.cell(position), place, full)
            made[place] = cell
            self.cells.append(cell)
            outputs = len(cell.concat) * place.channels
            if position == self.branch:
                self.auxiliary_head = _auxiliary_head(outputs, dataset)
        self.global_pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = Linear(outputs, dataset.classes)
        self.block_names = slots_of(arch, dataset).blocks

    def forward(self, x: Tensor) -> Tensor:  # [N, 3, H, W] -> [N, classes]
        """Return the logits."""
        if self.large:
            older = self.stem0(x)
            newer = self.stem1(older)
        else:
            older = newer = self.stem(x)
        for position, cell in enumerate(self.cells):
            older, newer = newer, cell(older, newer)
            if position == self.branch and self._takes(newer):
                with torch.no_grad():
                    self.auxiliary_head(newer.detach())
        logits: Tensor = self.classifier(self.global_pooling(newer).flatten(1))
        return logits

    def _takes(self, branch: Tensor) -> bool:
        """Whether the auxiliary classifier can run: not in training on one image, whose last map is one pixel."""
        fits = branch.shape[-1] >= (7 if self.large else 8)  # its pool and its convolution
        return fits and (len(branch) > 1 or not self.training)


def _auxiliary_head(inputs: int, dataset: Dataset) -> nn.Sequential:
    """The classifier on the second reduction cell that helped training; on ImageNet it lacks the second batch norm."""
    narrow, wide = _AUXILIARY
    norm: nn.Module = nn.Identity() if _is_large(dataset) else nn.BatchNorm2d(wide)
    return nn.Sequential(
        nn.ReLU(),
        nn.AvgPool2d(5, 2 if _is_large(dataset) else 3, count_include_pad=False),
        nn.Sequential(Conv2d(inputs, narrow, 1, bias=False), nn.BatchNorm2d(narrow), nn.ReLU()),
        Conv2d(narrow, wide, 2, bias=False),
        nn.Sequential(norm, nn.ReLU()),
        nn.Flatten(),
        Linear(wide, dataset.classes),
    )
