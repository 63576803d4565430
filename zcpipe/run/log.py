"""The log of a run: what happens, a JSON object a line, for whoever looks into it later."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from zcpipe.run.events import Event
from zcpipe.table.files import disk_errors
from zcpipe.table.new import require_outside


@contextmanager
def log_events(path: Path | None) -> Iterator[Callable[[Event], None]]:
    """Append events to a file; pass what this yields to ``run`` as ``on_event``.

    Each line has ``time`` (UTC, ISO 8601), ``pid``, ``event`` (its kind, in lower case) and the fields of the event.
    Where the file takes no more, as on a full disk, that is said once on standard error and the run goes on without it;
    half a line that it took is a line of its own when the next run goes on.

    Args:
        path: the file, made if there is none; nothing is written where this is None.

    Raises:
        DataError: it cannot be opened, or lies in a table.
    """
    if path is None:
        yield lambda event: None
        return
    require_outside(path)
    with disk_errors("write", path, "name a file that can be written with --events"):
        between = b"\n" if _is_torn(path) else b""
        file = path.open("ab", buffering=0)  # nothing is left to be written when it is closed
    with file:
        broken = False

        def log(event: Event) -> None:
            nonlocal broken, between
            if broken:
                return
            what = {"time": datetime.now(UTC).isoformat(), "pid": os.getpid(), "event": type(event).__name__.lower()}
            try:
                file.write(between + json.dumps({**what, **asdict(event)}, default=str).encode() + b"\n")
                between = b""
            except OSError as error:  # rows are worth more than the log of how they came
                broken = True
                reason = (error.strerror or str(error)).lower()
                print(f"warning: cannot write {path}: {reason}; the run goes on and logs no more", file=sys.stderr)

        yield log


def _is_torn(path: Path) -> bool:
    """Whether a file ends within a line."""
    if not path.is_file() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"
