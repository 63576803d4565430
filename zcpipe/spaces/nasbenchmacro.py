"""NAS-Bench-Macro (Su et al., CVPR 2021): 6,561 MobileNetV2-like networks of eight layers for CIFAR-10.

Each layer is nothing (0), or an inverted residual block of expansion 3 and kernel 3 (1) or of expansion 6 and kernel 5
(2). The layers make three stages of two, three and three; the first of a stage halves the sides and doubles the
channels, so that there even "nothing" is a strided 1x1 convolution with batch norm. Any other "nothing" is no layer at
all: it has no weights and no block map, and where it stands in its stage makes no difference. The 6,561 texts are 3,969
networks.

Block maps are those of stem, layers and head (the 1x1 convolution to 1,280 channels, before the pooling), which are the
places where AZ-NAS reads networks of such blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from zcpipe.errors import UsageError, unknown_name
from zcpipe.ops.philox import Stream
from zcpipe.spaces.base import Built, Dataset, Size, Slots
from zcpipe.spaces.layers import Conv2d, Linear, add_to
from zcpipe.spaces.permutation import permuted

STAGES = (2, 3, 3)  # layers of each
OPERATIONS = range(3)
EXPANSIONS_AND_KERNELS = {1: (3, 3), 2: (6, 5)}  # of the inverted residual blocks
STEM_CHANNELS, HEAD_CHANNELS = 32, 1280

_LAYERS = sum(STAGES)
_STARTS = tuple(sum(STAGES[:stage]) for stage in range(len(STAGES)))  # the layer that each stage begins with


@dataclass(frozen=True)
class Layer:
    """One layer that is there.

    Attributes:
        position: its place among the eight.
        operation: 0, 1 or 2.
        inputs: channels that enter.
        outputs: channels that leave.
        stride: 2 in the first layer of a stage.
    """

    position: int
    operation: int
    inputs: int
    outputs: int
    stride: int

    @property
    def name(self) -> str:
        """The module's name."""
        return f"features.{self.position}"

    @property
    def slots(self) -> tuple[str, ...]:
        """The places of its weighted layers."""
        if self.operation == 0:
            return (self.name,)
        return tuple(f"{self.name}.{part}" for part in ("expand", "depthwise", "project"))


@dataclass(frozen=True)
class Network:
    """One architecture: the operation of each of the eight layers."""

    operations: tuple[int, ...]

    def __str__(self) -> str:
        return "".join(map(str, self.operations))

    def layers(self) -> Iterator[Layer]:
        """Yield the layers that are there: all but the identities."""
        channels = STEM_CHANNELS
        for position, operation in enumerate(self.operations):
            inputs, stride = channels, 1
            if position in _STARTS:
                channels, stride = 2 * channels, 2
            if operation or position in _STARTS:
                yield Layer(position, operation, inputs, channels, stride)


class NasBenchMacro:
    """The space: networks in the order of their texts, for CIFAR-10."""

    name = "nasbenchmacro"
    paper = "Su et al., Prioritized Architecture Sampling with Monto-Carlo Tree Search, CVPR 2021"
    datasets = {"cifar10": Dataset("cifar10", (3, 32, 32), 10)}  # noqa: RUF012 - a constant of the benchmark

    def __len__(self) -> int:
        return int(len(OPERATIONS) ** _LAYERS)

    def __getitem__(self, index: int) -> Network:
        if not 0 <= index < len(self):
            raise UsageError(f"{self.name} has networks 0 to {len(self) - 1}; there is no network {index}")
        base = len(OPERATIONS)
        return Network(tuple(index // base ** (_LAYERS - 1 - position) % base for position in range(_LAYERS)))

    def __iter__(self) -> Iterator[Network]:
        return (self[index] for index in range(len(self)))

    def index(self, arch: Network) -> int:
        """Return the position of a network in the order of the texts."""
        return int(str(arch), len(OPERATIONS))

    def parse(self, text: str) -> Network:
        """Read a network such as ``02012100``.

        Raises:
            UsageError: the text is no network of this space; the message says where it goes wrong.
        """
        digits = text.strip()
        if len(digits) != _LAYERS:
            raise UsageError(f"malformed network {text!r}: expected {_LAYERS} digits, got {len(digits)} characters")
        for digit in digits:
            if digit not in "012":
                raise UsageError(f"malformed network {text!r}: expected operations 0 to 2, got {digit!r}")
        return Network(tuple(map(int, digits)))

    def sample(self, seed: int, i: int) -> Network:
        """Return the ``i``-th draw without replacement under ``seed``, ``0 <= i < 6561``."""
        return self[permuted(len(self), seed, self.name, i)]

    def neighbours(self, arch: Network) -> list[Network]:
        """Return the 16 networks that differ in one layer, in the order of layers and operations."""
        return [
            Network((*arch.operations[:position], operation, *arch.operations[position + 1 :]))
            for position in range(_LAYERS)
            for operation in OPERATIONS
            if operation != arch.operations[position]
        ]

    def mutate(self, arch: Network, seed: int, i: int) -> Network:
        """Return the ``i``-th random neighbour of ``arch`` under ``seed``."""
        options = self.neighbours(arch)
        return options[int(Stream.of(seed, self.name, str(arch), i, "mutate").integers(1, len(options))[0])]

    @property
    def choices(self) -> tuple[int, ...]:
        """An operation for each layer."""
        return (len(OPERATIONS),) * _LAYERS

    def choose(self, numbers: Sequence[int]) -> Network:
        """Return the network with these operations in its layers."""
        return Network(tuple(numbers))

    def key(self, arch: Network) -> str:
        """Return the text in which the identities of each stage come last: that of one network for each function."""
        text = str(arch)
        stages = (text[start : start + length] for start, length in zip(_STARTS, STAGES, strict=True))
        return "".join(stage[0] + stage[1:].replace("0", "").ljust(len(stage) - 1, "0") for stage in stages)

    def size(self, arch: Network, dataset: str) -> Size:
        """Return parameters and multiply-accumulates of the network, which are those of the benchmark's file."""
        spec = self._dataset(dataset)
        image, height, width = spec.input_shape
        total, channels = _conv(3, image, STEM_CHANNELS, height * width), STEM_CHANNELS
        for layer in arch.layers():
            before = height * width
            channels, height, width = layer.outputs, height // layer.stride, width // layer.stride
            after = height * width
            if layer.operation == 0:
                total += _conv(1, layer.inputs, channels, after)
                continue
            expansion, kernel = EXPANSIONS_AND_KERNELS[layer.operation]
            hidden = expansion * layer.inputs
            total += _conv(1, layer.inputs, hidden, before) + _conv(kernel, 1, hidden, after)
            total += _conv(1, hidden, channels, after)
        total += _conv(1, channels, HEAD_CHANNELS, height * width)
        return total + Size((HEAD_CHANNELS + 1) * spec.classes, HEAD_CHANNELS * spec.classes)

    def slots(self, arch: Network, dataset: str) -> Slots:
        """Return the slots of the layers that are there, in order."""
        layers = list(arch.layers())
        places = (slot for layer in layers for slot in layer.slots)
        return Slots(("stem", *(layer.name for layer in layers), "head"), ("stem", *places, "head", "classifier"))

    def common_slots(self, dataset: str) -> None:
        """Return None: networks have more or fewer layers."""

    def correspondence(self, representative: Network, member: Network, dataset: str) -> dict[str, str]:
        """Return for each slot of ``member``, in order, that of ``representative``: the layers have one order.

        Raises:
            UsageError: the networks have different keys.
        """
        if self.key(representative) != self.key(member):
            raise UsageError(f"the networks compute different functions: {representative} and {member}")
        ours, theirs = (self.slots(arch, dataset).layers for arch in (member, representative))
        return dict(zip(ours, theirs, strict=True))

    def build(self, arch: Network, dataset: str, *, full: bool = False) -> Built:
        """Build a network; its weights are zero until initialised. Every layer influences the output.

        Args:
            arch: the network.
            dataset: ``cifar10``.
            full: the same either way.
        """
        return Built(_Network(arch, self._dataset(dataset)), self.slots(arch, dataset).blocks)

    def _dataset(self, name: str) -> Dataset:
        if name not in self.datasets:
            raise unknown_name("dataset", name, self.datasets)
        return self.datasets[name]


def _conv(kernel: int, inputs: int, outputs: int, pixels: int) -> Size:
    """Size of a bias-free convolution, with its affine batch norm, whose outputs read ``inputs`` channels each."""
    weights = kernel * kernel * inputs * outputs
    return Size(weights + 2 * outputs, weights * pixels)


def _conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> tuple[nn.Module, nn.Module]:
    conv = Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return conv, nn.BatchNorm2d(outputs)


class _InvertedResidual(nn.Module):
    """1x1 convolution to more channels, depthwise convolution, linear 1x1 convolution; a shortcut if shapes agree."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        expansion, kernel = EXPANSIONS_AND_KERNELS[layer.operation]
        hidden = expansion * layer.inputs
        self.expand = nn.Sequential(*_conv_bn(layer.inputs, hidden, 1), nn.ReLU())
        self.depthwise = nn.Sequential(*_conv_bn(hidden, hidden, kernel, layer.stride, groups=hidden), nn.ReLU())
        self.project = nn.Sequential(*_conv_bn(hidden, layer.outputs, 1))
        self.has_shortcut = layer.stride == 1

    def forward(self, x: Tensor) -> Tensor:  # [N, C, H, W] -> [N, D, H/stride, W/stride]
        return add_to(x if self.has_shortcut else None, self.project, self.depthwise(self.expand(x)))


class _Network(nn.Module):
    """Stem, layers, head, classifier."""

    def __init__(self, arch: Network, dataset: Dataset) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv_bn(dataset.input_shape[0], STEM_CHANNELS, 3), nn.ReLU())
        self.features = nn.ModuleDict()  # by position, as published
        for layer in arch.layers():
            strided = nn.Sequential(*_conv_bn(layer.inputs, layer.outputs, 1, layer.stride))
            self.features[str(layer.position)] = _InvertedResidual(layer) if layer.operation else strided
            channels = layer.outputs
        self.head = nn.Sequential(*_conv_bn(channels, HEAD_CHANNELS, 1), nn.ReLU())
        self.global_pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = Linear(HEAD_CHANNELS, dataset.classes)

    def forward(self, x: Tensor) -> Tensor:  # [N, 3, H, W] -> [N, classes]
        x = self.stem(x)
        for layer in self.features.values():
            x = layer(x)
        result: Tensor = self.classifier(self.global_pooling(self.head(x)).flatten(1))
        return result


SPACES = (NasBenchMacro(),)
