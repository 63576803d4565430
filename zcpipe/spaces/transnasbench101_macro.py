"""TransNAS-Bench-101, macro level (Duan et al., CVPR 2021): 3,256 networks of four to six modules of residual blocks.

A module is two basic blocks; its digit says what the first of them does: 1 nothing, 2 doubles the channels, 3 halves
the sides, 4 both. The networks are those that double the channels one to three times and halve the sides one to four
times. Stem, classifier and tasks are those of `zcpipe.spaces.transnasbench101_micro`, and what is said there of sizes
and of the tasks that are not built holds here. No two members compute the same function.

The batch norm behind a block's projection has an epsilon of 1 in the published code, where an argument is a position
off; every network of the benchmark was trained with it, and it is 1 here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

from torch import Tensor, nn

from zcpipe.errors import UsageError
from zcpipe.ops.philox import Stream
from zcpipe.spaces.base import Built, Dataset, Size, Slots
from zcpipe.spaces.layers import Conv2d, Linear, add_to
from zcpipe.spaces.permutation import permuted
from zcpipe.spaces.transnasbench101_micro import (
    DATASETS,
    PAPER,
    STEM_SLOTS,
    WIDTH,
    ReluConvBn,
    conv_size,
    dataset_of,
    stem,
    stem_size,
)

MODULES = range(4, 7)  # how many a network may have
DOUBLINGS = range(1, 4)  # of the channels
HALVINGS = range(1, 5)  # of the sides
BLOCKS_PER_MODULE = 2

_PROJECTION_EPS = 1.0


@dataclass(frozen=True)
class Network:
    """One architecture: the digits of its modules."""

    modules: tuple[int, ...]

    def __str__(self) -> str:
        return f"{WIDTH}-{''.join(map(str, self.modules))}-basic"

    def blocks(self) -> Iterator[tuple[int, int, int]]:
        """Yield the channels that enter each block, those that leave it, and its stride."""
        channels = WIDTH
        for module in self.modules:
            outputs = channels << _doubles(module)
            yield channels, outputs, 1 + _halves(module)
            yield from [(outputs, outputs, 1)] * (BLOCKS_PER_MODULE - 1)
            channels = outputs


class TransNasBench101Macro:
    """The space: networks in the order of their length and digits, for the classification tasks."""

    name = "transnasbench101_macro"
    paper = PAPER
    datasets = DATASETS

    def __len__(self) -> int:
        return len(_networks())

    def __getitem__(self, index: int) -> Network:
        if not 0 <= index < len(self):
            raise UsageError(f"{self.name} has networks 0 to {len(self) - 1}; there is no network {index}")
        return _networks()[index]

    def __iter__(self) -> Iterator[Network]:
        return iter(_networks())

    def index(self, arch: Network) -> int:
        """Return the position of a network by length, then digits; the benchmark's file has another order."""
        return _positions()[arch]

    def parse(self, text: str) -> Network:
        """Read a network such as ``64-1234-basic``.

        Raises:
            UsageError: the text is no network of this space; the message says where it goes wrong.
        """
        parts = text.strip().split("-")
        if len(parts) != 3 or (parts[0], parts[2]) != (str(WIDTH), "basic"):
            raise UsageError(f"malformed network {text!r}: expected one such as '{WIDTH}-1234-basic'")
        for digit in parts[1]:
            if digit not in "1234":
                raise UsageError(f"malformed network {text!r}: expected modules 1 to 4, got {digit!r}")
        network = Network(tuple(map(int, parts[1])))
        if network not in _positions():
            raise UsageError(
                f"no network of this space: {text!r}; it has {MODULES[0]} to {MODULES[-1]} modules, "
                f"{DOUBLINGS[0]} to {DOUBLINGS[-1]} of which (digits 2, 4) double the channels "
                f"and {HALVINGS[0]} to {HALVINGS[-1]} (digits 3, 4) halve the sides"
            )
        return network

    def sample(self, seed: int, i: int) -> Network:
        """Return the ``i``-th draw without replacement under ``seed``, ``0 <= i < 3256``."""
        return self[permuted(len(self), seed, self.name, i)]

    def neighbours(self, arch: Network) -> list[Network]:
        """Return the networks that another digit, one more module or one less makes of ``arch``, in index order."""
        digits = arch.modules
        changed = {
            (*digits[:at], *inserted, *digits[at + dropped :])
            for at in range(len(digits) + 1)
            for inserted in ((), (1,), (2,), (3,), (4,))
            for dropped in (0, 1)
        }
        found = {Network(modules) for modules in changed - {digits}}
        return sorted(found & _positions().keys(), key=self.index)

    def mutate(self, arch: Network, seed: int, i: int) -> Network:
        """Return the ``i``-th random neighbour of ``arch`` under ``seed``."""
        options = self.neighbours(arch)
        return options[int(Stream.of(seed, self.name, str(arch), i, "mutate").integers(1, len(options))[0])]

    @property
    def choices(self) -> tuple[int, ...]:
        """How many modules, then the digit of each that the longest networks have."""
        return (len(MODULES), *(4,) * MODULES[-1])

    def choose(self, numbers: Sequence[int]) -> Network | None:
        """Return the network of these modules; those beyond its length decide nothing.

        None where they double the channels or halve the sides more or less often than members do.
        """
        count, *digits = numbers
        network = Network(tuple(digit + 1 for digit in digits[: MODULES[count]]))
        return network if network in _positions() else None

    def key(self, arch: Network) -> str:
        """Return the network's text: every network is a function of its own."""
        return str(arch)

    def size(self, arch: Network, dataset: str) -> Size:
        """Return parameters and multiply-accumulates of the network."""
        spec = dataset_of(dataset)
        height, width = spec.input_shape[1] // 4, spec.input_shape[2] // 4
        total, last = stem_size(spec), WIDTH
        for inputs, last, stride in arch.blocks():
            height, width = height // stride, width // stride
            total += conv_size(3, inputs, last, height * width) + conv_size(3, last, last, height * width)
            if _is_projected(inputs, last, stride):
                total += conv_size(1, inputs, last, height * width)
        return total + Size((last + 1) * spec.classes, last * spec.classes)

    def slots(self, arch: Network, dataset: str) -> Slots:
        """Return the slots of a network: the stem and its 8 to 12 blocks, the two or three convolutions of each."""
        layers = []
        for i, block in enumerate(arch.blocks()):
            parts = ("conv_a", "conv_b", "downsample") if _is_projected(*block) else ("conv_a", "conv_b")
            layers += [f"blocks.{i}.{part}" for part in parts]
        names = (f"blocks.{i}" for i in range(len(arch.modules) * BLOCKS_PER_MODULE))
        return Slots(("stem", *names), (*STEM_SLOTS, *layers, "classifier"))

    def common_slots(self, dataset: str) -> None:
        """Return None: networks have more or fewer blocks."""

    def correspondence(self, representative: Network, member: Network, dataset: str) -> dict[str, str]:
        """Return the slots of ``member``, each for itself.

        Raises:
            UsageError: the networks are not one.
        """
        if representative != member:
            raise UsageError(f"the networks compute different functions: {representative} and {member}")
        return {slot: slot for slot in self.slots(member, dataset).layers}

    def build(self, arch: Network, dataset: str, *, full: bool = False) -> Built:
        """Build a network; its weights are zero until initialised. Every layer influences the output.

        Args:
            arch: the network.
            dataset: ``class_object`` or ``class_scene``.
            full: the same either way.
        """
        return Built(_Network(arch, dataset_of(dataset)), self.slots(arch, dataset).blocks)


def _doubles(module: int) -> bool:
    return module in (2, 4)


def _halves(module: int) -> bool:
    return module in (3, 4)


def _is_projected(inputs: int, outputs: int, stride: int) -> bool:
    """Whether the shortcut of a block changes shape."""
    return stride != 1 or inputs != outputs


@lru_cache(maxsize=1)
def _networks() -> tuple[Network, ...]:
    return tuple(
        Network(modules)
        for count in MODULES
        for modules in product((1, 2, 3, 4), repeat=count)
        if sum(map(_doubles, modules)) in DOUBLINGS and sum(map(_halves, modules)) in HALVINGS
    )


@lru_cache(maxsize=1)
def _positions() -> dict[Network, int]:
    return {network: position for position, network in enumerate(_networks())}


class _Block(nn.Module):
    """Two convolutions and a shortcut, which is projected where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv_a = ReluConvBn(inputs, outputs, 3, stride)
        self.conv_b = ReluConvBn(outputs, outputs, 3)
        self.downsample: nn.Module | None = None
        if _is_projected(inputs, outputs, stride):
            projection = Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(outputs, eps=_PROJECTION_EPS))

    def forward(self, x: Tensor) -> Tensor:  # [N, C, H, W] -> [N, D, H/stride, W/stride]
        shortcut = x if self.downsample is None else self.downsample(x)
        return add_to(shortcut, self.conv_b, self.conv_a(x))


class _Network(nn.Module):
    """Stem, blocks, classifier."""

    def __init__(self, arch: Network, dataset: Dataset) -> None:
        super().__init__()
        self.stem = stem(dataset)
        self.blocks = nn.ModuleList(_Block(*block) for block in arch.blocks())
        *_, (_, channels, _) = arch.blocks()
        self.global_pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = Linear(channels, dataset.classes)

    def forward(self, x: Tensor) -> Tensor:  # [N, 3, H, W] -> [N, classes]
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        result: Tensor = self.classifier(self.global_pooling(x).flatten(1))
        return result


SPACES = (TransNasBench101Macro(),)
