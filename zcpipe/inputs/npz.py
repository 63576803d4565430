"""NumPy archives of any labelled images: ``images`` uint8 [N, H, W, C] and ``labels`` integers [N].

Intensities are normalised to mean 0.5 and standard deviation 0.5 unless the file has arrays ``mean`` and ``std`` with
one number a channel, for intensities of 0 to 1. Other arrays are left alone. Images are read from the front to the end
and only those asked for are kept.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from zcpipe.errors import DataError
from zcpipe.inputs.images import ImageFile, Labels, Pixels
from zcpipe.untrusted.stream import reading

_PIECE = 4 << 20
_SMALL = 1 << 30  # bytes of labels, of which there are at most a hundred million


def read_npz(path: Path) -> ImageFile:
    """Read an archive, its images later.

    Raises:
        DataError: there is no such file, it is damaged, an array is missing or of another kind, or needs pickle.
    """
    with _opened(path) as archive:
        shape, dtype = _declared(archive, path, "images")
        if dtype != np.uint8 or len(shape) != 4 or 0 in shape[1:]:
            raise DataError(f"{path}: 'images' must be uint8 [N, H, W, C], got {dtype} {list(shape)}")
        count, height, width, channels = shape
        labels = _array(archive, path, "labels")
        if labels.dtype.kind not in "iu" or labels.shape != (count,):
            got = f"{labels.dtype} {list(labels.shape)}"
            raise DataError(f"{path}: 'labels' must be {count} integers, one an image, got {got}")
        if labels.size and int(labels.max()) >= 2**63:
            raise DataError(f"{path}: 'labels' holds {labels.max()}, which is no class")
        mean = _channels(archive, path, "mean", channels)
        std = _channels(archive, path, "std", channels)
    if not 0 <= min(mean) <= max(mean) <= 1:
        hint = "; divide 'mean' and 'std' by 255" if max(mean) > 1 else ""
        raise DataError(f"{path}: 'mean' must lie in 0 to 1, as intensities do, got {list(mean)}{hint}")
    if min(std) <= 0:
        raise DataError(f"{path}: 'std' must be positive, got {list(std)}")

    def take(positions: Labels) -> Pixels:
        return _take(path, shape, positions)

    return ImageFile(labels.astype(np.int64), (height, width, channels), mean, std, take)


def _channels(archive: zipfile.ZipFile, path: Path, name: str, channels: int) -> tuple[float, ...]:
    if f"{name}.npy" not in archive.namelist():
        return (0.5,) * channels
    values = _array(archive, path, name)
    if values.shape != (channels,) or values.dtype.kind != "f" or not np.isfinite(values).all():
        raise DataError(
            f"{path}: {name!r} must be {channels} finite floats, one a channel, got {values.dtype} {list(values.shape)}"
        )
    return tuple(values.astype(np.float64).tolist())


def _take(path: Path, shape: tuple[int, ...], positions: Labels) -> Pixels:
    """Read all images in pieces and keep those at some positions."""
    size = math.prod(shape[1:])
    order = np.argsort(positions, kind="stable")
    wanted = positions[order]
    taken = np.empty((len(positions), size), np.uint8)
    per_piece = max(1, _PIECE // size)
    with _opened(path) as archive, _member(archive, path, "images") as (file, found, _):
        if found != shape:
            raise DataError(f"{path}: has changed while it was read; start again")
        for start in range(0, shape[0], per_piece):
            count = min(per_piece, shape[0] - start)
            rows = np.frombuffer(_exactly(file, path, count * size), np.uint8).reshape(count, size)
            first, last = np.searchsorted(wanted, [start, start + count])
            taken[order[first:last]] = rows[wanted[first:last] - start]
        _end(file, path)
    return taken.reshape(len(positions), *shape[1:])


def _declared(archive: zipfile.ZipFile, path: Path, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    with _member(archive, path, name) as (_, shape, dtype):
        return shape, dtype


def _array(archive: zipfile.ZipFile, path: Path, name: str) -> NDArray[Any]:
    """Read a small array whole."""
    with _member(archive, path, name) as (file, shape, dtype):
        size = math.prod(shape) * dtype.itemsize
        if size > _SMALL:
            raise DataError(f"{path}: {name!r} has {size} bytes, which no such array needs")
        data = _exactly(file, path, size)
        _end(file, path)
    return np.frombuffer(data, dtype).reshape(shape)


@contextmanager
def _member(
    archive: zipfile.ZipFile, path: Path, name: str
) -> Iterator[tuple[IO[bytes], tuple[int, ...], np.dtype[Any]]]:
    """Open an array at the beginning of its data; nothing that its header says is believed further than read."""
    if f"{name}.npy" not in archive.namelist():
        held = ", ".join(sorted(archive.namelist())[:5])
        raise DataError(f"{path}: has no array {name!r} (it holds {held:.200}); give 'images' and 'labels'")
    with archive.open(f"{name}.npy") as file:
        version = npy.read_magic(file)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read_header(file)
        if min(shape, default=0) < 0:
            raise DataError(f"{path}: {name!r} has the shape {list(shape)}; the file is damaged")
        if dtype.hasobject:
            raise DataError(f"{path}: {name!r} holds Python objects, which are never read; give plain numbers")
        if fortran and len(shape) > 1:
            raise DataError(f"{path}: {name!r} is stored in Fortran order; save numpy.ascontiguousarray of it")
        yield file, shape, dtype


def _exactly(file: IO[bytes], path: Path, size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise DataError(f"{path}: an array ends too early; the file is damaged")
    return data


def _end(file: IO[bytes], path: Path) -> None:
    """Read to the end, where the checksum is."""
    if file.read(1):
        raise DataError(f"{path}: an array is longer than it says; the file is damaged")


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open an archive; whatever zip and npy say about a damaged one is a ``DataError``."""
    with reading(path):
        if not path.is_file():
            raise DataError(f"{path}: no such file; give --inputs npz:PATH a NumPy archive")
        try:
            with zipfile.ZipFile(path) as archive:
                yield archive
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
            reason = (str(error).splitlines() or ["unreadable"])[0]
            raise DataError(f"{path}: is damaged or no NumPy archive ({reason:.120})") from error
