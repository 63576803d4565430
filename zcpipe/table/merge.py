"""Making one table of several, as runs on several clusters leave them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from zcpipe.errors import UsageError
from zcpipe.table.place import Place, locate
from zcpipe.table.rewrite import ROWS_PER_FILE, Rewritten, rewrite


def merge(
    paths: Sequence[str | Place],
    out: str | Place,
    rows_per_file: int = ROWS_PER_FILE,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Rewritten:
    """Write the rows and columns of tables of one identity into a new table.

    Rows of the same columns come together; columns of the same rows are joined, columns of other rows become a group.
    A row that several tables have must be the same in all, bit for bit but for its seconds, and is kept once.

    Args:
        paths: the tables, at least two; the columns of the first come first.
        out: where the new one goes; there must be nothing.
        rows_per_file: how many rows a file has at most.
        progress: told how many rows are done, of how many.

    Raises:
        UsageError: fewer than two tables.

    Also raises what `zcpipe.table.rewrite.rewrite` raises.
    """
    places = [locate(path) for path in paths]
    if len(places) < 2:
        raise UsageError(f"merge needs at least two tables, got {len(places)}; zcpipe compact rewrites one")
    return rewrite(places, locate(out), rows_per_file, progress)
