"""What is wrong with what an installed package declares: the words for it that all kinds of things share.

Each function yields faults as `zcpipe.registry.Check` does, and nothing where all is well.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Collection, Hashable, Iterator
from functools import cache
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

_WORD = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"  # safe in commands, paths and the columns of any reader
_TEXTS: dict[object, tuple[type, str]] = {str: (str, "a text"), bool: (bool, "True or False")}


def bad_name(
    name: object, what: str = "its name", *, parts: bool = False, taken: Collection[str] = ()
) -> Iterator[str]:
    """Find fault with a name that commands, paths and columns have to carry.

    Args:
        name: anything.
        what: the field that holds it.
        parts: whether it may have parts, as ``nds/darts`` has.
        taken: lower-case names that mean something else; some readers of tables do not tell cases apart.
    """
    if not isinstance(name, str):
        yield f"{what} must be a text, got {reprlib.repr(name)}"
    elif not re.fullmatch(rf"{_WORD}(/{_WORD})*" if parts else _WORD, name):
        rule = "letters a to z, digits, _, - and ., not beginning with - or ."
        yield f"{what} must be made of {rule}{', in parts with / between them' if parts else ''}, got {name!r}"
    elif name.lower() in taken:
        yield f"{what} {name!r} stands for something else already; give another"


def bad_text(thing: object, *fields: str) -> Iterator[str]:
    """Find fault with fields that have to hold a text for the user's eyes, such as a paper."""
    for field in fields:
        text = getattr(thing, field, None)
        if not isinstance(text, str) or not text.strip():
            yield f"its {field} must be a text that is not empty, got {reprlib.repr(text)}"


def bad_fields(thing: Any, part: str = "") -> Iterator[str]:  # noqa: ANN401
    """Find fault with fields of a dataclass: those that are a choice of texts, a text, a truth value or a function.

    Args:
        thing: what is offered, or a part of it.
        part: which part, such as "its recipe".
    """
    for field, hint in _hints(cast(Hashable, type(thing))).items():
        value = getattr(thing, field)
        wanted = ""
        if get_origin(hint) is Literal:
            known = get_args(hint)
            wanted = "" if isinstance(value, str) and value in known else f"one of {', '.join(known)}"
        elif hint in _TEXTS:
            kind, said = _TEXTS[hint]
            wanted = "" if isinstance(value, kind) else said
        elif get_origin(hint) is get_origin(Callable[..., Any]):
            wanted = "" if callable(value) else "a function"
        if wanted:
            which = f"the {field} of {part}" if part else f"its {field}"
            yield f"{which} must be {wanted}, got {reprlib.repr(value)}"


def lacking_methods(thing: object, protocol: type) -> Iterator[str]:
    """Find fault with a thing that lacks methods of a protocol, its special ones left out."""
    for name, method in vars(protocol).items():
        if callable(method) and not name.startswith("_") and not callable(getattr(thing, name, None)):
            where = f"{protocol.__module__}.{protocol.__name__}"
            yield f"it must have a method {name} ({where}), got {reprlib.repr(getattr(thing, name, None))}"


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)
