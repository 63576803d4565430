"""A small correct space, which tests break in one way or another."""

import dataclasses
from dataclasses import dataclass

import torch
from torch import nn

from zcpipe.errors import UsageError
from zcpipe.ops.philox import Stream
from zcpipe.spaces.base import Built, Dataset, Size, Slots
from zcpipe.spaces.layers import Conv2d, Linear
from zcpipe.spaces.permutation import permuted

KERNELS = ("1", "3", "skip", "none")


@dataclass(frozen=True)
class Pair:
    """Two branches whose sum is squashed or not; a branch that is "none" is not there."""

    first: str
    second: str
    squash: bool

    def __str__(self):
        return f"{self.first}+{self.second}{' squashed' if self.squash else ''}"


def layer(kernel, channels, outputs):
    return Conv2d(channels, outputs, int(kernel), padding=int(kernel) // 2, bias=False)


class Branches(nn.Module):
    def __init__(self, arch, dead):
        super().__init__()
        self.layers = nn.ModuleDict()
        for name in ("first", "second"):
            kernel = getattr(arch, name)
            if kernel != "none":
                self.layers[name] = nn.Identity() if kernel == "skip" else layer(kernel, 4, 4)
        self.layers["last"] = nn.BatchNorm2d(4)
        self.squash = nn.Tanh() if arch.squash else nn.Identity()
        self.dead = layer("3", 4, 4) if dead else None

    def forward(self, x):
        total = sum((self.layers[name](x) for name in ("first", "second") if name in self.layers), torch.zeros_like(x))
        if self.dead is not None:
            with torch.no_grad():
                self.dead(x)
        return self.squash(self.layers["last"](total))


class Network(nn.Module):
    def __init__(self, arch, full, classes=5):
        super().__init__()
        self.stem = layer("3", 3, 4)
        self.body = Branches(arch, full and arch.squash)  # what is squashed has a layer that nothing reads
        self.head = Linear(4, classes)

    def forward(self, x):
        return self.head(self.body(self.stem(x)).mean((2, 3)))


class Toy:
    """32 members; exchanging the branches changes nothing."""

    name = "toy"
    datasets = {"tiny": Dataset("tiny", (3, 6, 6), 5), "tinier": Dataset("tinier", (3, 4, 4), 5)}  # noqa: RUF012
    paper = "none"

    def __len__(self):
        return 2 * len(KERNELS) ** 2

    def __getitem__(self, index):
        if not 0 <= index < len(self):
            raise UsageError(f"there is no member {index}")
        pair, squash = divmod(index, 2)
        return Pair(*(KERNELS[k] for k in divmod(pair, len(KERNELS))), bool(squash))

    def index(self, arch):
        pair = KERNELS.index(arch.first) * len(KERNELS) + KERNELS.index(arch.second)
        return 2 * pair + arch.squash

    def parse(self, text):
        for index in range(Toy.__len__(self)):
            if str(member := Toy.__getitem__(self, index)) == text:
                return member
        raise UsageError(f"{text!r} is no pair")

    def sample(self, seed, i):
        return self[permuted(len(self), seed, self.name, i)]

    def neighbours(self, arch):
        firsts = [dataclasses.replace(arch, first=kernel) for kernel in KERNELS if kernel != arch.first]
        seconds = [dataclasses.replace(arch, second=kernel) for kernel in KERNELS if kernel != arch.second]
        return [*firsts, *seconds, dataclasses.replace(arch, squash=not arch.squash)]

    def mutate(self, arch, seed, i):
        options = self.neighbours(arch)
        return options[int(Stream.of(seed, self.name, str(arch), i, "mutate").integers(1, len(options))[0])]

    def key(self, arch):
        return f"{'+'.join(sorted((arch.first, arch.second)))} {arch.squash}"

    def size(self, arch, dataset):
        weights = [3 * 4 * 9, 9 * 16 * arch.squash]
        weights += [int(kernel) ** 2 * 16 for kernel in (arch.first, arch.second) if kernel.isdigit()]
        side = self.datasets[dataset].input_shape[1]
        return Size(sum(weights) + 8 + 4 * 5 + 5, sum(weights) * side**2 + 4 * 5)

    def slots(self, arch, dataset):
        return Slots(("stem", "body"), ("stem", "body.layers.first", "body.layers.second", "body.dead", "head"))

    def common_slots(self, dataset):
        return self.slots(self[0], dataset)

    def correspondence(self, representative, member, dataset):
        exchanged = (representative.first, representative.second) != (member.first, member.second)
        slots = {"stem": "stem"}
        for name, other in (("first", "second"), ("second", "first")):
            if getattr(member, name).isdigit():
                slots[f"body.layers.{name}"] = f"body.layers.{other if exchanged else name}"
        return {**slots, "head": "head"}

    def build(self, arch, dataset, *, full=False):
        return Built(Network(arch, full), self.slots(arch, dataset).blocks)
