"""Bytes of a benchmark file: plain or bz2, in pieces, counted against a limit, every damage a DataError."""

from __future__ import annotations

import bz2
from collections.abc import Callable, Iterator
from typing import BinaryIO

from zcpipe.errors import DataError

PIECE = 1 << 18

Progress = Callable[[int], None]
"""Told the number of bytes of the file that were read since it was last told."""


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
    content = _inflate(first, raw, where) if first.startswith(b"BZh") else _chain(first, raw)
    total = 0
    for piece in content:
        total += len(piece)
        if total > limit:
            raise DataError(f"{where}: holds more than {limit} bytes when decompressed, which no such file needs")
        if piece:
            yield piece


def _read(file: BinaryIO, where: str, progress: Progress | None) -> Iterator[bytes]:
    while True:
        try:
            data = file.read(PIECE)
        except OSError as error:
            raise DataError(f"{where}: cannot be read ({error.strerror or error})") from error
        if not data:
            return
        if progress is not None:
            progress(len(data))
        yield data


def _chain(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


def _inflate(first: bytes, rest: Iterator[bytes], where: str) -> Iterator[bytes]:
    # BZ2Decompressor rather than BZ2File: it bounds what one step may produce and does not overlook
    # bytes after the end of the compressed stream.
    decoder = bz2.BZ2Decompressor()
    for block in _chain(first, rest):
        data = block
        while data:
            if decoder.eof:  # one file may be several streams in a row, as parallel compressors write it
                decoder = bz2.BZ2Decompressor()
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
