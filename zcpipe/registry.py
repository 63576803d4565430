"""Finding what is installed: the package's own modules, then third parties through entry points."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable
from functools import lru_cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from zcpipe.errors import CapabilityError, UsageError


@lru_cache(maxsize=8)
def discover(package: str, attribute: str) -> dict[str, Any]:
    """Collect every offered object by its ``name``.

    A module of ``package`` offers objects through its attribute ``attribute`` (a sequence); another distribution offers
    them through the entry-point group of the package's name (``zcpipe.spaces``, ``zcpipe.proxies``, ``zcpipe.truth``),
    each entry point naming one object or a sequence of them. Adding one is therefore adding one file.

    Returns:
        Name -> object, sorted by name.

    Raises:
        UsageError: two distributions offer the same name.
        CapabilityError: what a distribution offers cannot be imported.
    """
    offered: dict[str, tuple[Any, str]] = {}
    for module in pkgutil.iter_modules(import_module(package).__path__, prefix=f"{package}."):
        for thing in getattr(import_module(module.name), attribute, ()):
            _add(offered, thing, module.name)
    for entry in sorted(entry_points(group=package), key=lambda entry: entry.value):
        try:
            loaded = entry.load()
        except Exception as error:  # third-party code: whatever it does must not look like a fault of ours
            package_name = entry.dist.name if entry.dist else entry.value
            raise CapabilityError(
                f"the installed package {package_name!r} offers {entry.name!r} for {package} but cannot be imported "
                f"({type(error).__name__}: {error}); mend or uninstall it"
            ) from error
        for thing in loaded if isinstance(loaded, Iterable) and not hasattr(loaded, "name") else (loaded,):
            _add(offered, thing, entry.value)
    return {name: offered[name][0] for name in sorted(offered)}


def _add(offered: dict[str, tuple[Any, str]], thing: Any, origin: str) -> None:  # noqa: ANN401
    if thing.name in offered and offered[thing.name][0] is not thing:
        raise UsageError(f"{thing.name!r} is offered by {offered[thing.name][1]} and by {origin}; uninstall one")
    offered[thing.name] = (thing, origin)
