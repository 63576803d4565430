"""What a benchmark's pickle may name, each with a harmless stand-in: ordered dicts and plain numpy numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


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
        if code not in self._PLAIN or align not in (False, 0) or copy not in (False, 0, True, 1):
            raise Forbidden(f"a numpy dtype {shown(code)}; only plain numbers are read")
        self.code = str(code)
        self.order: str | None = None

    def set_state(self, state: object) -> None:
        """Take the byte order; every other part of the state must be that of a plain number."""
        if not (isinstance(state, tuple) and len(state) == 8 and isinstance(state[1], str)):
            raise Forbidden("a numpy dtype with a foreign state")
        version, order, *rest = state
        if version != 3 or order not in ("<", ">", "|") or rest != [None, None, None, -1, -1, 0]:
            raise Forbidden("a numpy dtype that is not a plain number")
        self.order = order


def numpy_scalar(dtype: object, data: object) -> bool | int | float:
    """Turn the bytes of one numpy scalar into a Python number."""
    if not isinstance(dtype, DType) or dtype.order is None or not isinstance(data, bytes):
        raise Forbidden("a numpy scalar that is not a plain number")
    plain = np.dtype(dtype.order + dtype.code)
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
