"""The residual bottleneck space of ZenNAS (Lin et al., ICCV 2021), in which ZiCo and AZ-NAS search, too.

`zcpipe.spaces.mbv2_networks` says what a network is. Its text is the published one: each part with the channels that
enter it, those that leave it and its stride; a block has expansion and kernel in its name, and ends with the channels
of its bottleneck and its sub-layers, the other parts with their number of convolutions, which is 1 here.

The published searches go from network to network. A move chooses parts at random, and for each one of its `options` at
random; strides and head stay. Then blocks of six or more sub-layers are split. That is a change of its own where a
block's channels are all alike, for the first shortcut of every block is a convolution.

There is no published distribution to draw from. A draw here is a walk of `STEPS` moves of one part each, from the
network with which the published searches start, and never to a network beyond the largest limits that AZ-NAS was
published with (at 224 x 224 pixels, whatever the data set).

A member need not be a possible draw: channels need not be multiples of 8 and the head may have any, so that what others
searched in these blocks can be read.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

from zcpipe.errors import UsageError, unknown_name
from zcpipe.ops.philox import Stream
from zcpipe.spaces import mbv2_networks as networks
from zcpipe.spaces.base import Built, Dataset, Size, Slots
from zcpipe.spaces.mbv2_networks import Block, Network, bottlenecks, smart_round

EXPANSIONS, KERNELS, STRIDES = (1, 2, 4, 6), (3, 5, 7), (1, 2)
SPLIT_FROM, SPLIT_OFF = 6, 3  # sub-layers of a block that is split, and of what is split off its beginning
STEPS = 16  # of the walk that a draw is
MOST_FLOPS, MOST_LAYERS = 1e9, 16  # the largest limits that AZ-NAS was published with

_MOST_CHANNELS = 99_999  # far beyond what can be scored: texts end somewhere, and so do the searches' moves
_PART = re.compile(r"(\w+)\(([^()]*)\)", re.ASCII)
_NUMBER = re.compile(r"[1-9][0-9]{0,4}")
_STEM, _HEAD = "SuperConvK3BNRELU", "SuperConvK1BNRELU"
_BLOCK = re.compile(r"SuperResIDWE([1246])K([357])")

Part = int | Block  # what a move can change: the stem, which is its channels, and the blocks


class Mbv2:
    """The space."""

    name = "mbv2"
    paper = "Lin et al., Zen-NAS: A Zero-Shot NAS for High-Performance Image Recognition, ICCV 2021"
    datasets = {  # noqa: RUF012 - a constant
        "imagenet": Dataset("imagenet", (3, 224, 224), 1000),
        "cifar10": Dataset("cifar10", (3, 32, 32), 10),
        "cifar100": Dataset("cifar100", (3, 32, 32), 100),
    }

    def initial(self) -> Network:
        """Return the network with which the published searches start."""
        channels = [(32, 8), (48, 32), (96, 48), (128, 96)]
        return Network(8, 2, tuple(Block(6, 3, outputs, 2, inner, 1) for outputs, inner in channels), 2048)

    def parse(self, text: str) -> Network:
        """Read a network such as ``SuperConvK3BNRELU(3,8,2,1)SuperResIDWE6K3(8,32,2,8,1)SuperConvK1BNRELU(32,64,1,1)``.

        Raises:
            UsageError: the text is no network of this space; the message says where it goes wrong.
        """
        try:
            stem, *middle, head = _parts(text.strip())
            width, stride = _convolution(*stem, _STEM, inputs=3, strides=STRIDES)
            blocks: list[Block] = []
            for name, numbers in middle:
                blocks.append(_block(name, numbers, blocks[-1].outputs if blocks else width))
            last, _ = _convolution(*head, _HEAD, inputs=blocks[-1].outputs, strides=(1,))
        except UsageError as error:
            raise UsageError(f"malformed network {text!r:.400}: {error}") from None
        return Network(width, stride, tuple(blocks), last)

    def sample(self, seed: int, i: int) -> Network:
        """Return the ``i``-th random walk under ``seed``; see above."""
        numbers = _numbers(Stream.of(seed, self.name, "", i, "sample"))
        arch = self.initial()
        for _ in range(STEPS):
            found = _moved(arch, 1, numbers)
            while self.num_layers(found) > MOST_LAYERS or self.published_flops(found, "imagenet") > MOST_FLOPS:
                found = _moved(arch, 1, numbers)
            arch = found
        return arch

    def neighbours(self, arch: Network) -> list[Network]:
        """Return the networks to which moves of one part lead, in the order of parts and options, without ``arch``."""
        parts: tuple[Part, ...] = (arch.stem, *arch.blocks)
        found = {_with(arch, {at: option}): None for at, part in enumerate(parts) for option in options(part)}
        found.pop(arch, None)
        return list(found)

    def mutate(self, arch: Network, seed: int, i: int, places: int = 1) -> Network:
        """Return the ``i``-th random move from ``arch`` under ``seed``.

        Parts are drawn as the published searches draw them, the head with the others although it never changes: with
        replacement, and what was drawn before is left alone. Moves that change nothing at all are drawn again.

        Args:
            arch: the network.
            seed: any integer.
            i: the number of the move.
            places: how many parts are drawn. With 1 it is a neighbour; AZ-NAS draws 2 once it has 11 networks.
        """
        if places < 1:
            raise UsageError(f"places: got {places}, expected at least 1")
        return _moved(arch, places, _numbers(Stream.of(seed, self.name, str(arch), i, "mutate")))

    def key(self, arch: Network) -> str:
        """Return stem, bottlenecks (``hidden>outputs``, kernel, stride, p for a convolution as shortcut) and head.

        Networks that are divided into blocks in several ways, or reach the same hidden channels from another expansion,
        are one network.
        """
        inner = (f"{b.hidden}>{b.outputs}k{b.kernel}s{b.stride}{'p' if b.projects else ''}" for b in bottlenecks(arch))
        return f"{arch.stem}s{arch.stem_stride} {' '.join(inner)} {arch.head}"

    def num_layers(self, arch: Network) -> int:
        """Return what the published limits call layers: sub-layers, stem and head."""
        return 2 + sum(block.sub_layers for block in arch.blocks)

    def size(self, arch: Network, dataset: str) -> Size:
        """Return parameters and multiply-accumulates of the network."""
        return networks.count(arch, self._dataset(dataset))

    def published_flops(self, arch: Network, dataset: str) -> float:
        """Return what the published searches call FLOPs; see `zcpipe.spaces.mbv2_networks.published_flops`."""
        return networks.published_flops(arch, self._dataset(dataset))

    def slots(self, arch: Network, dataset: str) -> Slots:
        """Return the slots of stem, bottlenecks, head and classifier."""
        self._dataset(dataset)
        return networks.slots(arch)

    def common_slots(self, dataset: str) -> None:
        """Return None: networks have more or fewer bottlenecks."""

    def correspondence(self, representative: Network, member: Network, dataset: str) -> Mapping[str, str]:
        """Map every slot to itself: networks of one key are one network, whose bottlenecks have the same numbers.

        Raises:
            UsageError: the networks have different keys.
        """
        if self.key(representative) != self.key(member):
            raise UsageError(f"the networks compute different functions: {representative} and {member}")
        return {slot: slot for slot in self.slots(member, dataset).layers}

    def build(self, arch: Network, dataset: str, *, full: bool = False) -> Built:
        """Build a network; its weights are zero until initialised. No layer of it is dead: ``full`` changes nothing."""
        return Built(networks.build(arch, self._dataset(dataset)), networks.slots(arch).blocks)

    def _dataset(self, name: str) -> Dataset:
        if name not in self.datasets:
            raise unknown_name("dataset", name, self.datasets)
        return self.datasets[name]


def options(part: Part) -> list[Part]:
    """Return what a part can become in the published searches.

    The stem's channels, and outputs and bottleneck of a block, are multiplied or divided by 1, 1.25, 1.5, 2 or 2.5 and
    rounded to multiples of 8. A block has any expansion and kernel, and up to two sub-layers more or less. Channels
    that are a multiple of 8 may stay, so that the part itself is among its options.
    """
    return [_made(part, values) for values in itertools.product(*_choices(part))]


def _choices(part: Part) -> list[Sequence[int]]:
    """Return the values of each number of a part; every combination is an option."""
    if not isinstance(part, Block):
        return [_widths(part)]
    sub_layers = range(max(1, part.sub_layers - 2), part.sub_layers + 3)
    return [EXPANSIONS, KERNELS, _widths(part.outputs), _widths(part.bottleneck), sub_layers]


def _made(part: Part, values: Sequence[int]) -> Part:
    if not isinstance(part, Block):
        return values[0]
    expansion, kernel, outputs, bottleneck, sub_layers = values
    return Block(expansion, kernel, outputs, part.stride, bottleneck, sub_layers)


@lru_cache(maxsize=1 << 14)
def _widths(channels: int) -> tuple[int, ...]:
    scaled = {channels * factor for factor in (2.5, 2, 1.5, 1.25, 1)} | {channels / f for f in (1.25, 1.5, 2, 2.5)}
    return tuple(sorted({width for width in map(smart_round, scaled) if width <= _MOST_CHANNELS}))


def _with(arch: Network, changed: Mapping[int, Part]) -> Network:
    """Return a network with other parts in some places, the stem's being 0, and its blocks split."""
    stem, *blocks = (changed.get(at, part) for at, part in enumerate((arch.stem, *arch.blocks)))
    assert isinstance(stem, int)  # noqa: S101 - states a type
    split = tuple(piece for block in blocks if isinstance(block, Block) for piece in _split(block))
    return replace(arch, stem=stem, blocks=split)


def _split(block: Block) -> Iterator[Block]:
    while block.sub_layers >= SPLIT_FROM:
        yield replace(block, sub_layers=SPLIT_OFF)
        block = replace(block, stride=1, sub_layers=block.sub_layers - SPLIT_OFF)
    yield block


def _moved(arch: Network, places: int, numbers: Iterator[int]) -> Network:
    """Return another network that a random move leads to."""
    parts: tuple[Part, ...] = (arch.stem, *arch.blocks)
    while True:
        changed: dict[int, Part] = {}
        for _ in range(places):
            at = _pick(len(parts) + 1, numbers)  # the head is the last
            if at < len(parts) and at not in changed:
                changed[at] = _made(parts[at], [choice[_pick(len(choice), numbers)] for choice in _choices(parts[at])])
        found = _with(arch, changed)
        if found != arch:
            return found


def _pick(n: int, numbers: Iterator[int]) -> int:
    """Return a random integer below ``n``, which is small."""
    return next(numbers) * n >> 31


def _numbers(stream: Stream) -> Iterator[int]:
    """Yield the integers below 2**31 of a stream, without an end."""
    known, n = 0, 64
    while True:
        yield from stream.integers(n, 2**31)[known:].tolist()
        known, n = n, 2 * n


def _parts(text: str) -> list[tuple[str, list[int]]]:
    """Split a text into its parts: names and numbers."""
    found: list[tuple[str, list[int]]] = []
    end = 0
    while end < len(text):
        match = _PART.match(text, end)
        if match is None:
            raise UsageError(f"expected a part such as SuperResIDWE6K3(8,32,2,8,1), got {text[end : end + 60]!r}")
        numbers = match[2].split(",")
        for number in numbers:
            if not _NUMBER.fullmatch(number):
                raise UsageError(f"{match[0]} has {number!r} where a number from 1 to {_MOST_CHANNELS} belongs")
        found.append((match[1], [int(number) for number in numbers]))
        end = match.end()
    if len(found) < 3:
        raise UsageError(f"expected a stem, blocks and a head, got {len(found)} parts")
    return found


def _convolution(
    name: str, numbers: list[int], expected: str, *, inputs: int, strides: tuple[int, ...]
) -> tuple[int, int]:
    """Return channels and stride of stem or head."""
    text = _text(name, numbers)
    if name != expected:
        raise UsageError(f"expected {expected} at its {'start' if expected == _STEM else 'end'}, got {text}")
    if len(numbers) != 4:
        raise UsageError(f"{text} must have four numbers: channels in and out, stride, 1")
    before, channels, stride, layers = numbers
    _check(text, before, inputs, stride, strides)
    if layers != 1:
        raise UsageError(f"{text} has {layers} convolutions, which must be 1")
    return channels, stride


def _block(name: str, numbers: list[int], inputs: int) -> Block:
    text, match = _text(name, numbers), _BLOCK.fullmatch(name)
    if match is None:
        raise UsageError(f"{name} is no block; blocks are SuperResIDWE<1, 2, 4 or 6>K<3, 5 or 7>")
    if len(numbers) != 5:
        raise UsageError(f"{text} must have five numbers: channels in and out, stride, bottleneck, sub-layers")
    before, outputs, stride, bottleneck, sub_layers = numbers
    _check(text, before, inputs, stride, STRIDES)
    if sub_layers > 99:
        raise UsageError(f"{text} has {sub_layers} sub-layers, more than 99")
    return Block(int(match[1]), int(match[2]), outputs, stride, bottleneck, sub_layers)


def _check(text: str, before: int, inputs: int, stride: int, strides: tuple[int, ...]) -> None:
    if before != inputs:
        raise UsageError(f"{text} takes {before} channels, but what comes before it gives {inputs}")
    if stride not in strides:
        raise UsageError(f"{text} has stride {stride}, which must be {' or '.join(map(str, strides))}")


def _text(name: str, numbers: list[int]) -> str:
    return f"{name}({','.join(map(str, numbers))})"


SPACES = (Mbv2(),)
