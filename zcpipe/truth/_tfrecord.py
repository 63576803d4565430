"""TFRecord files without TensorFlow: frames of a length, a payload and checksums of both."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from zcpipe.errors import DataError
from zcpipe.untrusted.stream import reading

PIECE = 1 << 20  # bytes that are read, framed and checked together
MOST = 1 << 16  # bytes of a payload

_HEAD = struct.Struct("<QI")  # the payload's length and the checksum of these 8 bytes
_FOOT = 4  # bytes of the payload's checksum
_POLYNOMIAL = 0x82F63B78  # Castagnoli's, reflected


def is_tfrecord(head: bytes) -> bool:
    """Whether a file that begins so may be one: its first payload would be short enough."""
    return len(head) >= 8 and int.from_bytes(head[:8], "little") <= MOST


def records(
    file: BinaryIO, where: str, progress: Callable[[int], None] | None = None
) -> Iterator[tuple[int, list[bytes]]]:
    """Read the payloads of a TFRecord file.

    Args:
        file: an open binary file at its beginning.
        where: the file's name, for messages.
        progress: told the number of bytes that were read since it was last told.

    Yields:
        The number of a record, from 0, and the payloads from there on: about a megabyte at a time, checked.

    Raises:
        DataError: the file cannot be read, is truncated or damaged, or a payload has more than 64 KiB; the message
            names the record.
    """
    number, held = 0, b""
    while True:
        with reading(where):
            piece = file.read(PIECE)
        if not piece:
            break
        if progress is not None:
            progress(len(piece))
        held += piece
        starts, lengths, end, too_long = _frames(held)
        damaged = _damaged(np.frombuffer(held, np.uint8), starts, lengths)
        if damaged is not None:
            raise DataError(
                f"{where}: record {number + damaged} is damaged (its checksum differs); fetch the file again"
            )
        if len(starts):
            yield (
                number,
                [held[start : start + size] for start, size in zip(starts.tolist(), lengths.tolist(), strict=True)],
            )
        number += len(starts)
        if too_long:
            raise DataError(f"{where}: record {number} is of {too_long} bytes; the file is damaged or no such TFRecord")
        held = held[end:]
    if held:
        raise DataError(f"{where}: ends within record {number}; the file is truncated, fetch it again")


def masked_crc32c(
    data: NDArray[np.uint8],
    starts: NDArray[np.int64],  # [n]
    lengths: NDArray[np.int64],  # [n]
) -> NDArray[np.uint32]:
    """Compute the checksums of several stretches of ``data`` at once, byte by byte along all of them.

    Returns:
        CRC-32C of each as TFRecord writes it, rotated and moved by a constant, [n].
    """
    order = np.argsort(-lengths, kind="stable")
    at = starts[order]
    # How many stretches are longer than each position: in this order they are the first ones.
    active = np.searchsorted(-lengths[order], -np.arange(lengths.max(initial=0)), side="left").tolist()
    crc = np.full(len(at), 0xFFFFFFFF, np.uint32)
    for position, count in enumerate(active):
        part = crc[:count]
        crc[:count] = _TABLE[(part ^ data[at[:count] + position]) & 0xFF] ^ (part >> 8)
    result = np.empty_like(crc)
    result[order] = ~crc
    masked: NDArray[np.uint32] = (result >> np.uint32(15) | result << np.uint32(17)) + np.uint32(0xA282EAD8)
    return masked


def _frames(held: bytes) -> tuple[NDArray[np.int64], NDArray[np.int64], int, int]:
    """Find the whole frames: places and lengths of payloads, where the rest begins, and a length too large, or 0."""
    starts, lengths = [], []
    at, too_long = 0, 0
    while at + _HEAD.size <= len(held):
        size, _ = _HEAD.unpack_from(held, at)
        if size > MOST:
            too_long = size
            break
        if at + _HEAD.size + size + _FOOT > len(held):
            break
        starts.append(at + _HEAD.size)
        lengths.append(size)
        at += _HEAD.size + size + _FOOT
    return np.array(starts, np.int64), np.array(lengths, np.int64), at, too_long


def _damaged(data: NDArray[np.uint8], starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> int | None:
    """Return the first frame one of whose checksums differs."""
    heads = masked_crc32c(data, starts - _HEAD.size, np.full_like(starts, 8))
    wrong = (heads != _stored(data, starts - 4)) | (
        masked_crc32c(data, starts, lengths) != _stored(data, starts + lengths)
    )
    return int(np.argmax(wrong)) if wrong.any() else None


def _stored(data: NDArray[np.uint8], places: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Read a little-endian number of four bytes at each place."""
    return np.ascontiguousarray(data[places[:, None] + np.arange(4)]).view("<u4")[:, 0].astype(np.uint32)


def _make_table() -> NDArray[np.uint32]:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ np.uint32(_POLYNOMIAL), table >> 1)
    return table


_TABLE = _make_table()
