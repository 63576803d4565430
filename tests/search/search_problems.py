"""Small problems to search: scores made by hand over NAS-Bench-Macro, whose architectures are cheap to make."""

import numpy as np

from zcpipe.parzc.places import Coordinate
from zcpipe.parzc.spec import FeatureSpec
from zcpipe.search import Features, TableScores, Trained
from zcpipe.spaces import get_space

SPACE = get_space("nasbenchmacro")


def quality(arch):
    """How good a network is: one layer counts more than the other, and 2 more than 1."""
    return float(sum((place + 1) * operation for place, operation in enumerate(arch.operations)))


def macro_scores(archs=None, **columns):
    """Scores of networks: ``good`` orders them as `quality` does, ``bad`` the other way, ``broken`` always failed."""
    members = list(SPACE) if archs is None else archs
    sizes = [SPACE.size(arch, "cifar10") for arch in members]
    good = np.array([quality(arch) for arch in members])
    values = {
        "params": np.array([float(size.params) for size in sizes]),
        "macs": np.array([float(size.macs) for size in sizes]),
        "good": good,
        "bad": -good,
        "cost": -good,
        "broken": np.full(len(good), np.nan),
        **columns,
    }
    directions = {name: "lower" if name == "cost" else "higher" for name in values}
    return TableScores([str(arch) for arch in members], [SPACE.key(arch) for arch in members], values, directions)


def macro_features(archs=None):
    """The operations of the first half of the layers are statistics of theirs, those of the others scalars."""
    members = list(SPACE) if archs is None else archs
    x = np.array([arch.operations for arch in members], np.float32)
    layers, half = x.shape[1], x.shape[1] // 2
    coordinates = [Coordinate("op@layer", f"layer{i}", f"layer{i}") for i in range(half)]
    coordinates += [Coordinate(f"op{i}", "", "") for i in range(half, layers)]
    spec = FeatureSpec(statistics=("op@layer",), proxies=tuple(f"op{i}" for i in range(half, layers)))
    return Features(SPACE.name, [str(arch) for arch in members], x, tuple(coordinates), spec)


class Counting:
    """An evaluation that notes what it trained; it fails for the texts in ``failing``."""

    def __init__(self, failing=()):
        self.trained = []
        self.failing = set(failing)

    def __call__(self, arch):
        self.trained.append(str(arch))
        if str(arch) in self.failing:
            raise RuntimeError("out of luck")
        return Trained(quality(arch), report=-quality(arch), seconds=2.0)


def search_command(given):
    """Return the command with options as ``name=value``: None leaves one out, "" is a flag, a list repeats it."""
    pairs = [
        (f"--{name.replace('_', '-')}", one)
        for name, value in given.items()
        if value is not None
        for one in (value if isinstance(value, list) else [value])
    ]
    return ["search", *(str(part) for pair in pairs for part in (pair if pair[1] != "" else pair[:1]))]
