"""What ``torch.save`` wrote, read without running anything: the pickle inside, through the reader of `unpickle`.

Both forms of such files are understood, the zip archive and the row of pickles of torch before 1.6, as long as they
hold no tensors: benchmarks use them for plain data.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from zcpipe.errors import DataError
from zcpipe.untrusted.plain import PLAIN_GLOBALS, Globals, encoded
from zcpipe.untrusted.stream import Progress, reading, size_of
from zcpipe.untrusted.unpickle import Limits, OnDict, load

# Torch pickles under protocol 2, where the bytes of numpy scalars are texts to encode.
TORCH_GLOBALS: Globals = {**PLAIN_GLOBALS, ("_codecs", "encode"): encoded}

_ZIP = b"PK\x03\x04"
_OLD_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."  # torch's magic number and version, pickled
_OLD_END = b"\x80\x02]q\x00."  # the pickled list of the tensors' names, empty
_SYSTEM = 4096  # more bytes than the pickled dict about the system takes


def load_torch(
    path: Path,
    *,
    limits: Limits | None = None,
    on_dict: OnDict | None = None,
    names: Globals = TORCH_GLOBALS,
    progress: Progress | None = None,
) -> Any:  # noqa: ANN401 - the file decides; callers check every type they use
    """Read the object that ``torch.save`` wrote.

    Args:
        path: the file.
        limits: what it may cost, as for `zcpipe.untrusted.unpickle.load`.
        on_dict: likewise.
        names: likewise.
        progress: told the bytes read of the pickle, which is nearly all of the file.

    Returns:
        As `zcpipe.untrusted.unpickle.load` does.

    Raises:
        DataError: the file cannot be read, is truncated, damaged or too large, holds tensors, is no file of torch, or
            asks for anything but data.
    """
    size_of(path, "a file that torch.save wrote")
    with reading(path), path.open("rb") as file:
        start = file.read(len(_OLD_START))
        file.seek(0)
        if start.startswith(_ZIP):
            with _damage(path), _pickle_in_zip(file, path) as part:
                return load(part, str(path), limits=limits, on_dict=on_dict, names=names, progress=progress)
        if start == _OLD_START:
            part = _pickle_in_row(file, path)
            return load(part, str(path), limits=limits, on_dict=on_dict, names=names, progress=progress)
    raise DataError(f"{path}: is no file of torch.save; it is another kind of file")


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Name the file in whatever the zip reader finds wrong."""
    try:
        yield
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise DataError(f"{path}: the zip archive is truncated or damaged ({error}); fetch the file again") from error


def _pickle_in_zip(file: BinaryIO, path: Path) -> BinaryIO:
    archive = zipfile.ZipFile(file)
    found = [part for part in archive.infolist() if part.filename.endswith("/data.pkl")]
    if len(found) != 1 or found[0].compress_type != zipfile.ZIP_STORED:
        raise DataError(
            f"{path}: is a zip archive without the one stored data.pkl of torch; it is another kind of file"
        )
    return cast(BinaryIO, archive.open(found[0]))


def _pickle_in_row(file: BinaryIO, path: Path) -> BinaryIO:
    file.seek(-len(_OLD_END), io.SEEK_END)
    stop = file.tell()
    if file.read() != _OLD_END:
        raise DataError(f"{path}: holds tensors, or is truncated; plain data is expected")
    file.seek(len(_OLD_START))
    about = io.BytesIO(file.read(_SYSTEM))
    try:
        for _ in pickletools.genops(about):
            pass
    except ValueError as error:
        raise DataError(f"{path}: is damaged where torch describes the system that wrote it") from error
    start = len(_OLD_START) + about.tell()
    file.seek(start)
    return cast(BinaryIO, _Part(file, stop - start))


class _Part(io.RawIOBase):
    """The next so many bytes of a file."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        super().__init__()
        self._file, self._left = file, size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - whatever io hands over
        data = self._file.read(max(0, min(len(buffer), self._left)))
        buffer[: len(data)] = data
        self._left -= len(data)
        return len(data)
