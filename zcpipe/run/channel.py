"""Messages between a supervisor and a worker: pickled objects over a socket, each behind its length."""

from __future__ import annotations

import pickle
import select
import socket
import struct
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

_LENGTH = struct.Struct("!Q")
_CHUNK = 1 << 18  # bytes


class SupervisorEnd:
    """One end of a socket, at which nothing waits for the other: a worker may stop in the middle of a message.

    Attributes:
        heard: when anything came last, by the monotonic clock.
    """

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._end = end
        self._unsent = bytearray()
        self._received = bytearray()
        self.heard = time.monotonic()

    @property
    def halfway(self) -> bool:
        """Whether a message has begun to come and is not whole."""
        return bool(self._received)

    @property
    def interest(self) -> tuple[int, int]:
        """The file descriptor and the events of `select.poll` at which there is something to do."""
        return self._end.fileno(), select.POLLIN | (select.POLLOUT if self._unsent else 0)

    def send(self, message: object) -> None:
        """Send a message as far as the socket takes it; :meth:`flush` sends the rest.

        Raises:
            OSError: the other end is closed.
        """
        self._unsent += _framed(message)
        self.flush()

    def flush(self) -> None:
        """Send what the socket takes of what is left.

        Raises:
            OSError: the other end is closed.
        """
        with suppress(BlockingIOError):
            while self._unsent:
                sent = self._end.send(self._unsent)
                del self._unsent[:sent]

    def receive(self) -> list[Any]:
        """Return the messages that have come whole.

        Raises:
            EOFError: the other end is closed, and every message was returned before.
        """
        closed = self._fill()
        messages = []
        while len(self._received) >= _LENGTH.size:
            stop = _LENGTH.size + _LENGTH.unpack_from(self._received)[0]
            if len(self._received) < stop:
                break
            messages.append(pickle.loads(self._received[_LENGTH.size : stop]))  # noqa: S301 - of our own child
            del self._received[:stop]
        if closed and not messages:
            raise EOFError
        return messages

    def close(self) -> None:
        """Close the socket, which ends a worker that can notice it."""
        self._end.close()

    def _fill(self) -> bool:
        """Take in what is there, and return whether the other end is closed."""
        try:
            while chunk := self._end.recv(_CHUNK):
                self._received += chunk
                self.heard = time.monotonic()
        except BlockingIOError:
            return False
        except OSError:  # it is closed and has not read everything
            return True
        return True


class WorkerEnd:
    """The other end, which waits: a worker has nothing else to do, and ends with its supervisor.

    One thread may send while another receives.
    """

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._reader = end.makefile("rb")

    def send(self, message: object) -> None:
        """Send a message.

        Raises:
            OSError: the other end is closed.
        """
        self._end.sendall(_framed(message))

    def receive(self) -> Any:  # noqa: ANN401 - whatever was sent
        """Return the next message.

        Raises:
            EOFError: the other end is closed.
            OSError: it is closed and has not read everything.
        """
        return pickle.loads(self._read(_LENGTH.unpack(self._read(_LENGTH.size))[0]))  # noqa: S301 - of our parent

    def _read(self, count: int) -> bytes:
        found = self._reader.read(count)
        if len(found) < count:
            raise EOFError
        return found


def wait(interests: Iterable[tuple[int, int]], seconds: float) -> None:
    """Wait until one of some file descriptors has one of its events (`select.poll`), or for so many seconds."""
    poll = select.poll()
    for descriptor, events in interests:
        poll.register(descriptor, events)
    poll.poll(1000 * seconds)


def _framed(message: object) -> bytes:
    content = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(content)) + content
