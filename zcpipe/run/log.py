"""The log of a run: what happens, a JSON object a line, for whoever looks into it later."""

from __future__ import annotations

import json
import os
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

    Args:
        path: the file, made if there is none; nothing is written where this is None.

    Raises:
        DataError: it cannot be opened or written, or lies in a table.
    """
    if path is None:
        yield lambda event: None
        return
    require_outside(path)
    mend = "name a file that can be written with --events"
    with disk_errors("write", path, mend):
        file = path.open("ab", buffering=0)  # nothing is left to be written when it is closed
    with file:

        def log(event: Event) -> None:
            what = {"time": datetime.now(UTC).isoformat(), "pid": os.getpid(), "event": type(event).__name__.lower()}
            with disk_errors("write", path, mend):
                file.write(json.dumps({**what, **asdict(event)}, default=str).encode() + b"\n")

        yield log
