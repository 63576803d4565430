"""Trained accuracies from any Parquet file that names architectures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from zcpipe.errors import DataError, UsageError, unknown_name
from zcpipe.rank.ranking import DIRECTIONS
from zcpipe.untrusted.stream import reading

ARCH = "arch"

NOT_FOR_RANKING = "not for ranking"
"""Field metadata of a column that orders no architectures: the reason."""

Floats = np.ndarray[tuple[int], np.dtype[np.float64]]


def read_truth(path: Path | str, target: str) -> tuple[list[str], Floats]:
    """Read one column of trained accuracies.

    Args:
        path: a Parquet file with a text column ``arch`` and the target column.
        target: the column to read.

    Returns:
        The architectures' texts and, in the same order, the target as float64 (the nearest one), NaN where it is null.

    Raises:
        UsageError: the file has no such column (the message names near ones), or one that orders no architectures.
        DataError: the file is missing, no Parquet, lacks ``arch``, names an architecture twice, or the target is not
            numeric.
    """
    place = Path(path)
    with reading(place):
        found = place.is_file()
    if not found:
        raise DataError(f"{place}: no such file; give a Parquet file with the columns {ARCH!r} and {target!r}")
    try:
        with pq.ParquetFile(place) as file:
            schema = file.schema_arrow
            _check(schema, place, target)
            table = file.read(columns=[ARCH, target])
        archs = _texts(table.column(ARCH), place)
        # Unsafe only in that integers above 2**53 are rounded to the nearest float64.
        values = pc.cast(table.column(target), pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{place}: cannot be read as Parquet ({reason:.160})") from error
    return archs, np.array(values, dtype=np.float64)  # a copy: Arrow's own memory is read-only


def align(archs: Sequence[str], truth: tuple[Sequence[str], Floats]) -> Floats:
    """Look up the truth of architectures.

    Args:
        archs: the architectures asked for, in any order, perhaps some more than once.
        truth: what ``read_truth`` gave.

    Returns:
        The value of each, NaN where the truth does not know it.

    Raises:
        DataError: the truth knows none of them.
    """
    known = dict(zip(truth[0], truth[1].tolist(), strict=True))
    if not any(arch in known for arch in archs):
        example = f" (it names {truth[0][0]!r:.100}, the table {archs[0]!r:.100})" if known and archs else ""
        raise DataError(f"the truth file knows none of the table's architectures{example}; is it of another space?")
    return np.array([known.get(arch, np.nan) for arch in archs], dtype=np.float64)


def _check(schema: pa.Schema, place: Path, target: str) -> None:
    names = schema.names
    for name in (ARCH, target):
        if names.count(name) > 1:
            raise DataError(f"{place}: has two columns named {name!r}; rename one")
    if ARCH not in names:
        raise DataError(f"{place}: has no column {ARCH!r} with the architectures' texts")
    numeric = [field.name for field in schema if _is_numeric(field.type)]
    if target not in names:
        raise unknown_name("column", target, numeric)
    if target not in numeric:
        raise DataError(f"{place}: column {target!r} is {schema.field(target).type}, not numeric")
    reason = (schema.field(target).metadata or {}).get(NOT_FOR_RANKING.encode())
    if reason is not None:
        raise UsageError(f"{place}: column {target!r} is not for ranking: {reason.decode()}")
    if not _is_text(schema.field(ARCH).type):
        raise DataError(f"{place}: column {ARCH!r} is {schema.field(ARCH).type}, not text")


def _is_numeric(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind))


def _is_text(kind: pa.DataType) -> bool:
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(inner) or pa.types.is_large_string(inner) or pa.types.is_string_view(inner))


def _texts(column: pa.ChunkedArray, place: Path) -> list[str]:
    archs: list[str] = column.to_pylist()
    seen: set[str] = set()
    for row, arch in enumerate(archs):
        if arch is None:
            raise DataError(f"{place}: column {ARCH!r} is null in row {row}")
        if arch in seen:
            raise DataError(f"{place}: names the architecture {arch!r:.120} twice; keep one row each")
        seen.add(arch)
    return archs


def direction_of(path: Path | str, target: str) -> str:
    """Return whether "higher" or "lower" values of a truth file's column are better: "higher" if it does not say.

    Raises:
        DataError: it says anything else.
    """
    metadata = pq.read_schema(path).field(target).metadata or {}
    direction = str(metadata.get(b"direction", b"higher").decode(errors="replace"))
    if direction not in DIRECTIONS:
        raise DataError(
            f"{path}: the direction of column {target!r} is {direction!r:.40}, expected {' or '.join(DIRECTIONS)}"
        )
    return direction
