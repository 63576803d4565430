"""Finding what is installed: the package's own modules, then third parties through entry points."""

from __future__ import annotations

import os
import pkgutil
import reprlib
import sys
from collections.abc import Callable, Iterable
from functools import lru_cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from zcpipe.errors import CapabilityError, UsageError, reason_of, trace

Check = Callable[[Any], Iterable[str]]
"""Says what is wrong with a thing that is offered: "its direction must be ..., got ..."; only the first counts."""


@lru_cache(maxsize=8)
def discover(package: str, attribute: str, check: Check) -> dict[str, Any]:
    """Collect every offered object by its ``name``.

    A module of ``package`` offers objects through its attribute ``attribute`` (a sequence); another distribution offers
    them through the entry-point group of the package's name (``zcpipe.spaces``, ``zcpipe.proxies``, ``zcpipe.truth``),
    each entry point naming one object or a sequence of them. Adding one is therefore adding one file.

    Args:
        package: name of the package and of the group.
        attribute: of its modules.
        check: finds fault with a thing; a name that is a text is part of what it checks.

    Returns:
        Name -> object, sorted by name.

    Raises:
        UsageError: two distributions offer the same name.
        CapabilityError: what a distribution offers cannot be imported, or is not what is offered there.
    """
    offered: dict[str, tuple[Any, str]] = {}
    for module in pkgutil.iter_modules(import_module(package).__path__, prefix=f"{package}."):
        for thing in getattr(import_module(module.name), attribute, ()):
            _require_sound(thing, check, module.name, module.name)
            _add(offered, thing, module.name)
    for entry in sorted(entry_points(group=package), key=lambda entry: entry.value):
        distribution = f"the installed package {(entry.dist.name if entry.dist else entry.value)!r}"
        for thing in _load(entry, package, distribution):
            _require_sound(thing, check, distribution, entry.value)
            _add(offered, thing, entry.value)
    return {name: offered[name][0] for name in sorted(offered)}


def import_path() -> str:
    """Return the PYTHONPATH with which a child process finds what this one does."""
    return os.pathsep.join(entry or os.getcwd() for entry in sys.path)  # noqa: PTH109 - a text is wanted


def _load(entry: EntryPoint, package: str, distribution: str) -> Iterable[Any]:
    try:
        loaded = entry.load()
        several = isinstance(loaded, Iterable) and not isinstance(loaded, str | type) and not hasattr(loaded, "name")
        return tuple(loaded) if several else (loaded,)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # third-party code: whatever it does must not look like a fault of ours
        trace(error)
        raise CapabilityError(
            f"{distribution} offers {entry.name!r} for {package} but cannot be imported ({reason_of(error)}); "
            "mend or uninstall it"
        ) from error


def _require_sound(thing: Any, check: Check, distribution: str, origin: str) -> None:  # noqa: ANN401
    try:
        name = getattr(thing, "name", None)
        called = repr(name) if isinstance(name, str) and not isinstance(thing, type) else reprlib.repr(thing)
        fault = next(iter(check(thing)), None)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # an attribute may be a property, which may do anything
        trace(error)
        called, fault = f"a {type(thing).__name__}", f"it cannot be examined: {reason_of(error)}"
    if fault is not None:
        raise CapabilityError(f"{distribution} offers {called} ({origin}), but {fault}; mend or uninstall the package")


def _add(offered: dict[str, tuple[Any, str]], thing: Any, origin: str) -> None:  # noqa: ANN401
    if thing.name in offered and offered[thing.name][0] is not thing:
        raise UsageError(f"{thing.name!r} is offered by {offered[thing.name][1]} and by {origin}; uninstall one")
    offered[thing.name] = (thing, origin)
