"""Writing a table anew in few large files."""

from __future__ import annotations

from collections.abc import Callable

from zcpipe.table.place import Place, locate
from zcpipe.table.rewrite import ROWS_PER_FILE, Rewritten, rewrite


def compact(
    path: str | Place,
    out: str | Place,
    rows_per_file: int = ROWS_PER_FILE,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Rewritten:
    """Write the rows of a table, bit for bit, into a new one of few large files sorted by index.

    Groups of columns that have the same rows become one; a group that has other rows stays one. The new table is of the
    same identity and grows as the old one would. That one may go on growing meanwhile; what it has at the beginning is
    what is written.

    Args:
        path: the table.
        out: where the new one goes; there must be nothing.
        rows_per_file: how many rows a file has at most.
        progress: told how many rows are done, of how many.

    Raises what `zcpipe.table.rewrite.rewrite` raises.
    """
    return rewrite([locate(path)], locate(out), rows_per_file, progress, planned=True)
