"""Zero-cost proxies: one file a family, offering ``PROXIES``; third parties use entry points ``zcpipe.proxies``."""

from __future__ import annotations

import fnmatch
import pkgutil
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import import_module
from typing import Any

from zcpipe.errors import UsageError, unknown_name
from zcpipe.proxies.base import Proxy
from zcpipe.proxies.declared import checking
from zcpipe.registry import Check, discover

__all__ = ["Proxy", "describe", "get_proxy", "groups", "list_proxies", "resolve"]


def list_proxies(pattern: str = "*") -> list[str]:
    """Return the names of all installed proxies that match a shell-style pattern, sorted."""
    return [name for name in _installed() if fnmatch.fnmatchcase(name, pattern)]


def get_proxy(name: str) -> Proxy:
    """Return an installed proxy by name.

    Raises:
        UsageError: no proxy has this name; near ones are named.
    """
    proxies = _installed()
    if name not in proxies:
        raise unknown_name("proxy", name, [*proxies, *groups()])
    proxy: Proxy = proxies[name]
    return proxy


def describe(proxy: Proxy) -> dict[str, object]:
    """Return what a user wants to know of a proxy, as one record."""
    fields = ("name", "direction", "scope", "cost", "unit", "formula", "paper")
    record: dict[str, object] = {field: getattr(proxy, field) for field in fields}
    recipe = proxy.recipe
    record["recipe"] = "none" if recipe is None else f"{recipe.init}, {recipe.inputs}, {recipe.norm}"
    needs = ["blocks"] if any(statistic.node == "block" for statistic in proxy.statistics) else []
    record["needs"] = [*needs, *(["labels"] if proxy.targets else [])]
    record["statistics"] = [f"{s.name}@{s.node}" for s in proxy.statistics if s.node != "network"]
    return record


@cache
def groups() -> Mapping[str, tuple[str, ...]]:
    """Return the names that stand for several proxies, such as ``aznas``."""
    found: dict[str, tuple[str, ...]] = {}
    for module in pkgutil.iter_modules(__path__, prefix=f"{__name__}."):
        found.update(getattr(import_module(module.name), "GROUPS", {}))
    return found


def resolve(names: str | Iterable[str]) -> tuple[Proxy, ...]:
    """Expand groups and turn names into proxies, each once, in the order given.

    Args:
        names: proxy or group names, as a sequence or one comma-separated text.

    Raises:
        UsageError: an unknown name, or none at all.
    """
    asked = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    known = groups()
    expanded = [member for name in asked if name for member in known.get(name, (name,))]
    if not expanded:
        raise UsageError("no proxies given; name some, or a group such as aznas")
    return tuple(get_proxy(name) for name in dict.fromkeys(expanded))


@cache
def _check() -> Check:
    return checking(groups())


def _installed() -> dict[str, Any]:
    return discover(__name__, "PROXIES", _check())
