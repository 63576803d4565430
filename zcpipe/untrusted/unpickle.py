"""A reader of pickled data that cannot run anything.

Python's own unpickler, even with its globals restricted, calls what a file names, allocates memo and items without
bound, overflows the C stack on hashing deeply nested tuples, and would make 30 GB of NATS-Bench's single file. This
machine carries out only those operations (cut apart by ``pickletools``) that build numbers, texts and containers,
counts what they build against limits, and lets a reader drop what it does not need while the file is still being read.

A global is a name looked up in a table such as `PLAIN_GLOBALS`; nothing is imported, and the only calls are to that
table's functions. Understood are the binary opcodes of protocols 2 to 5. Ordered dicts come out as plain dicts, numpy
scalars as Python numbers, byte arrays and Python 2's texts, which may hold anything, as bytes.
"""

from __future__ import annotations

import io
import pickletools
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any, BinaryIO, cast

from zcpipe.errors import DataError
from zcpipe.untrusted.plain import PLAIN_GLOBALS, Array, DType, Forbidden, Globals
from zcpipe.untrusted.stream import Content, Progress, Truncated, pieces

SMALL = 1 << 15  # numbers below it are keys in any count: of indices and epochs
MOST_LARGE = 1000  # other numbers as keys of one file
WEIGHT = 16  # bytes of a text or of bytes that count as one more object

_DOUBLE = struct.Struct(">d")
_BINFLOAT, _BININT1, _MEMOIZE, _SHORT_BINUNICODE = b"GK\x94\x8c"


@dataclass(frozen=True)
class Limits:
    """What one file may cost. The defaults fit any single architecture's file many times over.

    Attributes:
        content: bytes after decompression.
        objects: entries of containers and distinct texts that are alive at once, weighed so that each stands for about
            a hundred bytes of memory.
        memo: entries of the memo, of the stack and of its marks.
        item: bytes of a single text or of a single array's content.
        text: bytes of a text that is kept; in the place of a longer one there is an empty text.
    """

    content: int = 64 << 20
    objects: int = 2_000_000
    memo: int = 2_000_000
    item: int = 4 << 20
    text: int = 4 << 20


OnDict = Callable[[dict[Any, Any]], int]
"""Sees each dict when entries were stored, may cut it down in place, returns how many entries that let go."""


def load(
    file: BinaryIO | bytes,
    where: str,
    *,
    limits: Limits | None = None,
    on_dict: OnDict | None = None,
    names: Globals = PLAIN_GLOBALS,
    progress: Progress | None = None,
) -> Any:  # noqa: ANN401 - the file decides; callers check every type they use
    """Read one pickled object, plain or bz2-compressed.

    Args:
        file: an open binary file at its beginning, or the bytes themselves.
        where: the file's name, for messages.
        limits: what the file may cost.
        on_dict: sees every dict as it fills, to drop what is not needed while reading.
        names: the globals that the file may name, and what makes their stand-ins.
        progress: told the bytes read from the file.

    Returns:
        The object, made of None, bool, int, float, str, bytes, list, tuple, dict, set and what ``names`` makes.

    Raises:
        DataError: the file is truncated, damaged, too large, no pickle, or asks for anything but data.
    """
    stream = io.BytesIO(file) if isinstance(file, bytes) else file
    bounds = limits or Limits()
    machine = _Machine(bounds, on_dict, names)
    try:
        return machine.run(pieces(stream, where, bounds.content, progress))
    except Forbidden as error:
        raise DataError(
            f"{where}: the pickle holds {error}; it is foreign or hostile, and nothing in it was run"
        ) from error
    except Truncated as error:
        raise DataError(f"{where}: the pickle ends too early; the file is truncated or no pickle") from error
    except (ArithmeticError, LookupError, TypeError, ValueError, RuntimeError, MemoryError) as error:
        raise DataError(f"{where}: is damaged or no pickle ({type(error).__name__} while reading)") from error


class _Named:
    """A global on the stack; only what is of this type is ever called."""

    def __init__(self, make: Callable[..., object]) -> None:
        self.make = make


# Python salts the hashes of texts and bytes; those of numbers, and of tuples of them, a file can choose such that they
# collide: then each key costs as much time as there are others.
_SALTED = frozenset({str, bytes, bool, type(None)})


def _is_small(value: object) -> bool:
    return type(value) is int and 0 <= value < SMALL


class _Machine:
    """The stack machine: for each operation that builds data, by the name ``pickletools`` gives it, one method."""

    def __init__(self, limits: Limits, on_dict: OnDict | None, names: Globals) -> None:
        self.limits = limits
        self.on_dict = on_dict
        self.named = {name: _Named(make) for name, make in names.items()}
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: list[Any] = []
        self.texts: dict[bytes, str] = {}  # equal texts share one object: files repeat few texts millions of times
        self.objects = 0
        self.large = 0  # numbers met as keys that are not small

    def _operations(self) -> dict[str, Callable[[Any], object]]:
        push = self.stack.append
        return {
            "PROTO": self._proto,
            "FRAME": lambda _: None,  # a hint for buffered readers; the operations inside follow one by one
            "MARK": lambda _: self.marks.append(len(self.stack)),
            "POP": lambda _: self.stack.pop(),
            "NONE": push,
            "NEWTRUE": lambda _: push(True),
            "NEWFALSE": lambda _: push(False),
            "BINFLOAT": push,
            "BININT": push,
            "BININT1": push,
            "BININT2": push,
            "LONG1": self._long,
            "SHORT_BINUNICODE": self._text,
            "BINUNICODE": self._text,
            "BINUNICODE8": self._text,
            "SHORT_BINSTRING": lambda text: self._bytes(text.encode("latin-1")),  # as pickletools decoded it
            "BINSTRING": lambda text: self._bytes(text.encode("latin-1")),
            "SHORT_BINBYTES": self._bytes,
            "BINBYTES": self._bytes,
            "BINBYTES8": self._bytes,
            "BYTEARRAY8": lambda data: self._bytes(bytes(data)),
            "EMPTY_LIST": lambda _: self._made([], 1),
            "EMPTY_TUPLE": lambda _: push(()),
            "EMPTY_SET": lambda _: self._made(set(), 4),
            "EMPTY_DICT": lambda _: self._made({}, 2),
            "TUPLE": lambda _: self._tuple(self._marked()),
            "TUPLE1": lambda _: self._tuple(self._last(1)),
            "TUPLE2": lambda _: self._tuple(self._last(2)),
            "TUPLE3": lambda _: self._tuple(self._last(3)),
            "APPEND": lambda _: self._extend(self._last(1)),
            "APPENDS": lambda _: self._extend(self._marked()),
            "ADDITEMS": lambda _: self._add(self._marked()),
            "SETITEM": lambda _: self._store(self._last(2)),
            "SETITEMS": lambda _: self._store(self._marked()),
            "MEMOIZE": lambda _: self.memo.append(self.stack[-1]),
            "BINPUT": self._put,
            "LONG_BINPUT": self._put,
            "BINGET": lambda index: push(self.memo[index]),
            "LONG_BINGET": lambda index: push(self.memo[index]),
            "GLOBAL": lambda names: self._global(*names.split(" ")),
            "STACK_GLOBAL": lambda _: self._global(*self._last(2)),
            "REDUCE": lambda _: self._reduce(*self._last(2)),
            "BUILD": lambda _: self._build(*self._last(1)),
        }

    def run(self, parts: Iterator[bytes]) -> object:
        """Interpret the whole content and return the object it builds."""
        operations = self._operations()
        content = Content(self._bounded(parts), self.limits.item)
        steps = pickletools.genops(cast(IO[bytes], content))
        step, argument, _ = next(steps)
        if step.name != "PROTO":
            raise ValueError("not a pickle of protocol 2 to 5")
        while step.name != "STOP":
            operation = operations.get(step.name)
            if operation is None:
                raise Forbidden(f"the operation {step.name}, which plain data does not need")
            operation(argument)
            self._fast_lane(content)
            step, argument, _ = next(steps)
        self._check()
        if not content.at_end() or len(self.stack) != 1 or self.marks:
            raise ValueError("unbalanced")
        return self.stack[0]

    def _fast_lane(self, content: Content) -> None:
        """Do the operations that make up nearly all of a benchmark file (known keys, floats), without a call for each.

        Stops at any other operation, at a text not met before, and where an argument might not lie whole in the buffer.
        """
        stack, memo, texts, unpack = self.stack, self.memo, self.texts, _DOUBLE.unpack_from
        buffer, position = content.buffer, content.position
        safe = len(buffer) - 300  # what one turn may take at most: a short text, its memoizing, a float
        while position < safe:
            opcode = buffer[position]
            if opcode == _SHORT_BINUNICODE:
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
            elif opcode == _BININT1:
                stack.append(buffer[position + 1])
                position += 2
            elif opcode != _BINFLOAT:
                break
            if buffer[position] == _BINFLOAT:
                stack.append(unpack(buffer, position + 1)[0])
                position += 9
        content.position = position

    def _bounded(self, parts: Iterator[bytes]) -> Iterator[bytes]:
        """Check the limits once per piece: between two pieces at most one piece's worth of objects can be made."""
        for piece in parts:
            self._check()
            yield piece

    def _check(self) -> None:
        longest = max(len(self.memo), len(self.stack), len(self.marks))
        if self.objects > self.limits.objects or longest > self.limits.memo:
            raise Forbidden("more objects than such a file needs")

    def _marked(self) -> list[Any]:
        return self._last(len(self.stack) - self.marks.pop())

    def _last(self, count: int) -> list[Any]:
        """Take items from the end of the stack."""
        start = len(self.stack) - count
        if start < 0 or count < 0:
            raise IndexError
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _made(self, thing: object, weight: int) -> None:
        self.objects += weight
        self.stack.append(thing)

    def _proto(self, version: int) -> None:
        if not 2 <= version <= 5:
            raise Forbidden(f"protocol {version}")

    def _long(self, number: int) -> None:
        if not -(1 << 63) <= number < 1 << 63:  # larger integers can be chosen to collide as dict keys
            raise Forbidden("an integer of more than 64 bits")
        self.stack.append(number)

    def _text(self, text: str) -> None:
        code = text.encode("utf-8")  # fails for what is no text, which pickletools lets through
        if len(code) > self.limits.text:
            self.stack.append("")
            return
        if code not in self.texts:
            self.texts[code] = text
            self.objects += 2 + len(code) // WEIGHT
        self.stack.append(self.texts[code])

    def _bytes(self, data: bytes) -> None:
        self._made(data, 1 + len(data) // WEIGHT)

    def _tuple(self, items: list[Any]) -> None:
        self._made(tuple(items), len(items) + 1)

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise TypeError("not a list")
        self.objects += len(items)
        target.extend(items)

    def _keys(self, values: list[Any]) -> list[Any]:
        """Check that values may be hashed in little time, and without end: nesting could overflow the C stack."""
        kinds = set(map(type, values))
        if kinds <= _SALTED or (kinds == {int} and min(values) >= 0 and max(values) < SMALL):
            return values
        for value in values:
            kind = type(value)
            if kind is tuple:
                if len(value) != 2 or type(value[0]) is not str or not _is_small(value[1]):
                    raise Forbidden(f"a tuple as a key that is no text with a number below {SMALL}")
            elif kind is float or (kind is int and not _is_small(value)):
                self.large += 1
            elif kind is not int and kind not in _SALTED:
                raise Forbidden("a key that is no text or number")
        if self.large > MOST_LARGE:
            raise Forbidden(f"more than {MOST_LARGE} keys that are fractions or numbers from {SMALL} on")
        return values

    def _add(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not set:
            raise TypeError("not a set")
        self.objects += len(items)
        target.update(self._keys(items))

    def _store(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise TypeError("not a dict")
        keys, before, had_stand_in = self._keys(items[::2]), len(target), "" in target
        target.update(zip(keys, items[1::2], strict=True))
        self.objects += len(target) - before
        if len(target) - before < len(keys):
            # Nobody writes a key twice, but the empty text stands for all that are too long to be kept.
            stand_ins = keys.count("")
            if len(target) - before < len(keys) - stand_ins + (stand_ins > 0 and not had_stand_in):
                raise Forbidden("a key twice in one dict")
        if self.on_dict is not None:
            self.objects -= self.on_dict(target)

    def _put(self, index: int) -> None:
        if index == 1 and not self.memo:  # Python 2 numbers from 1
            self.memo.append(None)
        if index == len(self.memo):  # writers number one by one; an index beyond the end is an attempt at a huge memo
            self.memo.append(self.stack[-1])
        else:
            self.memo[index] = self.stack[-1]

    def _global(self, module: object, name: object) -> None:
        if type(module) is not str or type(name) is not str:
            raise TypeError("not a name")
        named = self.named.get((module, name))
        if named is None:
            # The names come from the file: quoted and cut, so that the message stays one line.
            raise Forbidden(f"the global {f'{module}.{name}'!r:.120}")
        self.stack.append(named)

    def _reduce(self, named: object, arguments: object) -> None:
        if type(named) is not _Named or type(arguments) is not tuple:
            raise Forbidden("a call of something that is not one of its allowed names")
        self._made(named.make(*arguments), 2)

    def _build(self, state: object) -> None:
        target = self.stack[-1]
        if type(target) not in (DType, Array):
            raise Forbidden(f"a state for a {type(target).__name__}")
        target.set_state(state)
