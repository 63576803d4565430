"""The columns of a table as an Arrow schema, and the Parquet files that carry them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from zcpipe.errors import DataError
from zcpipe.scoring.columns import Column

SCHEMA_VERSION = 1
STATUSES = ("ok", "partial", "error", "timeout", "memory")
EVERYTHING = "*"  # in failures, in place of a proxy: what a process died of costs all proxies of a row
RETRIED = ("error", "timeout", "memory")  # what another try may mend

_FAILURE = pa.struct(
    [
        pa.field("proxy", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
    ]
)
_LEADING = (
    pa.field("index", pa.int64(), nullable=False),
    pa.field("arch", pa.string(), nullable=False),
    pa.field("key", pa.string(), nullable=False),
    pa.field("space", pa.string(), nullable=False),
)
_TRAILING = (
    pa.field("seconds", pa.float64(), nullable=False, metadata={"unit": "s"}),
    pa.field("status", pa.string(), nullable=False),
    pa.field("failures", pa.list_(_FAILURE), nullable=False),
)
_TYPES = {
    "proxy": pa.float64(),
    "count": pa.int64(),
    "statistic": pa.list_(pa.float32()),
}
_FIELD_METADATA = ("kind", "unit", "direction", "scope", "paper")


@dataclass(frozen=True)
class Header:
    """What all files of one table share.

    ``spec`` is the record of the run that made the table, ``identity`` the part of it that may never change.
    """

    columns: tuple[Column, ...]
    spec: Mapping[str, Any]
    identity: Mapping[str, Any]

    @cached_property
    def schema(self) -> pa.Schema:
        """The Arrow schema without any file's own metadata.

        With repeats a proxy is the mean over them, followed by the column of its standard deviation.
        """
        fields = []
        for column in self.columns:
            fields.append(_field(column))
            if column.kind == "proxy" and self.identity["recipe"]["repeats"] > 1:
                deviation = {"kind": "deviation", "unit": column.unit, "direction": "none"}
                fields.append(pa.field(f"{column.name}_sd", pa.float64(), metadata=deviation))
        return pa.schema([*_LEADING, *fields, *_TRAILING])

    def file_schema(self, **own: object) -> pa.Schema:
        """Return the schema with the table's metadata and a file's ``own``, all of it JSON text under ``zcpipe.``."""
        metadata = {
            "schema_version": SCHEMA_VERSION,
            "package_version": package_version(),
            "spec": self.spec,
            "identity": self.identity,
            "slots": {column.name: column.slots for column in self.columns if column.slots},
            **own,
        }
        return self.schema.with_metadata({f"zcpipe.{name}": canonical(value) for name, value in metadata.items()})

    def content_hash(self, indices: NDArray[np.int64]) -> str:
        """Name the rows that a file holds: the same rows of the same table have the same name."""
        names = [column.name for column in self.columns]
        digest = hashlib.blake2b(canonical([self.identity, names]).encode(), digest_size=8)
        digest.update(np.ascontiguousarray(indices, "<i8").tobytes())
        return digest.hexdigest()


def canonical(value: object) -> str:
    """Return the one JSON text of a value: what is equal has equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def package_version() -> str:
    """Return the version of the installed package ("unknown" when run from sources that were never installed)."""
    try:
        return version("zcpipe")
    except PackageNotFoundError:
        return "unknown"


def read_metadata(schema: pa.Schema, origin: object) -> dict[str, Any]:
    """Return the ``zcpipe.`` metadata of a file's schema, decoded.

    Raises:
        DataError: the file is not part of any table, or of one from a later zcpipe.
    """
    raw: Mapping[bytes, bytes] = schema.metadata or {}
    try:
        own = {key.decode()[7:]: json.loads(value) for key, value in raw.items() if key.startswith(b"zcpipe.")}
    except ValueError as error:
        raise DataError(f"{origin} has unreadable metadata ({error}); move it out of the table") from error
    if not {"schema_version", "spec", "identity", "slots"} <= own.keys():
        raise DataError(f"{origin} was not written by zcpipe; move it out of the table")
    if own["schema_version"] > SCHEMA_VERSION:
        raise DataError(
            f"{origin} has table format {own['schema_version']}, but this zcpipe reads up to {SCHEMA_VERSION}; "
            "upgrade zcpipe"
        )
    return own


def read_header(schema: pa.Schema, origin: object) -> Header:
    """Rebuild the header from the schema of any of the table's files."""
    metadata = read_metadata(schema, origin)
    columns: list[Column] = []
    for field in schema:
        if (field.metadata or {}).get(b"kind", b"").decode() in _TYPES:
            described = {name: field.metadata[name.encode()].decode() for name in _FIELD_METADATA}
            columns.append(Column(name=field.name, slots=tuple(metadata["slots"].get(field.name, ())), **described))
    return Header(tuple(columns), metadata["spec"], metadata["identity"])


def encode(table: pa.Table) -> memoryview:
    """Return the bytes of a Parquet file: zstd, floats split by byte, dictionaries for texts only."""
    sink = pa.BufferOutputStream()
    leaves = list(_float_leaves(table.schema))
    pq.write_table(
        table,
        sink,
        compression="zstd",
        compression_level=1,
        use_dictionary=list(_text_leaves(table.schema)),
        column_encoding=dict.fromkeys(leaves, "BYTE_STREAM_SPLIT"),
        write_page_checksum=True,
    )
    return memoryview(sink.getvalue())


def encode_empty(schema: pa.Schema) -> memoryview:
    """Return a Parquet file that is schema and metadata alone, which every reader takes for zero rows."""
    sink = pa.BufferOutputStream()
    pq.write_metadata(schema, sink)
    return memoryview(sink.getvalue())


def to_arrow(rows: Sequence[Mapping[str, object]], schema: pa.Schema) -> pa.Table:
    """Make a table of row mappings, in their order; what a row lacks is null."""
    return pa.Table.from_pylist(rows, schema=schema)


def count_retried(rows: pa.Table) -> int:
    """Count the rows whose status says that another try may mend them."""
    count: int = pc.sum(pc.is_in(rows["status"], pa.array(RETRIED)), min_count=0).as_py()
    return count


def in_order(rows: pa.Table) -> pa.Table:
    """Return rows sorted by index and in one piece: what is equal has equal files."""
    return rows.take(np.argsort(rows["index"].to_numpy(), kind="stable")).combine_chunks()


def _field(column: Column) -> pa.Field:
    metadata = {name: getattr(column, name) for name in _FIELD_METADATA}
    return pa.field(column.name, _TYPES[column.kind], metadata=metadata)


def _float_leaves(schema: pa.Schema) -> Iterable[str]:
    """Yield the Parquet paths of all float leaves; for a list the encoding is only taken by its leaf's path."""
    for field in schema:
        if pa.types.is_floating(field.type):
            yield field.name
        elif pa.types.is_list(field.type) and pa.types.is_floating(field.type.value_type):
            yield f"{field.name}.list.element"


def _text_leaves(schema: pa.Schema) -> Iterable[str]:
    for field in schema:
        if pa.types.is_string(field.type):
            yield field.name
        elif pa.types.is_list(field.type) and pa.types.is_struct(field.type.value_type):
            yield from (f"{field.name}.list.element.{part.name}" for part in field.type.value_type)
