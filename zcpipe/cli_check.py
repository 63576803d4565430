"""The command that checks a space; a part of the command line in `zcpipe.cli`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from zcpipe.cli_table import Json
from zcpipe.errors import DataError
from zcpipe.printing import print_json

EXAMPLES = (
    "Examples:\n\nzcpipe spaces check nasbench201\n\n"
    "zcpipe spaces check nds/darts --sample 100 --dataset imagenet --json"
)


def check(
    space: Annotated[str, typer.Argument(metavar="SPACE", help="An installed space: see zcpipe spaces.")],
    sample: Annotated[int, typer.Option(help="How many architectures to draw.")] = 20,
    dataset: Annotated[
        str | None, typer.Option(help="For which networks are built. (default: the space's first)")
    ] = None,
    resolution: Annotated[
        int | None,
        typer.Option(
            help="Side of the images on which functions are compared. (default: the data set's own, 64 at most)"
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check on random architectures and their neighbours that a space keeps its contract, before a long run.

    Texts, hashes, draws, positions, moves, counts, slots and networks; choices, cells, layers and published FLOPs where
    it offers them; and that what shares a key computes the same function. Exit code 4 where any problem is found; notes
    are not problems.
    """
    from zcpipe.progress import networks_done
    from zcpipe.scoring.space_check import check_space
    from zcpipe.spaces import get_space

    chosen = get_space(space)
    with networks_done(f"checking {space}") as progress:
        found = check_space(chosen, sample, dataset, resolution, progress)
    if as_json:
        print_json(asdict(found))
    else:
        for line in found.lines():
            typer.echo(line)
    if found.problems:
        raise typer.Exit(DataError.exit_code)
