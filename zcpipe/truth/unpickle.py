"""A reader of pickled data that cannot run anything.

Python's own unpickler calls whatever a file names, and even with its globals restricted a hostile file can make it
allocate without bound (memo indices), overflow the C stack (hashing deeply nested tuples) or load 30 GB where a few
hundred numbers are wanted. This module interprets the pickle opcodes itself, and only those that build data: numbers,
texts, lists, tuples, dicts, sets. A global is a name looked up in a table of this module's own functions; nothing is
imported, and the only calls are to those functions. Everything else in a file ends as a ``DataError``.

Understood are the binary opcodes of protocols 2 to 5. Ordered dicts come out as plain dicts, numpy scalars as Python
numbers.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from zcpipe.errors import DataError
from zcpipe.truth.opcodes import CODES, STOP, Operations, Truncated
from zcpipe.truth.plain import PLAIN_GLOBALS, DType, Forbidden, Globals
from zcpipe.truth.stream import Progress, pieces

MAX_INT_BYTES = 8  # larger integers can be chosen to collide as dict keys
MAX_KEY_LENGTH = 8

_DOUBLE = struct.Struct(">d")
_FLOAT, _MEMOIZE, _TEXT, _UNSIGNED = (CODES[name][0] for name in ("float", "memoize", "text", "unsigned"))


@dataclass(frozen=True)
class Limits:
    """What one file may cost. The defaults fit any single architecture's file many times over.

    Attributes:
        content: bytes after decompression.
        objects: entries of containers and distinct texts that are alive at once.
        memo: entries of the memo, of the stack and of its marks.
    """

    content: int = 64 << 20
    objects: int = 2_000_000
    memo: int = 2_000_000


OnDict = Callable[[dict[Any, Any]], int]
"""Sees each dict when entries were stored, may cut it down in place, returns how many entries that let go."""


def load(
    file: BinaryIO | bytes,
    where: str,
    *,
    allowed: Globals = PLAIN_GLOBALS,
    limits: Limits | None = None,
    on_dict: OnDict | None = None,
    progress: Progress | None = None,
) -> Any:  # noqa: ANN401 - the file decides; callers check every type they use
    """Read one pickled object, plain or bz2-compressed.

    Args:
        file: an open binary file at its beginning, or the bytes themselves.
        where: the file's name, for messages.
        allowed: for each global the file may name, the function that stands in for it.
        limits: what the file may cost.
        on_dict: sees every dict as it fills, to drop what is not needed while reading.
        progress: told the bytes read from the file.

    Returns:
        The object, made of None, bool, int, float, str, bytes, list, tuple, dict, set and what ``allowed`` makes.

    Raises:
        DataError: the file is truncated, damaged, too large, no pickle, or asks for anything but data.
    """
    stream = io.BytesIO(file) if isinstance(file, bytes) else file
    bounds = limits or Limits()
    machine = _Machine(allowed, bounds, on_dict)
    content = pieces(stream, where, bounds.content, progress)
    try:
        result = machine.run(content)
    except Forbidden as error:
        raise DataError(
            f"{where}: the pickle holds {error}; it is foreign or hostile, and nothing in it was run"
        ) from error
    except Truncated as error:
        raise DataError(f"{where}: the pickle ends too early; the file is truncated or no pickle") from error
    except (ArithmeticError, LookupError, TypeError, ValueError, struct.error, MemoryError) as error:
        raise DataError(f"{where}: is damaged or no pickle (broken {type(error).__name__} while reading)") from error
    return result


@dataclass(frozen=True)
class _Named:
    """A global on the stack: its name and the function that stands in for it."""

    name: str
    make: Callable[..., object]


_ATOMS = frozenset({str, int, float, bool, bytes, type(None)})


def _keys(values: list[Any]) -> list[Any]:
    """Check that values may be hashed: texts, numbers or short tuples of them; nesting could overflow the C stack."""
    if _ATOMS.issuperset(map(type, values)):
        return values
    for value in values:
        short = type(value) is tuple and len(value) <= MAX_KEY_LENGTH and _ATOMS.issuperset(map(type, value))
        if not short and type(value) not in _ATOMS:
            raise Forbidden("a key that is no text, number or short tuple of them")
    return values


class _Machine:
    """The stack machine: one method per opcode, found through ``CODES``."""

    def __init__(self, allowed: Globals, limits: Limits, on_dict: OnDict | None) -> None:
        self.allowed = allowed
        self.limits = limits
        self.on_dict = on_dict
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: list[Any] = []
        self.texts: dict[bytes, str] = {}  # equal texts share one object: files repeat few texts millions of times
        self.objects = 0

    def run(self, content: Iterator[bytes]) -> object:
        """Interpret the whole content and return the object it builds."""
        operations = Operations(self._bounded(content))
        handlers: dict[int, Callable[[bytes], None]] = {
            opcode: getattr(self, "do_" + name) for name, (opcode, _, _) in CODES.items() if opcode != STOP
        }
        while True:
            self._fast_lane(operations)
            opcode, argument = operations.next()
            if opcode == STOP:
                break
            handlers[opcode](argument)
        self._check()
        if len(self.stack) != 1 or self.marks:
            raise ValueError("unbalanced")
        return self.stack[0]

    def _fast_lane(self, operations: Operations) -> None:
        """Do the operations that make up nearly all of a benchmark file (known keys, floats), without a call for each.

        Stops at any other operation, at a text not met before, and where an argument might not lie whole in the buffer.
        """
        stack, memo, texts, unpack = self.stack, self.memo, self.texts, _DOUBLE.unpack_from
        buffer, position = operations.buffer, operations.position
        safe = len(buffer) - 300  # what one turn may take at most: a short text, its memoizing, a float
        while position < safe:
            opcode = buffer[position]
            if opcode == _TEXT:
                start = position + 2
                stop = start + buffer[position + 1]
                text = texts.get(buffer[start:stop])
                if text is None:
                    break
                stack.append(text)
                position = stop
                if buffer[position] == _MEMOIZE:
                    memo.append(text)
                    position += 1
            elif opcode == _UNSIGNED:
                stack.append(buffer[position + 1])
                position += 2
            elif opcode != _FLOAT:
                break
            if buffer[position] == _FLOAT:
                stack.append(unpack(buffer, position + 1)[0])
                position += 9
        operations.position = position

    def _bounded(self, content: Iterator[bytes]) -> Iterator[bytes]:
        """Check the limits once per piece: between two pieces at most one piece's worth of objects can be made."""
        for piece in content:
            self._check()
            yield piece

    def _check(self) -> None:
        longest = max(len(self.memo), len(self.stack), len(self.marks))
        if self.objects > self.limits.objects or longest > self.limits.memo:
            raise Forbidden("more objects than such a file needs")

    def _marked(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    # Frames and the stack.

    def do_proto(self, argument: bytes) -> None:
        if not 2 <= argument[0] <= 5:
            raise Forbidden(f"protocol {argument[0]}")

    def do_frame(self, argument: bytes) -> None:
        pass  # a hint for buffered readers; the operations inside follow one by one

    def do_mark(self, argument: bytes) -> None:
        self.marks.append(len(self.stack))

    def do_pop(self, argument: bytes) -> None:
        self.stack.pop()

    # Atoms.

    def do_none(self, argument: bytes) -> None:
        self.stack.append(None)

    def do_true(self, argument: bytes) -> None:
        self.stack.append(True)

    def do_false(self, argument: bytes) -> None:
        self.stack.append(False)

    def do_float(self, argument: bytes) -> None:
        self.stack.append(_DOUBLE.unpack(argument)[0])

    def do_unsigned(self, argument: bytes) -> None:
        self.stack.append(int.from_bytes(argument, "little"))

    def do_signed(self, argument: bytes) -> None:
        if len(argument) > MAX_INT_BYTES:
            raise Forbidden("an integer of more than 64 bits")
        self.stack.append(int.from_bytes(argument, "little", signed=True))

    do_short = do_unsigned
    do_long = do_signed

    def do_text(self, argument: bytes) -> None:
        text = self.texts.get(argument)
        if text is None:
            text = self.texts[argument] = argument.decode("utf-8")
            self.objects += 1
        self.stack.append(text)

    do_text4 = do_text8 = do_text

    def do_bytes(self, argument: bytes) -> None:
        self.objects += 1
        self.stack.append(argument)

    do_bytes4 = do_bytes8 = do_bytes

    # Containers.

    def do_new_list(self, argument: bytes) -> None:
        self.objects += 1
        self.stack.append([])

    def do_append(self, argument: bytes) -> None:
        item = self.stack.pop()
        self._extend([item])

    def do_appends(self, argument: bytes) -> None:
        self._extend(self._marked())

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise TypeError("not a list")
        self.objects += len(items)
        target.extend(items)

    def do_new_tuple(self, argument: bytes) -> None:
        self.stack.append(())

    def do_tuple(self, argument: bytes) -> None:
        items = self._marked()
        self.objects += len(items) + 1
        self.stack.append(tuple(items))

    def do_tuple1(self, argument: bytes) -> None:
        self._tuple(1)

    def do_tuple2(self, argument: bytes) -> None:
        self._tuple(2)

    def do_tuple3(self, argument: bytes) -> None:
        self._tuple(3)

    def _tuple(self, length: int) -> None:
        if len(self.stack) < length:
            raise IndexError
        self.objects += length + 1
        self.stack[-length:] = [tuple(self.stack[-length:])]

    def do_new_set(self, argument: bytes) -> None:
        self.objects += 4  # an empty set weighs as much as a few other objects
        self.stack.append(set())

    def do_additems(self, argument: bytes) -> None:
        items = self._marked()
        target = self.stack[-1]
        if type(target) is not set:
            raise TypeError("not a set")
        self.objects += len(items)
        target.update(_keys(items))

    def do_new_dict(self, argument: bytes) -> None:
        self.objects += 1
        self.stack.append({})

    def do_setitem(self, argument: bytes) -> None:
        value = self.stack.pop()
        key = self.stack.pop()
        self._store([key, value])

    def do_setitems(self, argument: bytes) -> None:
        self._store(self._marked())

    def _store(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise TypeError("not a dict")
        before = len(target)
        target.update(zip(_keys(items[::2]), items[1::2], strict=True))
        self.objects += len(target) - before
        if self.on_dict is not None:
            self.objects -= self.on_dict(target)

    # The memo. Writers number it 0, 1, 2, ..., so an index beyond its end is an attempt to make it huge.

    def do_memoize(self, argument: bytes) -> None:
        self.memo.append(self.stack[-1])

    def do_put(self, argument: bytes) -> None:
        index = int.from_bytes(argument, "little")
        if index == len(self.memo):
            self.memo.append(self.stack[-1])
        else:
            self.memo[index] = self.stack[-1]

    def do_get(self, argument: bytes) -> None:
        self.stack.append(self.memo[int.from_bytes(argument, "little")])

    do_put4 = do_put
    do_get4 = do_get

    # Globals and what is made from them.

    def do_global(self, argument: bytes) -> None:
        module, name = argument.decode("utf-8").split("\n")
        self._global(module, name)

    def do_stack_global(self, argument: bytes) -> None:
        name = self.stack.pop()
        module = self.stack.pop()
        self._global(module, name)

    def _global(self, module: object, name: object) -> None:
        if type(module) is not str or type(name) is not str:
            raise TypeError("not a name")
        make = self.allowed.get((module, name))
        if make is None:
            # The names come from the file: quoted and cut, so that the message stays one line.
            raise Forbidden(f"the global {f'{module}.{name}'!r:.120}")
        self.stack.append(_Named(name, make))

    def do_reduce(self, argument: bytes) -> None:
        arguments = self.stack.pop()
        named = self.stack.pop()
        if type(named) is not _Named or type(arguments) is not tuple:
            raise Forbidden("a call of something that is not one of its allowed names")
        self.objects += 1
        self.stack.append(named.make(*arguments))

    def do_build(self, argument: bytes) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if type(target) is not DType:
            raise Forbidden(f"a state for a {type(target).__name__}")
        target.set_state(state)
