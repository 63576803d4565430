"""Progress of a run on standard error: a bar on a terminal, a line every half minute elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from zcpipe.progress import LINE_SECONDS
from zcpipe.run.events import Drawn, Event, Joined, Left, Planned, Scored, Warned


@contextmanager
def show_progress(*, quiet: bool = False, console: Console | None = None) -> Iterator[Callable[[Event], None]]:
    """Show a run as it goes; pass what this yields to ``run`` as ``on_event``.

    Args:
        quiet: show warnings only.
        console: where to, by default standard error.
    """
    console = console or Console(stderr=True)
    if quiet:
        yield _Quiet(console)
    elif console.is_terminal:
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[failed]}"),
            TextColumn("{task.fields[places]}"),
            console=console,
        ) as bar:
            yield _Bar(console, bar)
    else:
        yield _Lines(console)


class _Quiet:
    def __init__(self, console: Console) -> None:
        self._console = console

    def __call__(self, event: Event) -> None:
        if isinstance(event, Warned):
            self._console.print(f"warning: {event.message}", style="yellow", soft_wrap=True, markup=False)


class _Places(_Quiet):
    """Knows where a run computes, if that is on nodes."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._actors: dict[str, int] = {}

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        if isinstance(event, Joined):
            self._actors[event.node] = event.actors
        elif isinstance(event, Left):
            self._actors.pop(event.node, None)
            self._console.print(
                f"node {event.node} is gone: {event.reason}", style="yellow", soft_wrap=True, markup=False
            )

    @property
    def places(self) -> str:
        """Actors and nodes, as text."""
        return f"{sum(self._actors.values())} actors on {len(self._actors)} nodes" if self._actors else ""


class _Bar(_Places):
    def __init__(self, console: Console, bar: Progress) -> None:
        super().__init__(console)
        self._bar = bar
        self._task = bar.add_task("scoring", total=None, failed="", places="")
        self._failed = 0

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        self._bar.update(self._task, places=self.places)
        if isinstance(event, Drawn):
            self._bar.update(self._task, description="drawing", total=event.total, completed=event.done)
        elif isinstance(event, Planned):
            self._bar.reset(self._task, description="scoring", total=event.rows, completed=event.present)
        elif isinstance(event, Scored):
            self._failed += event.failed
            shown = f"[red]{self._failed} failed" if self._failed else ""
            self._bar.update(self._task, advance=event.rows, failed=shown)


class _Rate(ProgressColumn):
    """Architectures per second of this run, lately."""

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.1f} archs/s", style="cyan")


class _Lines(_Places):
    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._rows = self._done = self._new = self._failed = 0
        self._started = self._shown = time.monotonic()

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        if isinstance(event, Drawn):
            if time.monotonic() - self._shown >= LINE_SECONDS:
                self._shown = time.monotonic()
                text = f"{event.done}/{event.total} architectures drawn"
                self._console.print(text, soft_wrap=True, highlight=False)
        elif isinstance(event, Planned):
            self._started = time.monotonic()
            self._rows, self._done = event.rows, event.present
        elif isinstance(event, Scored):
            self._done += event.rows
            self._new += event.rows
            self._failed += event.failed
            if time.monotonic() - self._shown >= LINE_SECONDS:
                self._show()

    def _show(self) -> None:
        self._shown = time.monotonic()
        rate = self._new / (self._shown - self._started)
        left = (self._rows - self._done) / rate
        text = f"{self._done}/{self._rows} architectures, {rate:.1f} archs/s, {left:.0f} s left, {self._failed} failed"
        if self.places:
            text += f", {self.places}"
        self._console.print(text, soft_wrap=True, highlight=False)
