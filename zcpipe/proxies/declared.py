"""What is wrong with a proxy that an installed package offers, found before anything is computed."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, get_args

from zcpipe.declared import bad_fields, bad_name, bad_text
from zcpipe.proxies.base import CustomStatistic, GradientStatistic, Proxy, Recipe, Statistic, WeightStatistic

COLUMNS = ("index", "arch", "key", "space", "seconds", "status", "failures")
"""Those of every table (`zcpipe.table.schema`), which no proxy can be called."""

# What can be read off under a part of a recipe.
_READABLE: Mapping[tuple[str, object], tuple[type[Statistic], ...]] = {
    ("absolute", True): (GradientStatistic, WeightStatistic, CustomStatistic),
    ("norm", "sample"): (CustomStatistic,),
    ("inputs", "none"): (WeightStatistic,),
}


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
    for (part, value), kinds in _READABLE.items():
        foreign = next((one for one in proxy.statistics if not isinstance(one, kinds)), None)
        if getattr(recipe, part) == value and foreign is not None:
            named = ", ".join(kind.__name__ for kind in kinds)
            under = f"under its recipe's {part}={value!r}"
            yield f"{under} its statistics must be of the kinds {named}, got {foreign.name!r}"
    if recipe.absolute and (recipe.inputs != "ones" or recipe.norm not in ("batch", "drop")):
        had = f"inputs={recipe.inputs!r} and norm={recipe.norm!r}"
        yield f"its recipe's absolute=True goes with inputs='ones' and norm='batch' or 'drop', got {had}"
    if not recipe.absolute and recipe.inputs == "ones":
        yield "its recipe's inputs='ones' goes with absolute=True alone, got absolute=False"
    if not recipe.absolute and recipe.norm == "drop":
        yield "its recipe's norm='drop' goes with absolute=True alone, got absolute=False"
