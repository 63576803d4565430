"""The batch of a run's repeat: drawn once, the same for every architecture, in every process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zcpipe.errors import DataError, UsageError, unknown_name
from zcpipe.inputs.cifar import read_cifar10, read_cifar100
from zcpipe.inputs.imagenet16 import read_imagenet16
from zcpipe.inputs.images import ImageFile, Labels, Pixels
from zcpipe.inputs.npz import read_npz
from zcpipe.ops import as_images, image_format
from zcpipe.ops.philox import Stream
from zcpipe.spaces import Dataset, get_space
from zcpipe.spaces.permutation import permutation
from zcpipe.untrusted.stream import reading

if TYPE_CHECKING:  # the run is above; its spec is only data here
    from zcpipe.run.spec import RunSpec

NOISE = "noise"
FORMATS: Mapping[str, Callable[[Path], ImageFile]] = {
    "cifar10": read_cifar10,
    "cifar100": read_cifar100,
    "imagenet16": read_imagenet16,
    "npz": read_npz,
}
_KEPT = 2


@dataclass(frozen=True)
class Batch:
    """Images and their labels, on the run's device.

    Attributes:
        images: float32, channels-last, [N, C, H, W].
        labels: classes from 0, int64, [N].
    """

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class _Drawn:
    """The images of all repeats of a run, as they are in the file."""

    images: Pixels  # [repeats, N, H, W, C]
    labels: Labels  # [repeats, N]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def content(self) -> str:
        """Name what enters the networks: pixels, labels and how they are normalised."""
        digest = hashlib.blake2b(repr((self.images.shape, self.mean, self.std)).encode(), digest_size=16)
        digest.update(self.images.tobytes())
        digest.update(self.labels.astype("<i8").tobytes())
        return digest.hexdigest()


# By everything that decides them, the content included. A run draws once, whatever becomes of its file meanwhile.
_drawn: dict[tuple[object, ...], _Drawn] = {}


def batch_of(spec: RunSpec, repeat: int) -> Batch:
    """Return the images and labels of a repeat under the inputs of a run: what recipes with inputs "data" see.

    Under ``noise`` the images are i.i.d. standard normals and the labels uniform over the data set's classes, both from
    streams of the run. Otherwise they are those of a file that come first in a permutation of all its images that
    belongs to seed, space and repeat, normalised channel by channel.

    Args:
        spec: the run's; ``inputs_content`` names what the file must give.
        repeat: from 0.

    Returns:
        The batch, made anew at each call from what is kept; the file is read at most once in a process.

    Raises:
        DataError: the file is missing, damaged or foreign, does not fit the data set, has too few images, or gives
            another batch than that which the spec names.
    """
    if spec.inputs == NOISE:
        return noise_of(spec, repeat)
    drawn = _drawn.get(_name(spec, spec.inputs_content))
    if drawn is None and content_of(spec) != spec.inputs_content:
        raise DataError(
            f"{spec.inputs} gives another batch than when the run was specified ({spec.inputs_content}); "
            "has the file changed, or is another one there on this machine?"
        )
    drawn = _drawn[_name(spec, spec.inputs_content)]
    pixels = _normalised(drawn.images[repeat], drawn.mean, drawn.std)
    labels = torch.from_numpy(drawn.labels[repeat].copy())
    return Batch(as_images(torch.from_numpy(pixels).permute(0, 3, 1, 2).to(spec.device)), labels.to(spec.device))


def noise_of(spec: RunSpec, repeat: int) -> Batch:
    """Return i.i.d. standard normal images and uniform labels, whatever the run's inputs: what recipes "noise" see."""
    dataset = get_space(spec.space).datasets[spec.dataset]
    shape = (spec.batch_size, *_shape(spec, dataset))
    images = torch.empty(shape, device=spec.device, memory_format=image_format(spec.device))
    _stream(spec, repeat, "inputs").normal_(images)
    labels = _stream(spec, repeat, "labels").integers(spec.batch_size, dataset.classes)
    return Batch(images, labels.to(spec.device))


def content_of(spec: RunSpec) -> str:
    """Read a run's images and name them: a digest of the pixels, labels and normalisation of all its repeats.

    Raises:
        UsageError: ``spec.inputs`` is not ``noise`` or KIND:PATH, or the space has no such data set.
        DataError: the file is missing, damaged or foreign, does not fit the data set, or has too few images.
    """
    kind, path = parse(spec.inputs)
    datasets = get_space(spec.space).datasets
    if spec.dataset not in datasets:
        raise unknown_name("dataset", spec.dataset, datasets)
    dataset = datasets[spec.dataset]
    if kind != "npz" and _is_archive(path):
        raise DataError(f"{path}: is a NumPy archive and no file of {kind}; use --inputs npz:{path}")
    file = FORMATS[kind](path)
    channels, height, width = _shape(spec, dataset)
    if file.shape != (height, width, channels):
        raise DataError(
            f"{path}: its images are {_size(*file.shape)}, but {spec.dataset} of {spec.space} takes "
            f"{_size(height, width, channels)}; give other --inputs, --dataset or --resolution"
        )
    if len(file.labels) < spec.batch_size:
        raise DataError(f"{path}: holds {len(file.labels)} images for a batch of {spec.batch_size}; lower --batch-size")
    outside = file.labels[(file.labels < 0) | (file.labels >= dataset.classes)]
    if len(outside):
        raise DataError(
            f"{path}: has the label {outside[0]}, but {spec.dataset} of {spec.space} has the {dataset.classes} classes "
            f"0 to {dataset.classes - 1}; give other --inputs or --dataset"
        )
    rows = [_chosen(spec, repeat, len(file.labels)) for repeat in range(spec.repeats)]
    images = file.take(np.concatenate(rows)).reshape(spec.repeats, spec.batch_size, *file.shape)
    drawn = _Drawn(images, file.labels[np.stack(rows)], file.mean, file.std)
    content = drawn.content
    while len(_drawn) >= _KEPT:
        del _drawn[next(iter(_drawn))]
    _drawn[_name(spec, content)] = drawn
    return content


def parse(inputs: str) -> tuple[str, Path]:
    """Split KIND:PATH.

    Raises:
        UsageError: it is something else, or there is no such kind.
    """
    kind, _, path = inputs.partition(":")
    if kind == NOISE and path:
        raise UsageError(f"inputs: {NOISE} takes no path, got {inputs!r}")
    if kind not in FORMATS:
        raise unknown_name("kind of inputs", kind, [NOISE, *FORMATS])
    if not path:
        raise UsageError(f"inputs must be {NOISE} or KIND:PATH, got {inputs!r}; for example {kind}:PATH")
    return kind, Path(path)


def _shape(spec: RunSpec, dataset: Dataset) -> tuple[int, int, int]:  # C, H, W
    """Return the shape of the images that a run scores."""
    channels, height, width = dataset.input_shape
    return (channels, spec.resolution or height, spec.resolution or width)


def _is_archive(path: Path) -> bool:
    """Whether a file begins as zip files do, which NumPy's archives are and the official batches are not."""
    if not path.is_file():
        return False
    with reading(path), path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _name(spec: RunSpec, content: str) -> tuple[object, ...]:
    return spec.inputs, spec.space, spec.dataset, spec.resolution, spec.batch_size, spec.seed, spec.repeats, content


def _stream(spec: RunSpec, repeat: int, purpose: str) -> Stream:
    return Stream.of(spec.seed, spec.space, "run", repeat, purpose)


def _chosen(spec: RunSpec, repeat: int, count: int) -> Labels:
    """Return where in the file the images of a repeat are."""
    return permutation(count, _stream(spec, repeat, "images"))[: spec.batch_size]


def _normalised(pixels: Pixels, mean: tuple[float, ...], std: tuple[float, ...]) -> NDArray[np.float32]:
    """Return (x / 255 - mean) / std by channel, each of the 256 values computed once."""
    values = (np.arange(256)[:, None] / 255 - np.array(mean)) / np.array(std)  # [256, C]
    result: NDArray[np.float32] = values.astype(np.float32)[pixels, np.arange(len(mean))]
    return result


def _size(height: int, width: int, channels: int) -> str:
    return f"{height} x {width} pixels in {channels} channels"
