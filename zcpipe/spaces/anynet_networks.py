"""Networks of the standard families of NDS (`zcpipe.spaces.anynet`), as the ones in its files were trained.

A network is a stem, three or four stages of equal blocks, average pooling and a classifier. The first block of every
stage but the first halves the pixels. The blocks:

- Vanilla (``double_plain_block``): 3x3 convolution, batch norm, ReLU, twice;
- ResNet (``res_basic_block``): the same before the second ReLU, which comes after the shortcut was added;
- ResNeXt (``res_bottleneck_block``): 1x1, grouped 3x3 and 1x1 convolutions, each with batch norm, with ReLUs between,
  a shortcut and a ReLU. The 1x1s lead to ``width // ratio`` channels and back; the 3x3 has the stride and the groups.

A shortcut is the identity, or a 1x1 convolution with batch norm where the shape changes. The data set decides the stem,
the architecture its width ``w``; each convolution is followed by batch norm and ReLU:

- CIFAR-10: a 3x3 to ``w`` channels;
- ImageNet, ResNet and Vanilla: a 7x7 of stride 2 to ``w``, then 3x3 max pooling of stride 2;
- ImageNet, ResNeXt: three 3x3s of stride 2 to ``w // 2``, ``w`` and ``w``.

The official files describe the stem as their first stage, by its stride: 1, 4 and 8. All 240 entries of the ImageNet
files that this was held against have exactly the parameters of these networks, and `AnyNetSpace.published_flops`. No
CIFAR-10 file was there to hold the CIFAR-10 stem against.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from zcpipe.spaces.base import Dataset, Slots
from zcpipe.spaces.layers import Conv2d, Linear, add_to, replica

Block = Literal["double_plain_block", "res_basic_block", "res_bottleneck_block"]

STRIDES = (1, 2, 2, 2)  # of the first block of each stage


@dataclass(frozen=True)
class Stage:
    """A stage of equal blocks; ratio and groups are those of bottleneck blocks, 1 for others."""

    depth: int
    width: int
    ratio: int = 1
    groups: int = 1


@dataclass(frozen=True)
class AnyNet:
    """One architecture: the width of its stem, and its stages."""

    family: str
    stem: int
    stages: tuple[Stage, ...]

    def __str__(self) -> str:
        bottleneck = self.family.startswith("resnext")
        words = [f"d{s.depth}-w{s.width}" + (f"-r{s.ratio}-g{s.groups}" if bottleneck else "") for s in self.stages]
        return " ".join([self.family, f"w{self.stem}", *words])


@dataclass(frozen=True)
class Count:
    """What is counted of a network, for one image."""

    params: int
    macs: int
    normed: int  # outputs of batch norms

    def __add__(self, other: Count) -> Count:
        return Count(self.params + other.params, self.macs + other.macs, self.normed + other.normed)

    def __mul__(self, times: int) -> Count:
        return Count(self.params * times, self.macs * times, self.normed * times)


@dataclass(frozen=True)
class Layout:
    """How the networks of a family are made of their numbers."""

    block: Block
    stem_stride: int  # on ImageNet

    def count(self, arch: AnyNet, spec: Dataset) -> Count:
        """Count a network without building it."""
        width, side = spec.input_shape[0], spec.input_shape[1]
        total = Count(0, 0, 0)
        for kernel, stride, outputs in self._stem(arch, spec):
            side = -(-side // stride)
            total += _conv(kernel, width, outputs, side)
            width = outputs
        if self._pools(spec):
            side = -(-side // 2)
        for stage, stride in zip(arch.stages, STRIDES, strict=False):
            total += self._count_block(width, stage, side, stride)
            width, side = stage.width, -(-side // stride)
            total += self._count_block(width, stage, side, 1) * (stage.depth - 1)
        return total + Count((width + 1) * spec.classes, width * spec.classes, 0)

    def _count_block(self, inputs: int, stage: Stage, side: int, stride: int) -> Count:
        total = Count(0, 0, 0)
        width, at = inputs, side
        for kernel, step, outputs, groups in self._block(stage, stride):
            at = -(-at // step)
            total += _conv(kernel, width, outputs, at, groups)
            width = outputs
        return total + _conv(1, inputs, width, at) if self._projects(inputs, stage, stride) else total

    def slots(self, arch: AnyNet, spec: Dataset) -> Slots:
        """Return the stem and the blocks, and their convolutions with the classifier."""
        blocks, layers = ["stem"], [f"stem.{i}" for i in range(len(self._stem(arch, spec)))]
        width = arch.stem
        for number, (stage, stride) in enumerate(zip(arch.stages, STRIDES, strict=False)):
            for at in range(stage.depth):
                block = f"stages.{number}.{at}"
                blocks.append(block)
                if self._projects(width, stage, 1 if at else stride):
                    layers.append(f"{block}.shortcut")
                inner = block if self.block == "double_plain_block" else f"{block}.main"
                layers += [f"{inner}.{i}" for i in range(len(self._block(stage, stride)))]
                width = stage.width
        return Slots(tuple(blocks), (*layers, "head"))

    def build(self, arch: AnyNet, spec: Dataset) -> nn.Module:
        """Build a network."""
        parts: list[nn.Module] = []
        width = spec.input_shape[0]
        for kernel, stride, outputs in self._stem(arch, spec):
            parts.append(_chain(kernel, width, outputs, stride))
            width = outputs
        if self._pools(spec):
            parts.append(nn.MaxPool2d(3, 2, 1))
        stages = []
        for stage, stride in zip(arch.stages, STRIDES, strict=False):
            blocks = [self._built_block(width, stage, stride)]
            width = stage.width
            if stage.depth > 1:
                block = self._built_block(width, stage, 1)
                blocks += [block, *(replica(block) for _ in range(stage.depth - 2))]
            stages.append(nn.Sequential(*blocks))
        return _Network(nn.Sequential(*parts), stages, Linear(width, spec.classes))

    def _built_block(self, inputs: int, stage: Stage, stride: int) -> nn.Module:
        plain = self.block == "double_plain_block"
        chains: list[nn.Sequential] = []
        width, convolutions = inputs, self._block(stage, stride)
        for kernel, step, outputs, groups in convolutions:
            relu = plain or len(chains) < len(convolutions) - 1
            chains.append(_chain(kernel, width, outputs, step, groups, relu=relu))
            width = outputs
        if plain:
            return nn.Sequential(*chains)
        projects = self._projects(inputs, stage, stride)
        return _Residual(_chain(1, inputs, width, stride, relu=False) if projects else nn.Identity(), chains)

    def _stem(self, arch: AnyNet, spec: Dataset) -> Sequence[tuple[int, int, int]]:
        """Return kernel, stride and output channels of the stem's convolutions."""
        if spec.name == "cifar10":
            return [(3, 1, arch.stem)]
        if self.stem_stride == 4:
            return [(7, 2, arch.stem)]
        return [(3, 2, width) for width in (arch.stem // 2, arch.stem, arch.stem)]

    def _pools(self, spec: Dataset) -> bool:
        return spec.name == "imagenet" and self.stem_stride == 4

    def _block(self, stage: Stage, stride: int) -> Sequence[tuple[int, int, int, int]]:
        """Return kernel, stride, output channels and groups of the convolutions of a block."""
        if self.block != "res_bottleneck_block":
            return [(3, stride, stage.width, 1), (3, 1, stage.width, 1)]
        inner = stage.width // stage.ratio
        return [(1, 1, inner, 1), (3, stride, inner, stage.groups), (1, 1, stage.width, 1)]

    def _projects(self, inputs: int, stage: Stage, stride: int) -> bool:
        return self.block != "double_plain_block" and (inputs != stage.width or stride != 1)


def _conv(kernel: int, inputs: int, outputs: int, side: int, groups: int = 1) -> Count:
    """Count a bias-free convolution with its affine batch norm, with ``side`` x ``side`` output positions."""
    weights = kernel * kernel * inputs * outputs // groups
    return Count(weights + 2 * outputs, weights * side * side, outputs * side * side)


def _chain(kernel: int, inputs: int, outputs: int, stride: int, groups: int = 1, *, relu: bool = True) -> nn.Sequential:
    conv = Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), *([nn.ReLU()] if relu else []))


class _Residual(nn.Module):
    """Convolutions and a shortcut, added and rectified."""

    def __init__(self, shortcut: nn.Module, chains: Sequence[nn.Module]) -> None:
        super().__init__()
        self.shortcut = shortcut
        self.main = nn.ModuleList(chains)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:  # [N, C, H, W]
        *first, last = self.main
        y = x
        for chain in first:
            y = chain(y)
        result: Tensor = self.relu(add_to(self.shortcut(x), last, y))
        return result


class _Network(nn.Module):
    """Stem, stages of blocks, classifier."""

    def __init__(self, stem: nn.Module, stages: Sequence[nn.Module], head: nn.Module) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.ModuleList(stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = head

    def forward(self, x: Tensor) -> Tensor:  # [N, 3, H, W] -> [N, classes]
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        result: Tensor = self.head(self.pool(x).flatten(1))
        return result
