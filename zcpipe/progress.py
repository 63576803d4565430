"""Progress of long reads and writes on standard error."""

from __future__ import annotations

import time
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

from zcpipe.signals import require_going_on, terminable

LINE_SECONDS = 30.0


@contextmanager
def bytes_read(title: str) -> Iterator[Callable[[int, int], None]]:
    """Show how much of some files is read; pass what this yields (bytes done, bytes in all) to the reader.

    On a terminal a bar, elsewhere a line every half minute.
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
def candidates_done(title: str) -> Iterator[Callable[[int, int], None]]:
    """Show how many candidates of a search are scored; otherwise as `bytes_read`."""
    with _bar(title, MofNCompleteColumn()) as update:
        yield update


@contextmanager
def resamples_done(title: str) -> Iterator[Callable[[int, int], None]]:
    """Show how many resamples are done; otherwise as `bytes_read`."""
    with _bar(title, MofNCompleteColumn()) as update:
        yield update


@contextmanager
def _bar(title: str, amount: ProgressColumn) -> Iterator[Callable[[int, int], None]]:
    console = Console(stderr=True)
    if not console.is_terminal:
        with terminable():
            yield _going_on(_Lines(console, title))
        return
    columns = (TextColumn(title), BarColumn(), amount, TimeRemainingColumn())
    with terminable(), Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=None)
        yield _going_on(lambda done, total: bar.update(task, completed=done, total=total))


def _going_on(update: Callable[[int, int], None]) -> Callable[[int, int], None]:
    """Return what shows progress, unless a signal has asked for the end."""

    def tell(done: int, total: int) -> None:
        if done < total:  # what is done is done
            require_going_on()
        update(done, total)

    return tell


class _Lines:
    """Says now and then how much is done."""

    def __init__(self, console: Console, title: str) -> None:
        self._console = console
        self._title = title
        self._shown = time.monotonic()
        self._since: tuple[float, int] | None = None  # when what was done first: before that all was made ready

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        began, had = self._since = self._since or (now, done)
        if now - self._shown < LINE_SECONDS or not (done and total):
            return
        self._shown = now
        left = "" if done == had else f", {(now - began) / (done - had) * (total - done):.0f} s left"
        self._console.print(f"{self._title}: {done / total:.0%}{left}", soft_wrap=True, highlight=False)
