"""What a worker is executing, in memory that it shares with its supervisor: it is known when the worker is dead."""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
import time

_ORDINAL, _SINCE = struct.Struct("q"), struct.Struct("d")
_IDLE = -1


class Cell:
    """One number and one time, written by a worker and read by its supervisor, without a message for each unit.

    Args:
        descriptor: of a file as `make_cell` makes it.
    """

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, _ORDINAL.size + _SINCE.size)

    def begin(self, ordinal: int) -> None:
        """Say that a unit is begun now, the ``ordinal``-th since the worker started."""
        # The time first: who reads the new number must not find the old time.
        _SINCE.pack_into(self._memory, _ORDINAL.size, time.monotonic())
        _ORDINAL.pack_into(self._memory, 0, ordinal)

    def rest(self) -> None:
        """Say that no unit is being executed."""
        self.begin(_IDLE)

    def read(self) -> tuple[int, float] | None:
        """Return the number of the unit that is being executed and when it was begun, None where none is."""
        while True:
            (ordinal,) = _ORDINAL.unpack_from(self._memory, 0)
            (since,) = _SINCE.unpack_from(self._memory, _ORDINAL.size)
            if _ORDINAL.unpack_from(self._memory, 0)[0] == ordinal:
                return None if ordinal == _IDLE else (ordinal, since)


def make_cell() -> tuple[int, Cell]:
    """Return a file descriptor to hand to a worker, to be closed when that has been done, and this side of the cell."""
    with tempfile.TemporaryFile() as file:
        file.write(bytes(_ORDINAL.size + _SINCE.size))  # a full disk says so here, and not by a signal later
        file.flush()
        descriptor = os.dup(file.fileno())
    cell = Cell(descriptor)
    cell.rest()
    return descriptor, cell
