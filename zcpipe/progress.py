"""Progress of long reads and writes on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)


@contextmanager
def bytes_read(title: str) -> Iterator[Callable[[int, int], None]]:
    """Show how much of some files is read; pass what this yields (bytes done, bytes in all) to the reader.

    On a terminal a bar, elsewhere nothing.
    """
    with _bar(title, DownloadColumn()) as update:
        yield update


@contextmanager
def rows_done(title: str) -> Iterator[Callable[[int, int], None]]:
    """Show how many rows of a table are done; otherwise as `bytes_read`."""
    with _bar(title, MofNCompleteColumn()) as update:
        yield update


@contextmanager
def networks_done(title: str) -> Iterator[Callable[[int, int], None]]:
    """Show how many networks are done; otherwise as `bytes_read`."""
    with _bar(title, MofNCompleteColumn()) as update:
        yield update


@contextmanager
def trainings_done(title: str) -> Iterator[Callable[[int, int], None]]:
    """Show how many trainings are done; otherwise as `bytes_read`."""
    with _bar(title, MofNCompleteColumn()) as update:
        yield update


@contextmanager
def _bar(title: str, amount: ProgressColumn) -> Iterator[Callable[[int, int], None]]:
    console = Console(stderr=True)
    columns = (TextColumn(title), BarColumn(), amount, TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
