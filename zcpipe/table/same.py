"""Comparing columns bit for bit: NaN equals NaN of the same bits, and 0.0 is not -0.0. Failures have no order."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from zcpipe.table.schema import canonical


def differing(left: pa.ChunkedArray, right: pa.ChunkedArray) -> NDArray[np.bool_]:  # [rows]
    """Return which rows of two columns of one type are not equal bit for bit; null equals null alone."""
    there = left.is_valid().to_numpy(), right.is_valid().to_numpy()
    differs: NDArray[np.bool_] = there[0] != there[1]
    rows = np.flatnonzero(there[0] & there[1])
    differs[rows] = _values_differ(left.take(rows), right.take(rows))
    return differs


def _values_differ(left: pa.ChunkedArray, right: pa.ChunkedArray) -> NDArray[np.bool_]:
    """Compare columns without nulls."""
    kind = left.type
    if pa.types.is_floating(kind):
        different: NDArray[np.bool_] = _bits(left) != _bits(right)
        return different
    if pa.types.is_list(kind) and pa.types.is_floating(kind.value_type):
        return _lists_differ(left, right)
    pairs = zip(left.to_pylist(), right.to_pylist(), strict=True)
    return np.fromiter((_plain(a) != _plain(b) for a, b in pairs), np.bool_, len(left))


def _plain(value: object) -> object:
    return sorted(map(canonical, value)) if isinstance(value, list) else value


def _lists_differ(left: pa.ChunkedArray, right: pa.ChunkedArray) -> NDArray[np.bool_]:
    import pyarrow.compute as pc  # slow to import, and every worker imports this package

    lengths = pc.list_value_length(left).to_numpy()
    differs: NDArray[np.bool_] = lengths != pc.list_value_length(right).to_numpy()
    rows = np.flatnonzero(~differs)
    values = (column.take(rows).combine_chunks() for column in (left, right))
    a, b = (pa.chunked_array([column.flatten()]) for column in values)
    nulls = a.is_null().to_numpy() != b.is_null().to_numpy()
    unequal = nulls | (_bits(a) != _bits(b))
    differs[np.repeat(rows, lengths[rows])[unequal]] = True
    return differs


def _bits(column: pa.ChunkedArray) -> NDArray[np.int64] | NDArray[np.int32]:
    """Return floats as the integers of the same bits, with nulls as zero."""
    values = column.fill_null(0.0).to_numpy()
    bits: NDArray[np.int64] = values.view(f"i{values.itemsize}")
    return bits
