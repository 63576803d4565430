"""What a pickle may name, each with a harmless stand-in: ordered dicts, plain numpy numbers and arrays of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MAX_DIMENSIONS = 4


class Forbidden(Exception):  # noqa: N818 - never leaves this package: the reader turns it into a DataError
    """A file asks for something that data does not need."""


def shown(value: object) -> str:
    """Show a file's value in a message: a number, a text's beginning, or of what may be nested without end the type."""
    if type(value) in (bool, int, float, type(None)):
        return repr(value)
    return repr(value[:60])[:60] if isinstance(value, str) else f"a {type(value).__name__}"


class DType:
    """Stands for a numpy dtype in the file: one plain number type, which its state gives a byte order."""

    __slots__ = ("code", "order")

    _PLAIN = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")

    def __init__(self, code: object, align: object = False, copy: object = True) -> None:
        code = code.decode("latin-1") if isinstance(code, bytes) else code  # a text of Python 2
        if code not in self._PLAIN or align not in (False, 0) or copy not in (False, 0, True, 1):
            raise Forbidden(f"a numpy dtype {shown(code)}; only plain numbers are read")
        self.code = str(code)
        self.order: str | None = None

    def set_state(self, state: object) -> None:
        """Take the byte order; every other part of the state must be that of a plain number."""
        if not (isinstance(state, tuple) and len(state) == 8 and isinstance(state[1], str | bytes)):
            raise Forbidden("a numpy dtype with a foreign state")
        version, order, *rest = state
        order = order.decode("latin-1") if isinstance(order, bytes) else order
        if version != 3 or order not in ("<", ">", "|") or rest != [None, None, None, -1, -1, 0]:
            raise Forbidden("a numpy dtype that is not a plain number")
        self.order = order

    def plain(self) -> np.dtype[Any]:
        """Return the numpy dtype, once the byte order is known."""
        if self.order is None:
            raise Forbidden("a numpy dtype without a byte order")
        return np.dtype(self.order + self.code)


class Array:
    """Stands for a numpy array of plain numbers, which its state gives shape, type and content."""

    __slots__ = ("value",)

    def __init__(self, kind: object, shape: object, code: object) -> None:
        if getattr(kind, "make", None) is not no_array or shape != (0,) or code not in ("b", b"b"):
            raise Forbidden("a numpy array that is not made as arrays are")
        self.value: NDArray[Any] = np.empty(0, np.int8)

    def set_state(self, state: object) -> None:
        """Take shape, type and content, which must fit each other."""
        if not (isinstance(state, tuple) and len(state) == 5):
            raise Forbidden("a numpy array with a foreign state")
        version, shape, dtype, fortran, data = state
        sizes = isinstance(shape, tuple) and len(shape) <= _MAX_DIMENSIONS and all(type(n) is int for n in shape)
        if (
            version != 1
            or fortran not in (False, 0)
            or not sizes
            or type(dtype) is not DType
            or type(data) is not bytes
        ):
            raise Forbidden("a numpy array that is no block of plain numbers in C order")
        plain = dtype.plain()
        if min(shape, default=0) < 0 or len(data) != plain.itemsize * math.prod(shape):
            raise Forbidden(f"a numpy array of shape {shape!r:.60} in {len(data)} bytes")
        self.value = np.frombuffer(data, plain).reshape(shape)


def array_of(data: object, dtype: object, shape: object, order: object) -> Array:
    """Make an array from its content: how numpy writes one under protocol 5."""
    if order != "C":
        raise Forbidden("a numpy array that is no block of plain numbers in C order")
    array = Array.__new__(Array)
    array.set_state((1, shape, dtype, False, data))
    return array


def no_array(*arguments: object) -> object:
    """Stand in for ``numpy.ndarray``, which arrays are made from and nobody calls."""
    raise Forbidden("a call of numpy.ndarray")


def encoded(text: object, encoding: object) -> bytes:
    """Turn a text back into the bytes that Python 3 wrote as one under protocol 2."""
    if type(text) is not str or encoding != "latin1":
        raise Forbidden("an encoding that is not of bytes")
    return text.encode("latin-1")


def numpy_scalar(dtype: object, data: object) -> bool | int | float:
    """Turn the bytes of one numpy scalar into a Python number."""
    if not isinstance(dtype, DType) or not isinstance(data, bytes):
        raise Forbidden("a numpy scalar that is not a plain number")
    plain = dtype.plain()
    if len(data) != plain.itemsize:
        raise Forbidden(f"a numpy scalar of {len(data)} bytes where {plain.itemsize} are due")
    value = np.frombuffer(data, dtype=plain)[0].item()
    if not isinstance(value, (bool, int, float)):
        raise Forbidden("a numpy scalar that is not a plain number")
    return value


def empty_dict(*arguments: object) -> dict[Any, Any]:
    """Stand in for ``OrderedDict()``: plain dicts keep their order, and cannot carry attributes."""
    if arguments:
        raise Forbidden("an ordered dict made from arguments")
    return {}


Globals = Mapping[tuple[str, str], Callable[..., object]]

PLAIN_GLOBALS: Globals = {
    ("collections", "OrderedDict"): empty_dict,
    ("numpy", "dtype"): DType,
    ("numpy.core.multiarray", "scalar"): numpy_scalar,  # as numpy 1 writes it
    ("numpy._core.multiarray", "scalar"): numpy_scalar,  # as numpy 2 writes it
}

ARRAY_GLOBALS: Globals = {
    **PLAIN_GLOBALS,
    ("numpy", "ndarray"): no_array,
    ("numpy.core.multiarray", "_reconstruct"): Array,
    ("numpy._core.multiarray", "_reconstruct"): Array,
    ("numpy.core.numeric", "_frombuffer"): array_of,
    ("numpy._core.numeric", "_frombuffer"): array_of,
    ("_codecs", "encode"): encoded,
}
