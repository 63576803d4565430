"""The four standard families of NDS (Radosavovic et al., ICCV 2019): ResNet, ResNeXt-A, ResNeXt-B and Vanilla.

`zcpipe.spaces.anynet_networks` says what a network is. Its text is the family, the width of its stem, and for each
stage depth, width and for ResNeXt ratio and groups.

Draws for CIFAR-10 are those of the paper's Table 1: three stages, a stem of 16 channels (which no file at hand can
confirm), and for each number of a stage a range with how many values about evenly spaced on a log scale are in it. For
ResNeXt that says which values, and the files have these and no others. For ResNet and Vanilla (9 depths from 1 to 24,
12 widths from 16 to 256) it does not: the values here are ours, in the spacing that the values of the ImageNet files
have. Draws for ImageNet have what those files have: for ResNet and Vanilla four stages, 12 depths up to 24, 10 widths
up to 512 and stems of 16, 32 or 64 channels, for ResNeXt stems of 64; and all are below 6 million parameters or 600
million ``flops``.

A member need not be a possible draw: ResNet and Vanilla networks of any depth and width in range are.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from zcpipe.errors import UsageError, unknown_name
from zcpipe.ops.philox import Stream
from zcpipe.spaces.anynet_networks import STRIDES, AnyNet, Block, Layout, Stage
from zcpipe.spaces.base import Built, Dataset, Size, Slots

DATASETS = {
    "cifar10": Dataset("cifar10", (3, 32, 32), 10),
    "imagenet": Dataset("imagenet", (3, 224, 224), 1000),
}
STAGES = (3, 4)  # how many a network may have
STEM_WIDTHS = range(2, 513)
MOST_PARAMS, MOST_FLOPS = 6_000_000, 600_000_000  # every ImageNet network of the files is below one of them

_STAGE = re.compile(r"d([1-9]\d{0,3})-w([1-9]\d{0,3})(?:-r([1-9]\d{0,3})-g([1-9]\d{0,3}))?")


@dataclass(frozen=True)
class Generator:
    """What networks are drawn from, each combination as likely as any other."""

    stages: int
    stems: tuple[int, ...]
    values: Mapping[str, tuple[int, ...]]  # field of a stage -> its values

    def __len__(self) -> int:
        choices = math.prod(len(values) for values in self.values.values())
        return len(self.stems) * int(choices**self.stages)

    def __getitem__(self, number: int) -> tuple[int, tuple[Stage, ...]]:
        """Return stem and stages of a combination."""
        number, stem = divmod(number, len(self.stems))
        stages = []
        for _ in range(self.stages):
            fields = {}
            for field, values in self.values.items():
                number, at = divmod(number, len(values))
                fields[field] = values[at]
            stages.append(Stage(**fields))
        return self.stems[stem], tuple(stages)


@dataclass(frozen=True)
class AnyNetSpace:
    """One of the families."""

    family: str
    layout: Layout
    generators: Mapping[str, Generator]  # by data set
    allowed: Mapping[str, Collection[int]]  # field of a stage -> what members may have

    paper = "Radosavovic et al., On Network Design Spaces for Visual Recognition, ICCV 2019"
    datasets = DATASETS

    def __hash__(self) -> int:
        return hash(self.family)

    @property
    def name(self) -> str:
        """The space's name."""
        return f"nds/{self.family}"

    def parse(self, text: str) -> AnyNet:
        """Read a network such as ``resnet w16 d5-w32 d2-w64 d3-w192`` or ``resnext-a w64 d1-w16-r4-g2 ...``.

        Raises:
            UsageError: the text is no network of this space; the message says where it goes wrong.
        """
        words = text.split()
        try:
            if words[:1] != [self.family]:
                raise UsageError(f"expected {self.family!r} as its first word, got {words[0] if words else ''!r}")
            if len(words) < 2 or not re.fullmatch(r"w[1-9]\d{0,3}", words[1]):
                raise UsageError("expected the stem's width as its second word, such as w64")
            arch = AnyNet(self.family, int(words[1][1:]), tuple(map(self._stage, words[2:])))
            self._check(arch)
            if str(arch) != text.strip():
                raise UsageError(f"did you mean {str(arch)!r}?")
        except UsageError as error:
            raise UsageError(f"malformed network {text!r}: {error}") from None
        return arch

    def _stage(self, word: str) -> Stage:
        match = _STAGE.fullmatch(word)
        bottleneck = self.layout.block == "res_bottleneck_block"
        if match is None or (match[3] is not None) != bottleneck:
            example = "d2-w64-r4-g2" if bottleneck else "d2-w64"
            raise UsageError(f"{word!r} is no stage; expected one such as {example}")
        return Stage(*(int(number) for number in match.groups() if number is not None))

    def from_entry(self, net: Mapping[str, Any]) -> AnyNet:
        """Read the field ``net`` of an entry of an official file.

        Args:
            net: ``block_type``, ``ds``, ``ws``, ``ss``, and for bottlenecks ``bot_muls`` and ``num_gs``; the first of
                each is the stem's.

        Raises:
            UsageError: it is no network of this space; the message says which field is wrong.
        """
        if net.get("block_type") != self.layout.block:
            raise UsageError(f"block_type is {net.get('block_type')!r:.60}, not {self.layout.block!r}")
        bottleneck = self.layout.block == "res_bottleneck_block"
        depths, widths, strides = (_numbers(net, field) for field in ("ds", "ws", "ss"))
        ratios = [1 / factor for factor in _numbers(net, "bot_muls", bottleneck)] or [1.0] * len(depths)
        groups = _numbers(net, "num_gs", bottleneck) or [1] * len(depths)
        if len({len(depths), len(widths), len(strides), len(ratios), len(groups)}) != 1:
            raise UsageError("its lists are not of one length")
        if (depths[0], ratios[0], groups[0]) != (1, 1, 1) or strides[0] not in (1, self.layout.stem_stride):
            raise UsageError(
                f"its stem is none of this space: depth 1, stride 1 or {self.layout.stem_stride}, one group"
            )
        if tuple(strides[1:]) != STRIDES[: len(strides) - 1]:
            raise UsageError(f"the strides of its stages are {strides[1:]}, not {', '.join(map(str, STRIDES))}")
        numbers = [*depths, *widths, *ratios, *groups]
        if any(number != int(number) for number in numbers):
            raise UsageError("it has a depth, width, ratio or number of groups that is not whole")
        stages = zip(depths[1:], widths[1:], ratios[1:], groups[1:], strict=True)
        arch = AnyNet(self.family, int(widths[0]), tuple(Stage(*map(int, stage)) for stage in stages))
        self._check(arch)
        return arch

    def sample(self, seed: int, i: int, dataset: str = "cifar10") -> AnyNet:
        """Return the ``i``-th random network under ``seed``, of those that were drawn for a data set."""
        self._dataset(dataset)
        generator = self.generators[dataset]
        scope = "" if dataset == "cifar10" else dataset
        for attempt in itertools.count():
            stream = Stream.of(seed, self.name, scope, i, f"sample {attempt}")
            arch = AnyNet(self.family, *generator[int(stream.integers(1, len(generator))[0])])
            if dataset != "imagenet" or self.size(arch, dataset).params < MOST_PARAMS:
                break
            if self.published_flops(arch, dataset) < MOST_FLOPS:
                break
        return arch

    def neighbours(self, arch: AnyNet) -> list[AnyNet]:
        """Return the networks in which one number of one stage is the next lower or higher value of a draw."""
        found = []
        for at, stage in enumerate(arch.stages):
            for field in self.allowed:
                number = getattr(stage, field)
                values = sorted({value for drawn in self.generators.values() for value in drawn.values[field]})
                lower = [value for value in values if value < number][-1:]
                higher = [value for value in values if value > number][:1]
                for value in lower + higher:
                    changed = replace(stage, **{field: value})
                    found.append(replace(arch, stages=(*arch.stages[:at], changed, *arch.stages[at + 1 :])))
        return found

    def mutate(self, arch: AnyNet, seed: int, i: int) -> AnyNet:
        """Return the ``i``-th random neighbour of ``arch`` under ``seed``."""
        options = self.neighbours(arch)
        stream = Stream.of(seed, self.name, str(arch), i, "mutate")
        return options[int(stream.integers(1, len(options))[0])]

    def key(self, arch: AnyNet) -> str:
        """Return the network's text; a ResNeXt has the same whether it is written as one of A or of B."""
        family, _, rest = str(arch).partition(" ")
        return f"{'resnext' if family.startswith('resnext') else family} {rest}"

    def size(self, arch: AnyNet, dataset: str) -> Size:
        """Return parameters and multiply-accumulates of the network."""
        total = self.layout.count(arch, self._dataset(dataset))
        return Size(total.params, total.macs)

    def published_flops(self, arch: AnyNet, dataset: str) -> int:
        """Return what the official files call ``flops``.

        Multiply-accumulates, 5 for each output of a batch norm, and 1 for each bias of the classifier.
        """
        spec = self._dataset(dataset)
        total = self.layout.count(arch, spec)
        return total.macs + 5 * total.normed + spec.classes

    def slots(self, arch: AnyNet, dataset: str) -> Slots:
        """Return the stem and the blocks, and their convolutions with the classifier."""
        return self.layout.slots(arch, self._dataset(dataset))

    def common_slots(self, dataset: str) -> None:
        """Return None: depths differ."""

    def correspondence(self, representative: AnyNet, member: AnyNet, dataset: str) -> Mapping[str, str]:
        """Map every slot to itself: networks of one key are the same network."""
        if self.key(representative) != self.key(member):
            raise UsageError(f"{representative} and {member} compute different functions")
        return {slot: slot for slot in self.slots(member, dataset).layers}

    def build(self, arch: AnyNet, dataset: str, *, full: bool = False) -> Built:
        """Build the network; no layer of it is dead, so ``full`` changes nothing."""
        spec = self._dataset(dataset)
        return Built(self.layout.build(arch, spec), self.layout.slots(arch, spec).blocks)

    def _check(self, arch: AnyNet) -> None:
        if len(arch.stages) not in STAGES:
            raise UsageError(f"it has {len(arch.stages)} stages, not {' or '.join(map(str, STAGES))}")
        if arch.stem not in STEM_WIDTHS:
            raise UsageError(f"a stem cannot be {arch.stem} wide, but {_shown(STEM_WIDTHS)}")
        for number, stage in enumerate(arch.stages, start=1):
            for field, allowed in self.allowed.items():
                if getattr(stage, field) not in allowed:
                    got = getattr(stage, field)
                    raise UsageError(f"stage {number} has {field} {got}, which must be {_shown(allowed)}")

    def _dataset(self, name: str) -> Dataset:
        if name not in self.datasets:
            raise unknown_name("dataset", name, self.datasets)
        return self.datasets[name]


def _numbers(net: Mapping[str, Any], field: str, expected: bool = True) -> list[Any]:
    """Return a list of positive numbers of an entry, an empty one where none is expected."""
    value = net.get(field)
    if not isinstance(value, list) or not all(type(n) in (int, float) and 1e-6 < n < 1e6 for n in value):
        raise UsageError(f"{field} is no list of positive numbers")
    if bool(value) != expected:
        raise UsageError(f"{field} is {'empty' if expected else 'not empty, as for this space it must be'}")
    return value


def _shown(allowed: Collection[int]) -> str:
    if isinstance(allowed, range):
        return f"from {allowed[0]} to {allowed[-1]}"
    return f"one of {', '.join(map(str, allowed))}"


def _basic(family: str, block: Block) -> AnyNetSpace:
    depths = (1, 2, 3, 4, 6, 8, 12, 16, 24)
    widths = (16, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 256)
    files_depths = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24)
    files_widths = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
    generators = {
        "cifar10": Generator(3, (16,), {"depth": depths, "width": widths}),
        "imagenet": Generator(4, (16, 32, 64), {"depth": files_depths, "width": files_widths}),
    }
    return AnyNetSpace(family, Layout(block, 4), generators, {"depth": range(1, 25), "width": range(16, 513)})


def _bottleneck(family: str, widths: tuple[int, ...], groups: tuple[int, ...]) -> AnyNetSpace:
    values = {"depth": (1, 2, 4, 8, 16), "width": widths, "ratio": (1, 2, 4), "groups": groups}
    generators = {"cifar10": Generator(3, (16,), values), "imagenet": Generator(3, (64,), values)}
    return AnyNetSpace(family, Layout("res_bottleneck_block", 8), generators, values)


ANYNET_SPACES = (
    _basic("resnet", "res_basic_block"),
    _bottleneck("resnext-a", (16, 32, 64, 128, 256), (1, 2, 4)),
    _bottleneck("resnext-b", (64, 128, 256, 512, 1024), (1, 2, 4, 8, 16)),
    _basic("vanilla", "double_plain_block"),
)
