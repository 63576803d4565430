"""What is wrong with a proxy that an installed package offers, found before anything is computed."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Collection, Iterator
from typing import Any, get_args

from zcpipe.declared import bad_fields, bad_name, bad_text
from zcpipe.proxies.base import CustomStatistic, GradientStatistic, Proxy, Recipe, Statistic, WeightStatistic

COLUMNS = ("index", "arch", "key", "space", "seconds", "status", "failures")
"""Those of every table (`zcpipe.table.schema`), which no proxy can be called."""

_ABSOLUTE = (GradientStatistic, WeightStatistic, CustomStatistic)  # what is read off a pass of absolute weights


def checking(groups: Collection[str]) -> Callable[[Any], Iterator[str]]:
    """Return what finds fault with a proxy.

    Args:
        groups: names that stand for several proxies.
    """
    taken = frozenset([*COLUMNS, *groups])

    def faults(proxy: Any) -> Iterator[str]:  # noqa: ANN401
        if not isinstance(proxy, Proxy):
            yield "a proxy must be a zcpipe.proxies.Proxy"
            return
        yield from bad_name(proxy.name, taken=taken)
        if proxy.name.lower().endswith("_sd"):
            yield f"its name must not end in _sd, as columns of deviations do, got {proxy.name!r}"
        yield from bad_fields(proxy)
        yield from bad_text(proxy, "formula", "paper")
        yield from _bad_statistics(proxy)
        yield from _bad_recipe(proxy)

    return faults


def _bad_statistics(proxy: Proxy) -> Iterator[str]:
    if not isinstance(proxy.statistics, tuple):
        yield f"its statistics must be a tuple, got {reprlib.repr(proxy.statistics)}"
    for statistic in proxy.statistics:
        if not isinstance(statistic, Statistic):
            kinds = ", ".join(kind.__name__ for kind in get_args(Statistic))
            yield f"its statistics must be of the kinds {kinds}, got {reprlib.repr(statistic)}"
        yield from bad_name(statistic.name, "the name of a statistic")
        yield from bad_fields(statistic, f"its statistic {statistic.name!r}")
    names = [statistic.name for statistic in proxy.statistics]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        yield f"its statistics must have different names, got {twice[0]!r} twice"


def _bad_recipe(proxy: Proxy) -> Iterator[str]:
    recipe = proxy.recipe
    if recipe is None:
        if proxy.statistics:
            yield "its recipe must be a Recipe, since it reads statistics, got None"
        return
    if not isinstance(recipe, Recipe):
        yield f"its recipe must be a Recipe or None, got {reprlib.repr(recipe)}"
    yield from bad_fields(recipe, "its recipe")
    if not proxy.statistics:
        yield "its recipe must be None, since it reads no statistics, got a Recipe"
    foreign = next((s for s in proxy.statistics if recipe.absolute and not isinstance(s, _ABSOLUTE)), None)
    if foreign is not None:
        kinds = ", ".join(kind.__name__ for kind in _ABSOLUTE)
        yield f"under its recipe's absolute=True its statistics must be of the kinds {kinds}, got {foreign.name!r}"
