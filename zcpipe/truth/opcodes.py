"""The binary opcodes of pickles that build data, and the cutting of a file's bytes into operations."""

from __future__ import annotations

from collections.abc import Iterator

from zcpipe.truth.plain import Forbidden

STOP = ord(".")
LOOKAHEAD = 1024
"""Bytes kept ready in front of the reader, so that an opcode with its fixed argument or its name is never cut."""

MAX_ITEM = 16 << 20

_LINES = -1
_UNKNOWN = -2

# name -> (opcode, size of the fixed argument or of the length in front of a variable one, whether it is variable)
CODES: dict[str, tuple[int, int, bool]] = {
    "proto": (0x80, 1, False),
    "frame": (0x95, 8, False),
    "mark": (ord("("), 0, False),
    "pop": (ord("0"), 0, False),
    "none": (ord("N"), 0, False),
    "true": (0x88, 0, False),
    "false": (0x89, 0, False),
    "float": (ord("G"), 8, False),
    "unsigned": (ord("K"), 1, False),
    "short": (ord("M"), 2, False),
    "signed": (ord("J"), 4, False),
    "long": (0x8A, 1, True),
    "text": (0x8C, 1, True),
    "text4": (ord("X"), 4, True),
    "text8": (0x8D, 8, True),
    "bytes": (ord("C"), 1, True),
    "bytes4": (ord("B"), 4, True),
    "bytes8": (0x8E, 8, True),
    "new_list": (ord("]"), 0, False),
    "append": (ord("a"), 0, False),
    "appends": (ord("e"), 0, False),
    "new_tuple": (ord(")"), 0, False),
    "tuple": (ord("t"), 0, False),
    "tuple1": (0x85, 0, False),
    "tuple2": (0x86, 0, False),
    "tuple3": (0x87, 0, False),
    "new_set": (0x8F, 0, False),
    "additems": (0x90, 0, False),
    "new_dict": (ord("}"), 0, False),
    "setitem": (ord("s"), 0, False),
    "setitems": (ord("u"), 0, False),
    "memoize": (0x94, 0, False),
    "put": (ord("q"), 1, False),
    "put4": (ord("r"), 4, False),
    "get": (ord("h"), 1, False),
    "get4": (ord("j"), 4, False),
    "global": (ord("c"), _LINES, False),
    "stack_global": (0x93, 0, False),
    "reduce": (ord("R"), 0, False),
    "build": (ord("b"), 0, False),
    "stop": (STOP, 0, False),
}


class Truncated(Exception):  # noqa: N818 - never leaves this package: the reader turns it into a DataError
    """The content ended inside an operation."""


class Operations:
    """The operations of a pickle, one after the other.

    Attributes:
        buffer: content at hand.
        position: where in it the next operation begins. A caller may itself do operations that lie whole in the buffer
            and move on the position.
    """

    def __init__(self, content: Iterator[bytes]) -> None:
        self.buffer = b""
        self.position = 0
        self._content = content
        self._more = True
        self._begun = False
        self._sizes, self._variable = [_UNKNOWN] * 256, [False] * 256
        for code, size, variable in CODES.values():
            self._sizes[code], self._variable[code] = size, variable

    def next(self) -> tuple[int, bytes]:
        """Read one operation.

        Returns:
            The opcode and its argument: the length in front of a variable one is taken off, the two lines of a global
            stay joined by a newline.

        Raises:
            Truncated: the content ends before STOP.
            Forbidden: an opcode that does not merely build data, or a single item larger than any such file holds.
            ValueError: the content does not begin as a pickle, or goes on after STOP.
        """
        self._need(LOOKAHEAD)
        if self.position >= len(self.buffer):
            raise Truncated
        opcode = self.buffer[self.position]
        if not self._begun and opcode != CODES["proto"][0]:
            raise ValueError("not a pickle of protocol 2 to 5")
        self._begun = True
        self.position += 1
        size = self._sizes[opcode]
        if size == _UNKNOWN:
            raise Forbidden(f"the operation 0x{opcode:02x}, which plain data does not need")
        if size == _LINES:
            return opcode, self._two_lines()
        argument = self._take(size)
        if self._variable[opcode]:
            argument = self._take(int.from_bytes(argument, "little"))
        if opcode == STOP and (self.position < len(self.buffer) or next(self._content, b"")):
            raise ValueError("bytes after the end")
        return opcode, argument

    def _take(self, size: int) -> bytes:
        if size > MAX_ITEM:
            raise Forbidden(f"a single item of {size} bytes")
        self._need(size)
        start, stop = self.position, self.position + size
        if stop > len(self.buffer):
            raise Truncated
        self.position = stop
        return self.buffer[start:stop]

    def _two_lines(self) -> bytes:
        start = self.position
        first = self.buffer.find(b"\n", start, start + LOOKAHEAD // 2)
        second = self.buffer.find(b"\n", first + 1, start + LOOKAHEAD // 2) if first >= 0 else -1
        if second < 0:
            raise ValueError("a name without end")
        self.position = second + 1
        return self.buffer[start:second]

    def _need(self, size: int) -> None:
        """Have that many bytes in the buffer after the position, unless the content ends."""
        held = len(self.buffer) - self.position
        if held >= size or not self._more:
            return
        parts = [self.buffer[self.position :]]
        while held < size and self._more:
            piece = next(self._content, None)
            self._more = piece is not None
            parts.append(piece or b"")
            held += len(parts[-1])
        self.buffer, self.position = b"".join(parts), 0
