"""What a reader of benchmark files is, and the file that what it read ends in."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from zcpipe.declared import bad_fields, bad_name, bad_text
from zcpipe.table.files import publish
from zcpipe.table.new import require_new

Progress = Callable[[int, int], None]
"""Told how much is done and how much there is in all (bytes of the input files)."""

Read = Callable[[Path | str, Progress | None], pa.Table]


@dataclass(frozen=True)
class Reader:
    """A reader of one benchmark's official files.

    Attributes:
        name: what users call it.
        title: one line for a listing.
        read: turns a path into a table with a text column ``arch`` and one row per architecture; accuracy columns carry
            ``dataset``, ``split``, ``epochs``, ``unit`` and ``direction`` in their field metadata.
    """

    name: str
    title: str
    read: Read

    def import_file(self, path: Path | str, out: Path | str, progress: Progress | None = None) -> pa.Table:
        """Read official files and write them as one Parquet file.

        Args:
            path: the benchmark's file or directory.
            out: the Parquet file to make; nothing is ever overwritten.
            progress: told (bytes read so far, bytes in all).

        Returns:
            The table that was written.

        Raises:
            DataError: the input is damaged or foreign, or the output exists or cannot be written.
        """
        target = Path(out)
        require_new(target)  # before the work, which may take minutes; `publish` decides
        table = self.read(path, progress)
        file = pa.BufferOutputStream()
        pq.write_table(table, file, compression="zstd")
        publish(target, memoryview(file.getvalue()), exclusive=True)
        return table


def stored_name(path: Path) -> str:
    """Return a file's name as a text that any file can hold: on disk it may be any bytes."""
    return os.fsencode(path.name).decode(errors="backslashreplace")


def faults(reader: Any) -> Iterator[str]:  # noqa: ANN401
    """Find fault with a reader that an installed package offers, as `zcpipe.registry.Check` does."""
    if not isinstance(reader, Reader):
        yield "a reader must be a zcpipe.truth.Reader"
        return
    yield from bad_name(reader.name)
    yield from bad_fields(reader)
    yield from bad_text(reader, "title")
