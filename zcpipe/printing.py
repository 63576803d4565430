"""How the command line prints: plans, records and numbers as JSON, as a table on a terminal, or as lines for a pipe."""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

_SHORT = 20  # characters of a cell that is not wrapped
_LONG = 16  # into which one is wrapped at the narrowest
_GAP = "  "  # between columns
_REASONS = 3  # of failures that are printed


def print_plan(plan: Mapping[str, Any]) -> None:
    """Print what a run would do, as `zcpipe.run.describe` says it."""
    spec, todo = plan["spec"], plan["todo"]
    typer.echo(f"space            {spec['space']} on {spec['dataset']}, seed {spec['seed']}")
    typer.echo(f"proxies          {', '.join(spec['proxies'])}")
    typer.echo(f"batch            {spec['batch_size']} x {spec['inputs']}, {spec['repeats']} repeat(s)")
    if spec["inputs_content"]:
        typer.echo(f"content          {plan['identity']['recipe']['inputs']}")
    typer.echo(f"recipe           {spec['protocol']} protocol on {spec['device']}")
    typer.echo(f"out              {plan['out']} ({'exists' if plan['exists'] else 'new'})")
    typer.echo(f"architectures    {_amount(plan)}")
    typer.echo(f"done             {plan['done']}")
    typer.echo(f"to do            {_amount(todo)}")
    if plan["exists"]:
        for group in plan["groups"]:
            what = "rows for" if group["exists"] else "new columns:"
            typer.echo(f"  {group['todo']['architectures']:14} {what} {', '.join(group['proxies'])}")
    typer.echo(f"columns          {', '.join(plan['schema'])}")
    for one in itertools.chain.from_iterable(group["passes"] for group in plan["groups"]):
        recipe = f"init {one['init']}, inputs {one['inputs']}, norm {one['norm']}, {one['network']} network"
        typer.echo(f"pass             {one['pass']}: {one['runs']}; {recipe}")
        typer.echo(f"  feeds          {', '.join(one['proxies'])}")


def _amount(work: Mapping[str, Any]) -> str:
    """Say how much work there is; how many classes draws have only the scoring finds out."""
    classes = "" if work["classes"] is None else f"{work['classes']} classes, "
    return f"{work['architectures']} in {classes}{work['shards']} shards"


def print_records(records: Sequence[dict[str, Any]], as_json: bool, short: Sequence[str] | None = None) -> None:
    """Print records as JSON or as a table; on a terminal one record whole, of several the ``short`` columns."""
    if as_json:
        print_json(records)
        return
    names = list(records[0]) if records else []
    if sys.stdout.isatty() and short is not None:
        if len(records) == 1:
            print_grid(("", ""), [[name, _text(value)] for name, value in records[0].items()])
            return
        names = list(short)
        typer.echo("all that is known: give one name, or --json", err=True)
    print_grid(names, [[_text(record[name]) for name in names] for record in records])


def print_grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table that fits a terminal, or plain tab-separated lines where stdout is no terminal.

    No cell is cut. Where a terminal is too narrow, long texts wrap or go below their rows, and columns that do not fit
    beside the others follow in another block, behind the first column once more.
    """
    if not sys.stdout.isatty():
        for cells in (header, *rows):
            typer.echo("\t".join(cells))
        return
    if not rows:
        typer.echo("nothing to show", err=True)
        return
    console = Console()
    widths = [max(map(cell_len, column)) for column in zip(header, *rows, strict=True)]
    if _total(min(width, _LONG) if width > _SHORT else width for width in widths) > console.width:
        _print_blocks(header, rows, widths, console)
        return
    grid = Grid(box=None, pad_edge=False, header_style="bold", show_header=any(header))
    for name, width in zip(header, widths, strict=True):
        grid.add_column(name, overflow="fold", no_wrap=width <= _SHORT)  # long texts wrap, so that short ones need not
    for cells in rows:
        grid.add_row(*map(Text, cells))
    console.print(grid)


def _print_blocks(
    header: Sequence[str], rows: Sequence[Sequence[str]], widths: Sequence[int], console: Console
) -> None:
    """Print the first column and what fits beside it, its long cells below each row, and then the other columns."""
    blocks = [[0]]
    for number, width in enumerate(widths):
        if number == 0 or width > _SHORT:
            continue
        if len(blocks[-1]) > 1 and _total(widths[column] for column in (*blocks[-1], number)) > console.width:
            blocks.append([0])
        blocks[-1].append(number)
    below = [number for number, width in enumerate(widths) if number and width > _SHORT]
    for place, block in enumerate(blocks):
        if place:
            console.print()
        for cells, style in ((header, "bold"), *((cells, "") for cells in rows)):
            line = _GAP.join(cells[number] + " " * (widths[number] - cell_len(cells[number])) for number in block)
            console.print(Text(line.rstrip(), style), soft_wrap=True)
            for number in below if not place and cells is not header else ():
                named = f"{header[number]}: {cells[number]}" if header[number] else cells[number]
                console.print(Padding(Text(named, overflow="fold"), (0, 0, 0, len(_GAP))))


def _total(widths: Iterable[int]) -> int:
    """Return how wide columns are together, with the gaps between them."""
    return sum(width + len(_GAP) for width in widths) - len(_GAP)


def _text(value: object) -> str:
    if value is None or value == "":
        return "-"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def number(value: float) -> str:
    """Return a number as a table shows it."""
    return f"{value:.6g}"


def finite(record: Mapping[str, Any]) -> dict[str, Any]:
    """Make a record that strict JSON can hold, all that is in it as well: NaN is null, infinities are text."""
    return {name: _strict(value) for name, value in record.items()}


def _strict(value: Any) -> Any:  # noqa: ANN401 - whatever JSON can hold
    if isinstance(value, Mapping):
        return finite(value)
    if isinstance(value, list | tuple):
        return [_strict(part) for part in value]
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return None if math.isnan(value) else str(value)


def print_json(value: object) -> None:
    """Print one line of strict JSON."""
    typer.echo(json.dumps(value, allow_nan=False))


def counted(count: int, noun: str) -> str:
    """Return a number and what it counts, as in "1 row" and "2 rows"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def reasons_of(reasons: Mapping[str, int], what: str = "row", where: str = "in the column failures") -> list[str]:
    """Return the most frequent reasons of failures as lines, and where the others are.

    Args:
        reasons: how many there are of each, the most frequent first.
        what: failed.
        where: all reasons are.
    """
    most = list(itertools.islice(reasons.items(), _REASONS))
    lines = [f"{counted(count, what)}: {reason}" for reason, count in most]
    left = len(reasons) - len(most)
    return [*lines, f"{counted(left, 'more reason')} {where}"] if left else lines
