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
from zcpipe.untrusted.stream import size_of

ARCH = "arch"

NOT_FOR_RANKING = "not for ranking"
"""Field metadata of a column that orders no architectures: the reason."""

_LONGEST = 8 << 10  # bytes of an architecture's text
_ROWS, _FEW_ROWS = 4096, 256  # read at once: texts that a dictionary has, and others
_SHARED = frozenset({"PLAIN", "PLAIN_DICTIONARY", "RLE_DICTIONARY", "RLE", "BIT_PACKED"})
"""Encodings that pyarrow can read into a dictionary."""

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
    size_of(place, f"a Parquet file with the columns {ARCH!r} and {target!r}")
    try:
        with pq.ParquetFile(place) as file:
            _check(file.schema_arrow, place, target)
            chunks = _chunks(file.metadata, place)
        # With a dictionary a text that many rows share is in memory once, however long a file makes it.
        shared = all(_SHARED.issuperset(chunk.encodings) for chunk in chunks)
        with pq.ParquetFile(place, read_dictionary=[ARCH] if shared else []) as file:
            return _rows(file, place, target, _ROWS if shared else _FEW_ROWS)
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{place}: cannot be read as Parquet ({reason:.160})") from error


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


def _chunks(metadata: pq.FileMetaData, place: Path) -> list[pq.ColumnChunkMetaData]:
    """Return what a file says of the parts of its column of texts, whose average length it may not say is too large."""
    found = []
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for chunk in map(group.column, range(group.num_columns)):
            if chunk.path_in_schema == ARCH:
                found.append(chunk)
                if chunk.total_uncompressed_size > (group.num_rows + 256) * _LONGEST:
                    raise _too_long(place)
    return found


def _rows(file: pq.ParquetFile, place: Path, target: str, at_once: int) -> tuple[list[str], Floats]:
    """Read both columns a piece at a time, such that a file which is refused for its texts never lies whole in memory.

    A text is checked before it becomes one of Python's.
    """
    archs: list[str] = []
    seen: set[str] = set()
    values = [np.empty(0)]
    for batch in file.iter_batches(at_once, columns=[ARCH, target]):
        texts = _texts(batch.column(batch.schema.get_field_index(ARCH)), place, len(archs))
        for text in texts:
            if text in seen:
                raise DataError(f"{place}: names the architecture {text!r:.120} twice; keep one row each")
            seen.add(text)
        archs += texts
        # Unsafe only in that integers above 2**53 are rounded to the nearest float64.
        found = pc.cast(batch.column(batch.schema.get_field_index(target)), pa.float64(), safe=False)
        values.append(found.to_numpy(zero_copy_only=False))
    return archs, np.concatenate(values, dtype=np.float64)


def _texts(column: pa.Array, place: Path, first: int) -> list[str]:
    """Return the texts of rows from ``first`` on."""
    if not pa.types.is_dictionary(column.type):
        column = column.cast(pa.large_string()).dictionary_encode()
    longest = pc.max(pc.binary_length(column.dictionary)).as_py()
    if longest is not None and longest > _LONGEST:
        raise _too_long(place)
    if column.null_count:
        raise DataError(f"{place}: column {ARCH!r} is null in row {first + column.is_null().index(True).as_py()}")
    indices = column.indices
    if len(indices.unique()) < len(indices):
        counts = indices.value_counts()
        again = next(entry["values"] for entry in counts.to_pylist() if entry["counts"] > 1)
        raise DataError(
            f"{place}: names the architecture {column.dictionary[again].as_py()!r:.120} twice; keep one row each"
        )
    texts: list[str] = column.dictionary.take(indices).to_pylist()
    return texts


def _too_long(place: Path) -> DataError:
    return DataError(f"{place}: column {ARCH!r} holds texts of more than {_LONGEST} bytes, which are no architectures")


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
