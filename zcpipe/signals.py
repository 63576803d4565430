"""What a run makes of the signals that end processes."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def terminable() -> Iterator[None]:
    """Inside, SIGTERM, which batch systems and clusters send, interrupts like Ctrl-C."""
    with kept():
        if _may_handle():
            signal.signal(signal.SIGTERM, _interrupt)
        yield


@contextmanager
def kept() -> Iterator[None]:
    """Afterwards SIGTERM is handled as before, whatever a library has made of it inside."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if _may_handle() and before is not None:
            signal.signal(signal.SIGTERM, before)


def _may_handle() -> bool:
    return threading.current_thread() is threading.main_thread()


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
