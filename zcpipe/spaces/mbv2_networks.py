"""Networks of the residual bottleneck space of ZenNAS and AZ-NAS (`zcpipe.spaces.mbv2`), and how they are counted.

A network is a 3x3 convolution (the stem), blocks, a 1x1 convolution (the head), average pooling and a classifier; stem
and head have batch norm and ReLU. A block is `sub_layers` pairs of residual bottlenecks: the first of a pair leads to
`bottleneck` channels, the second to `outputs`. A bottleneck of ``hidden`` channels is a 1x1 convolution to them, a
depthwise convolution, each with batch norm and ReLU, a linear 1x1 convolution with batch norm, a shortcut, and a ReLU
after the sum. ``hidden`` is the channels that the bottleneck leads to times the expansion, a multiple of 8. A block's
stride is in its first bottleneck. A shortcut is the identity; where the shape changes, and always in a block's first
bottleneck, it is a 1x1 convolution, which has a bias as no other here, with batch norm.

Bottlenecks are numbered through the network (``blocks.0``, ``blocks.1``, ...): where one block ends and the next one
begins can be told from the shortcuts alone. AZ-NAS reads the maps behind the stem, behind each bottleneck's last ReLU
and behind the head. The squeeze-and-excitation with which the published networks were trained is not here, as it is not
in the search.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor, nn

from zcpipe.spaces.base import Dataset, Size, Slots
from zcpipe.spaces.layers import Conv2d, Linear, add_to, replica

CHANNELS_BASE = 8  # the search's channels, and the hidden ones of all networks, are multiples of it
BN_EPS = 1e-3


def smart_round(channels: float) -> int:
    """Return the nearest multiple of 8, the even one of two equally near, but at least 8."""
    return max(CHANNELS_BASE, round(channels / CHANNELS_BASE) * CHANNELS_BASE)


@dataclass(frozen=True)
class Block:
    """A block of bottlenecks; its inputs are what comes before it."""

    expansion: int
    kernel: int
    outputs: int
    stride: int
    bottleneck: int
    sub_layers: int


@dataclass(frozen=True)
class Network:
    """One architecture."""

    stem: int  # channels
    stem_stride: int
    blocks: tuple[Block, ...]
    head: int  # channels

    def __str__(self) -> str:
        words, width = [f"SuperConvK3BNRELU(3,{self.stem},{self.stem_stride},1)"], self.stem
        for b in self.blocks:
            numbers = f"{width},{b.outputs},{b.stride},{b.bottleneck},{b.sub_layers}"
            words.append(f"SuperResIDWE{b.expansion}K{b.kernel}({numbers})")
            width = b.outputs
        return "".join([*words, f"SuperConvK1BNRELU({width},{self.head},1,1)"])


@dataclass(frozen=True)
class Bottleneck:
    """One residual bottleneck; `projects` says that its shortcut is a convolution."""

    inputs: int
    hidden: int
    outputs: int
    kernel: int
    stride: int
    projects: bool


def bottlenecks(arch: Network) -> Iterator[Bottleneck]:
    """Yield the bottlenecks of a network, in order."""
    inputs = arch.stem
    for block in arch.blocks:
        yield from _bottlenecks(block, inputs)
        inputs = block.outputs


def _bottlenecks(block: Block, inputs: int) -> Iterator[Bottleneck]:
    for at in range(2 * block.sub_layers):
        outputs = block.outputs if at % 2 else block.bottleneck
        hidden, stride = smart_round(outputs * block.expansion), 1 if at else block.stride
        yield Bottleneck(inputs, hidden, outputs, block.kernel, stride, at == 0 or inputs != outputs)
        inputs = outputs


def count(arch: Network, spec: Dataset) -> Size:
    """Return parameters and multiply-accumulates of a network."""
    side = -(-spec.input_shape[1] // arch.stem_stride)
    total, width = _conv(3, spec.input_shape[0], arch.stem, side), arch.stem
    for b in bottlenecks(arch):
        total += _conv(1, b.inputs, b.hidden, side)
        side = -(-side // b.stride)
        total += _conv(b.kernel, 1, b.hidden, side) + _conv(1, b.hidden, b.outputs, side)
        if b.projects:
            total += _conv(1, b.inputs, b.outputs, side) + Size(b.outputs, 0)
        width = b.outputs
    return total + _conv(1, width, arch.head, side) + Size((arch.head + 1) * spec.classes, arch.head * spec.classes)


def _conv(kernel: int, inputs: int, outputs: int, side: int) -> Size:
    """Size of a bias-free convolution whose outputs read ``inputs`` channels each, with its batch norm."""
    weights = kernel * kernel * inputs * outputs
    return Size(weights + 2 * outputs, weights * side * side)


def published_flops(arch: Network, spec: Dataset) -> float:
    """Return what ``get_FLOPs`` of the published code returns: the FLOPs that published limits are for.

    Multiply-accumulates, and 1 for each output of a batch norm. But a shortcut's convolution, with its batch norm,
    counts as if the stride came twice: a quarter of what it is where the stride is 2. And a stride of 2 leaves half the
    side rounded down, where networks round up.
    """
    side = spec.input_shape[1]
    total = float(spec.input_shape[0] * arch.stem * 9 * side**2 // arch.stem_stride**2)
    side //= arch.stem_stride
    total += side**2 * arch.stem
    width = arch.stem
    for block in arch.blocks:
        total += _published_flops(block, width, side)
        side, width = side // block.stride, block.outputs
    return total + (width + 1) * arch.head * side**2 + arch.head * spec.classes


@lru_cache(maxsize=1 << 14)
def _published_flops(block: Block, inputs: int, side: int) -> float:
    """Return a block's part, which is counted once: searches and draws change one or two blocks of a network.

    Whole numbers and quarters, so that the sum is exact in any order.
    """
    total = 0.0
    for b in _bottlenecks(block, inputs):
        total += (b.inputs + 1) * b.hidden * side**2 + b.hidden * b.kernel**2 * side**2 // b.stride**2
        side //= b.stride
        total += side**2 * (b.hidden + (b.hidden + 1) * b.outputs)
        if b.projects:
            total += (b.inputs + 1) * b.outputs * (side / b.stride) ** 2
    return total


def slots(arch: Network) -> Slots:
    """Return stem, bottlenecks and head, and the weighted layers."""
    blocks, layers = ["stem"], ["stem"]
    for number, bottleneck in enumerate(bottlenecks(arch)):
        blocks.append(f"blocks.{number}")
        parts = ("expand", "depthwise", "project", "shortcut")[: 4 if bottleneck.projects else 3]
        layers += [f"blocks.{number}.{part}" for part in parts]
    return Slots((*blocks, "head"), (*layers, "head", "classifier"))


def build(arch: Network, spec: Dataset) -> nn.Module:
    """Build a network."""
    made: dict[Bottleneck, nn.Module] = {}
    blocks = []
    for bottleneck in bottlenecks(arch):
        known = made.get(bottleneck)
        blocks.append(_Bottleneck(bottleneck) if known is None else replica(known))
        made[bottleneck] = blocks[-1]
        width = bottleneck.outputs
    stem = _chain(spec.input_shape[0], arch.stem, 3, arch.stem_stride)
    return _Network(stem, blocks, _chain(width, arch.head, 1), Linear(arch.head, spec.classes))


def _chain(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, *, relu: bool = True
) -> nn.Sequential:
    conv = Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs, BN_EPS), *([nn.ReLU()] if relu else []))


class _Bottleneck(nn.Module):
    """Expansion, depthwise convolution, projection and shortcut, added and rectified."""

    def __init__(self, b: Bottleneck) -> None:
        super().__init__()
        self.expand = _chain(b.inputs, b.hidden, 1)
        self.depthwise = _chain(b.hidden, b.hidden, b.kernel, b.stride, b.hidden)
        self.project = _chain(b.hidden, b.outputs, 1, relu=False)
        self.shortcut: nn.Module = nn.Identity()
        if b.projects:
            projection = Conv2d(b.inputs, b.outputs, 1, b.stride)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(b.outputs, BN_EPS))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:  # [N, C, H, W] -> [N, D, H/stride, W/stride]
        result: Tensor = self.relu(add_to(self.shortcut(x), self.project, self.depthwise(self.expand(x))))
        return result


class _Network(nn.Module):
    """Stem, bottlenecks, head, classifier."""

    def __init__(self, stem: nn.Module, blocks: list[nn.Module], head: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.stem = stem
        self.blocks = nn.ModuleList(blocks)
        self.head = head
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:  # [N, 3, H, W] -> [N, classes]
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        result: Tensor = self.classifier(self.pool(self.head(x)).flatten(1))
        return result
