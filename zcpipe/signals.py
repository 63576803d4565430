"""What a run makes of the signals that end processes."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_asked = False  # to end, by a signal that `heard` or `terminable` listens to
_listeners = 0


@contextmanager
def heard() -> Iterator[None]:
    """Inside, Ctrl-C interrupts, at the latest where `require_going_on` is asked next."""
    global _asked, _listeners
    _listeners += 1
    try:
        with kept():
            # It may be ignored, as shells have it for what runs behind them.
            if _may_handle() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                signal.signal(signal.SIGINT, _interrupt)
            yield
    finally:
        _listeners -= 1
        _asked = _asked and _listeners > 0


@contextmanager
def terminable() -> Iterator[None]:
    """Inside, SIGTERM, which batch systems and clusters send, interrupts like Ctrl-C; see `heard`."""
    with heard():
        if _may_handle():
            signal.signal(signal.SIGTERM, _interrupt)
        yield


def require_going_on() -> None:
    """Interrupt what goes on although a signal asked for the end: whatever repeats asks this each time.

    An interruption is an exception wherever the program happens to be. While it imports there is none, which can leave
    the lock of imports taken for good; and what is not ours can swallow one: pyarrow does, where it imports pandas.

    Raises:
        KeyboardInterrupt: a signal has asked for it.
    """
    if _asked:
        raise KeyboardInterrupt


@contextmanager
def kept() -> Iterator[None]:
    """Afterwards SIGTERM and SIGINT are handled as before, whatever a library has made of them inside."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if _may_handle() and handler is not None:
                signal.signal(number, handler)


def _may_handle() -> bool:
    return threading.current_thread() is threading.main_thread()


def _interrupt(_signal: int, frame: FrameType | None) -> None:
    global _asked
    _asked = True
    if not _is_importing(frame):
        raise KeyboardInterrupt


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False
