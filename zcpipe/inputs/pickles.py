"""The form that CIFAR and downsampled ImageNet share: pickled dicts of flat images, plane by plane, and labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from zcpipe.errors import DataError
from zcpipe.inputs.images import ImageFile, Labels, Pixels
from zcpipe.untrusted.plain import ARRAY_GLOBALS, Array
from zcpipe.untrusted.stream import reading, size_of
from zcpipe.untrusted.unpickle import WEIGHT, Limits, load

# The largest official file, all of CIFAR-100 in one, has 155 MB of pixels and nothing else of size.
_CONTENT = 256 << 20
_LIMITS = Limits(content=_CONTENT, objects=_CONTENT // WEIGHT + 2_000_000, item=_CONTENT)


def files_of(path: Path, names: Sequence[str]) -> list[Path]:
    """Return the files that a path stands for: itself, or in a directory those of the official names.

    Raises:
        DataError: there is nothing at the path, or the directory lacks one of the files.
    """
    with reading(path):
        if not path.exists():
            raise DataError(f"{path}: no such file or directory; give --inputs the official one")
        if not path.is_dir():
            return [path]
        files = [path / name for name in names]
        lacking = [file for file in files if not file.is_file()]
    if lacking:
        raise DataError(f"{lacking[0]}: no such file; the directory must hold {', '.join(names)}")
    return files


def read_pickles(
    files: Sequence[Path],
    key: str,
    side: int,
    statistics: tuple[tuple[float, ...], tuple[float, ...]],
    classes: range,
) -> ImageFile:
    """Read pickled batches of square colour images.

    Args:
        files: in order.
        key: what the labels are called.
        side: pixels along an edge.
        statistics: mean and standard deviation of each channel, for intensities of 0 to 255.
        classes: the labels in the files of which images are kept; they are numbered from 0.

    Raises:
        DataError: a file is missing, damaged, foreign or hostile; it names it.
    """
    parts = [_read(file, key, side, classes) for file in files]
    labels = np.concatenate([labels for labels, _ in parts])
    starts = np.cumsum([0, *(len(labels) for labels, _ in parts)])

    def take(positions: Labels) -> Pixels:
        numbers = np.searchsorted(starts, positions, side="right") - 1
        rows = [parts[number][1][row] for number, row in zip(numbers, positions - starts[numbers], strict=True)]
        return np.ascontiguousarray(np.stack(rows).reshape(-1, 3, side, side).transpose(0, 2, 3, 1))

    mean, std = (tuple(value / 255 for value in values) for values in statistics)
    return ImageFile(labels, (side, side, 3), mean, std, take)


def _read(file: Path, key: str, side: int, classes: range) -> tuple[Labels, Pixels]:
    """Return the labels of one file's images and the images themselves, flat."""
    size_of(file, "the official file of images")
    with reading(file), file.open("rb") as opened:
        content = load(opened, str(file), limits=_LIMITS, names=ARRAY_GLOBALS)
    if not isinstance(content, dict):
        raise DataError(f"{file}: holds no dict of images and labels; it is another kind of file")
    named = {name.decode("latin-1") if isinstance(name, bytes) else name: value for name, value in content.items()}
    images = named["data"].value if isinstance(named.get("data"), Array) else None
    if images is None or images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != 3 * side * side:
        got = "none" if images is None else f"{images.dtype} {list(images.shape)}"
        raise DataError(f"{file}: 'data' must be images as uint8 [N, {3 * side * side}], got {got}")
    labels = named.get(key)
    if not isinstance(labels, list) or len(labels) != len(images) or not all(type(label) is int for label in labels):
        raise DataError(f"{file}: {key!r} must be a list of {len(images)} labels, one an image; it is another file")
    numbers = np.array(labels, np.int64)
    kept = (numbers >= classes.start) & (numbers < classes.stop)
    if kept.all():
        return numbers - classes.start, images
    return numbers[kept] - classes.start, images[kept]
