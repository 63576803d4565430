"""The commands that make tables of tables; parts of the command line in `zcpipe.cli`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from zcpipe.printing import counted

if TYPE_CHECKING:
    from zcpipe.table import Rewritten

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
TableDir = Annotated[str, typer.Argument(metavar="DIR", help="A table made by zcpipe run, or its URI.")]
_New = Annotated[str, typer.Option(help="Directory or URI of the new table; nothing is overwritten.")]
_RowsPerFile = Annotated[
    int,
    typer.Option(
        min=1, help="How many rows a file has at most; 250000 rows of 30 proxies and 6 statistics are 130 MB."
    ),
]

table_app = typer.Typer()


@table_app.command(
    epilog="Examples:\n\nzcpipe compact runs/all --out tables/all\n\nzcpipe compact s3://b/runs/all --out all"
)
def compact(directory: TableDir, out: _New, rows_per_file: _RowsPerFile = 250_000, as_json: Json = False) -> None:
    """Write a table anew in few large files; columns that joined later become columns of the table itself.

    Rows stay the same bit for bit. The old table is left as it is; zcpipe run grows the new one as it would the old.
    """
    from zcpipe import table
    from zcpipe.progress import rows_done

    with rows_done("compacting") as progress:
        made = table.compact(directory, out, rows_per_file, progress)
    _print(made, as_json)


@table_app.command(epilog="Example: zcpipe merge s3://b/first-half s3://b/second-half --out tables/all")
def merge(
    directories: Annotated[list[str], typer.Argument(metavar="DIR", help="Tables of one identity.")],
    out: _New,
    rows_per_file: _RowsPerFile = 250_000,
    as_json: Json = False,
) -> None:
    """Put tables of one identity together: rows of other ranges, other columns of the same rows.

    A row that is in several tables must be the same in all, bit for bit but for its seconds.
    """
    from zcpipe import table
    from zcpipe.progress import rows_done

    with rows_done("merging") as progress:
        made = table.merge(directories, out, rows_per_file, progress)
    _print(made, as_json)


def _print(made: Rewritten, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({**asdict(made), "path": str(made.path)}))
        return
    groups = f", {made.groups} groups of columns" if made.groups > 1 else ""
    typer.echo(
        f"{made.path}: {counted(made.rows, 'row')} in {counted(made.files, 'file')} (from {made.sources}){groups}"
    )
