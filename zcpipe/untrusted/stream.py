"""Bytes of a pickle: plain or bz2, in pieces, counted against a limit, every damage a DataError."""

from __future__ import annotations

import bz2
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from zcpipe.errors import DataError
from zcpipe.untrusted.plain import Forbidden

PIECE = 1 << 18
MAX_LINE = 512
STREAM = 4096
"""Bytes of content that each bz2 stream of a file stands for at least, where a file's cost is bounded."""

Progress = Callable[[int], None]
"""Told the number of bytes of the file that were read since it was last told."""


class Truncated(Exception):  # noqa: N818 - never leaves this package: the reader turns it into a DataError
    """The content ended inside an operation."""


class Content:
    """Content as ``pickletools.genops`` reads it: never more at once than the largest item that is expected.

    Attributes:
        buffer: content at hand.
        position: where in it the next read begins. Between two reads the caller may move it on.
    """

    def __init__(self, parts: Iterator[bytes], max_item: int) -> None:
        self.buffer = b""
        self.position = 0
        self._parts = parts
        self._max_item = max_item

    def read(self, size: int) -> bytes:
        """Read exactly that many bytes.

        Raises:
            Truncated: there are fewer.
            Forbidden: no single item of such a file is that large.
        """
        if size > self._max_item:
            raise Forbidden(f"a single item of {size} bytes")
        if self._hold(size) < size:
            raise Truncated
        self.position += size
        return self.buffer[self.position - size : self.position]

    def readline(self) -> bytes:
        """Read to the end of a short line."""
        self._hold(MAX_LINE)
        stop = self.buffer.find(b"\n", self.position, self.position + MAX_LINE) + 1
        if not stop:
            raise ValueError("a line without end")
        line = self.buffer[self.position : stop]
        self.position = stop
        return line

    def at_end(self) -> bool:
        """Say whether everything was read."""
        return not self._hold(1)

    def _hold(self, size: int) -> int:
        """Have that many bytes after the position, unless the content ends; return how many there are."""
        held = len(self.buffer) - self.position
        if held < size:
            parts = [self.buffer[self.position :]]
            while held < size and (piece := next(self._parts, b"")):
                parts.append(piece)
                held += len(piece)
            self.buffer, self.position = b"".join(parts), 0
        return held


@contextmanager
def reading(what: Path | str) -> Iterator[None]:
    """Turn an ``OSError`` of the block into a ``DataError`` that names what was to be read."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{what}: cannot be read ({error.strerror or error})") from error


def size_of(path: Path, give: str) -> int:
    """Return how many bytes a regular file has: a pipe or a device may never end.

    Args:
        path: the file, or a link to it.
        give: what the user should have given, for messages.

    Raises:
        DataError: there is none, or it is something else.
    """
    with reading(path):
        if path.is_file():
            return path.stat().st_size
        other = ", but a directory, pipe or device" if path.exists() else ""
    raise DataError(f"{path}: no such file{other}; give {give}")


def pieces(file: BinaryIO, where: str, limit: int, progress: Progress | None = None) -> Iterator[bytes]:
    """Yield the content of a file, decompressed if it is bz2.

    Args:
        file: an open binary file at its beginning.
        where: the file's name, for messages.
        limit: most bytes of content (after decompression) that are accepted.
        progress: told about the bytes read from the file itself.

    Yields:
        Non-empty pieces of at most 256 KiB.

    Raises:
        DataError: the file cannot be read, is truncated, is no valid bz2, or holds more than the limit.
    """
    raw = _read(file, where, progress)
    first = next(raw, b"")
    content = _inflate(first, raw, where, limit) if first.startswith(b"BZh") else _chain(first, raw)
    total = 0
    for piece in content:
        total += len(piece)
        if total > limit:
            raise DataError(f"{where}: holds more than {limit} bytes when decompressed, which no such file needs")
        if piece:
            yield piece


def _read(file: BinaryIO, where: str, progress: Progress | None) -> Iterator[bytes]:
    while True:
        with reading(where):
            data = file.read(PIECE)
        if not data:
            return
        if progress is not None:
            progress(len(data))
        yield data


def _chain(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


def _inflate(first: bytes, rest: Iterator[bytes], where: str, limit: int) -> Iterator[bytes]:
    # BZ2Decompressor rather than BZ2File: it bounds what one step may produce and does not overlook
    # bytes after the end of the compressed stream.
    decoder = bz2.BZ2Decompressor()
    streams = 1
    for block in _chain(first, rest):
        data = block
        while data:
            if decoder.eof:  # one file may be several streams in a row, as parallel compressors write it
                decoder = bz2.BZ2Decompressor()
                streams += 1  # which costs time, be the stream empty: a compressor's have some 100 kB
                if streams > max(16, limit // STREAM):
                    raise DataError(f"{where}: is of more than {streams - 1} bz2 streams, which no such file needs")
            yield _step(decoder, data, where)
            while not decoder.eof and not decoder.needs_input:
                yield _step(decoder, b"", where)
            data = decoder.unused_data if decoder.eof else b""
    if not decoder.eof:
        raise DataError(f"{where}: the bz2 data ends too early; the file is truncated, fetch it again")


def _step(decoder: bz2.BZ2Decompressor, data: bytes, where: str) -> bytes:
    try:
        return decoder.decompress(data, PIECE)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{where}: the bz2 data is damaged, or followed by foreign bytes; fetch the file again"
        ) from error
