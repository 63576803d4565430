"""NAS-Bench-101's ModelMetrics messages in protocol buffers' wire format, without their library."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

_DOUBLE = struct.Struct("<d")
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

EVALUATIONS = 3  # before, in the middle of and after training


class Metrics(NamedTuple):
    """What one training ended in."""

    params: int
    seconds: float
    train: float  # accuracies as fractions
    validation: float
    test: float


def model_metrics(message: bytes) -> Metrics:
    """Read a ModelMetrics message: its number of trainable parameters and its last evaluation.

    Raises:
        ValueError: this is no such message; the text says why.
    """
    evaluations: list[bytes] = []
    params: int | None = None
    for field, value in _fields(message):
        if field == 1 and isinstance(value, bytes):
            evaluations.append(value)
        elif field == 2 and isinstance(value, int):
            params = value
    if len(evaluations) != EVALUATIONS or params is None:
        raise ValueError(f"{len(evaluations)} evaluations, expected {EVALUATIONS} and a number of parameters")
    found = {field: value for field, value in _fields(evaluations[-1]) if isinstance(value, float)}
    lacking = {2, 3, 4, 5} - found.keys()
    if lacking:
        raise ValueError(f"an evaluation without field {min(lacking)}")
    return Metrics(params, found[2], found[3], found[4], found[5])


def _fields(message: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """Yield number and value of each field: integers of varints, floats of eight bytes, bytes of what has a length."""
    at, end = 0, len(message)
    while at < end:
        tag, at = _varint(message, at)
        field, kind = tag >> 3, tag & 7
        if kind == _FIXED64:
            stop = at + 8
            if stop <= end:
                yield field, _DOUBLE.unpack_from(message, at)[0]
        elif kind == _VARINT:
            value, stop = _varint(message, at)
            yield field, value
        elif kind == _BYTES:
            size, at = _varint(message, at)
            stop = at + size
            if stop <= end:
                yield field, message[at:stop]
        elif kind == _FIXED32:
            stop = at + 4
        else:
            raise ValueError(f"a field of wire type {kind}")
        if stop > end:
            raise ValueError("a field that goes beyond its message")
        at = stop


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Read a number in groups of seven bits; return it and the place behind it."""
    number = 0
    for shift in range(0, 64, 7):
        if at >= len(message):
            raise ValueError("a number that goes beyond its message")
        byte = message[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    raise ValueError("a number of more than 64 bits")
