"""Search algorithms: one file each, offering itself in ``METHODS``; third parties use entry points of this name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zcpipe.errors import unknown_name
from zcpipe.registry import discover
from zcpipe.search.algorithms.base import Algorithm, Method, Setting, faults

__all__ = ["Algorithm", "Method", "Setting", "method", "methods"]


def methods() -> dict[str, type[Method]]:
    """Return every known algorithm by name."""
    return discover(__name__, "METHODS", faults)


def method(name: str, parameters: Mapping[str, Any] | None = None) -> Method:
    """Make an algorithm.

    Args:
        name: what it is called.
        parameters: what differs from its defaults.

    Raises:
        UsageError: no algorithm is called so (the message names near ones), or it has no such parameter.
    """
    known = methods()
    if name not in known:
        raise unknown_name("algorithm", name, known)
    made: Method = known[name].model_validate(dict(parameters or {}))
    return made
