"""Where something new may be written: where nothing is yet, and not inside a table.

Readers take a directory with all that is below it (polars, DuckDB, Hugging Face's datasets, `zcpipe.table.open_table`
its Parquet files), so what lies in a table is taken for its rows, and moves and goes with it.
"""

from __future__ import annotations

import os
from pathlib import Path

from zcpipe.errors import DataError
from zcpipe.table.files import disk_errors, names
from zcpipe.table.groups import companion
from zcpipe.table.place import Place
from zcpipe.table.store import HEADER


def require_outside(place: Place) -> None:
    """Refuse a place inside a table, or among the columns that joined one.

    In a store this is not looked for: who may write below a prefix often may not look above it.

    Raises:
        DataError: the place is in a table, which is named.
    """
    if not isinstance(place, Path):
        return
    for directory in Path(os.path.realpath(place)).parents:
        table = directory.with_suffix("") if directory.suffix == ".columns" else directory
        # Of what may not be looked at it is not known, and no reason to refuse.
        if os.access(table / HEADER, os.F_OK):
            raise DataError(
                f"{place} lies in the table {table}, of which readers would take it for a part; choose another place"
            )


def require_nothing(out: Place) -> None:
    """Refuse a place for a new table unless there is nothing, nor columns of a table that is gone.

    Raises:
        DataError: there is something, it lies in a table, or it cannot be known.
    """
    require_outside(out)
    for place in (out, companion(out)):
        there = sorted(names(place))
        if there:
            raise DataError(
                f"{place} is not empty (it holds {there[0]}) and nothing is overwritten; choose another --out"
            )


def require_new(path: Path) -> None:
    """Refuse a place for a new file before the work, which may take long; writing decides.

    Raises:
        DataError: something is there, it lies in a table, or its directory is not there or cannot be written to.
    """
    if os.path.lexists(path):
        raise DataError(f"{path}: exists already and is not overwritten; give another name or remove it")
    with disk_errors("write", path):
        if not path.parent.is_dir():
            raise DataError(f"{path}: there is no directory {path.parent}; make it first")
    if not os.access(path.parent, os.W_OK):
        raise DataError(f"{path}: the directory {path.parent} is not writable; choose another")
    require_outside(path)
