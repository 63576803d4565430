"""What a run makes of the signals that end processes.

An interruption is an exception wherever the main thread happens to be. Two places must not see one: an import, whose
lock it can leave taken for good, and what is not ours and swallows it, as pyarrow does where it imports pandas. So a
signal is kept in mind: it is sent again when it hits an import, and whatever repeats asks `require_going_on`.
"""

from __future__ import annotations

import _thread
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_AGAIN = 0.05  # seconds after which a signal that hit an import is sent again
_SIGNALS = (signal.SIGTERM, signal.SIGINT)

# Of the main thread, which alone handles signals.
_listeners = 0  # contexts of `heard` that it is in
_asked = False  # to end, since it entered the outermost of them
_told = False  # an exception has said so
_undisturbed = 0  # contexts of `undisturbed` that it is in
_own = 0  # signals that are sent again and have not come yet


@contextmanager
def heard() -> Iterator[None]:
    """Inside, Ctrl-C interrupts, at the latest where `require_going_on` is asked next, or at the end.

    In other threads than the main one, which no signal interrupts, it does nothing.

    Raises:
        KeyboardInterrupt: a signal has asked for the end, which nobody was told yet.
    """
    global _listeners, _asked, _told
    if not _is_main():
        yield
        return
    _listeners += 1
    try:
        with kept():
            # It may be ignored, as shells have it for what runs behind them.
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                signal.signal(signal.SIGINT, _interrupt)
            yield
        if _listeners == 1 and not _told:
            require_going_on()
    finally:
        _listeners -= 1
        _asked, _told = _asked and _listeners > 0, _told and _listeners > 0


@contextmanager
def terminable() -> Iterator[None]:
    """Inside, SIGTERM, which batch systems and clusters send, interrupts like Ctrl-C; see `heard`."""
    with heard():
        if _is_main() and signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:
            signal.signal(signal.SIGTERM, _interrupt)
        yield


@contextmanager
def undisturbed() -> Iterator[None]:
    """Inside, a first signal is only kept in mind; the interruption is where the outermost such context ends.

    Raises:
        KeyboardInterrupt: a signal has asked for it, and nothing else is wrong.
    """
    global _undisturbed
    if not _is_main():
        yield
        return
    _undisturbed += 1
    try:
        yield
    finally:
        _undisturbed -= 1
    if not _undisturbed:
        require_going_on()


def require_going_on() -> None:
    """Interrupt what goes on although a signal asked for the end: whatever repeats asks this each time.

    Raises:
        KeyboardInterrupt: a signal has asked for it.
    """
    global _told
    if _asked:
        _told = _told or _is_main()
        raise KeyboardInterrupt


@contextmanager
def kept() -> Iterator[None]:
    """Afterwards SIGTERM and SIGINT are handled as before, whatever a library has made of them inside."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        if _is_main():
            try:
                _handle(signal.SIGTERM, before[signal.SIGTERM])
            finally:  # also where another signal comes between the two
                _handle(signal.SIGINT, before[signal.SIGINT])


def _handle(number: signal.Signals, handler: object) -> None:
    if handler is not None:  # it is not Python's
        signal.signal(number, handler)  # type: ignore[arg-type]  # what `signal.getsignal` returned


def _is_main() -> bool:
    return threading.current_thread() is threading.main_thread()


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _asked, _told, _own
    again, _own = _own > 0, max(0, _own - 1)
    if again and _told:
        return
    insisting = _asked and not again  # the second of somebody who does not want to wait
    _asked = _listeners > 0
    if _undisturbed and not insisting:
        return
    if _is_importing(frame) and not insisting:
        _thread.start_new_thread(_send_again, (number,))
        return
    _told = _asked
    raise KeyboardInterrupt


def _send_again(number: int) -> None:
    global _own
    time.sleep(_AGAIN)
    if _asked and not _told:
        _own += 1
        signal.pthread_kill(threading.main_thread().ident or 0, number)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False
