"""What the command line's parser finds wrong, in one line like every other error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from zcpipe.errors import UsageError

_ParserError: Any = typer.BadParameter.__base__  # of all that the parser raises, wherever typer keeps it


class Commands(TyperGroup):
    """The group of all commands; parse errors of any of them are our own."""

    def make_context(self, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - the parser's own
        """Parse what comes before the command."""
        with _in_one_line():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401
        """Parse the rest and run the command."""
        with _in_one_line():
            return super().invoke(ctx)


@contextmanager
def _in_one_line() -> Iterator[None]:
    try:
        yield
    except _ParserError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # the help itself
            raise
        said = " ".join(error.format_message().split()).rstrip(".")
        hint = "" if error.ctx is None else f"; see {error.ctx.command_path} -h"
        raise UsageError(f"{said[:1].lower()}{said[1:]}{hint}") from None
