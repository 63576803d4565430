"""From proxies to passes: what is computed together, and under which recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from zcpipe.errors import UsageError
from zcpipe.proxies.base import (
    ActivationStatistic,
    CustomStatistic,
    JacobianStatistic,
    MapStatistic,
    Proxy,
    Recipe,
    Statistic,
    WeightStatistic,
)

Protocol = Literal["paper", "fused"]
Kind = Literal["weights", "blocks", "sweeps", "absolute", "own"]

# One init, one batch, one norm mode for all that can live with it.
_FUSED = Recipe(init="kaiming_normal", inputs="data", norm="batch")


@dataclass(frozen=True)
class Pass:
    """Statistics that are read off one forward, or one statistic's own passes.

    ``weights`` reads the weights and runs nothing; ``blocks`` is the forward whose backward never crosses a block;
    ``sweeps`` one forward with a backward sweep per cotangent (loss, sum of outputs, probes of blocks); ``absolute``
    the synflow family's; ``own`` a `CustomStatistic`.
    """

    kind: Kind
    recipe: Recipe
    statistics: tuple[Statistic, ...]


@dataclass(frozen=True)
class Group:
    """Passes over one network with one set of weights and one batch; ``full``: with its dead layers."""

    recipe: Recipe
    full: bool
    passes: tuple[Pass, ...]
    proxies: tuple[Proxy, ...]


def plan(proxies: Sequence[Proxy], protocol: Protocol = "paper") -> tuple[Group, ...]:
    """Group proxies into the fewest passes.

    Proxies of one recipe share a network, a batch and a forward. If one of them counts dead layers, that network has
    these, and proxies that would see but must not count them get a network of their own. Counts (proxies without
    statistics) need no pass and are in no group.

    Args:
        proxies: what to compute.
        protocol: "paper": each proxy under its own recipe; "fused": one initialisation, batch and norm mode for all but
            those whose definition prescribes its own (absolute weights, weights drawn anew, a batch norm per sample).

    Raises:
        UsageError: two proxies mean different statistics by one name, or read one under two recipes, or there is no
            such protocol.
    """
    if protocol not in get_args(Protocol):
        raise UsageError(f"protocol must be {' or '.join(get_args(Protocol))}, got {protocol!r}")
    recipes: dict[Recipe, list[Proxy]] = {}
    for proxy in proxies:
        if proxy.statistics:
            recipes.setdefault(recipe_of(proxy, protocol), []).append(proxy)
    statistics_of(proxies)
    planned = [group for recipe, members in recipes.items() for group in _groups(recipe, members)]
    _check_one_recipe_each(planned)
    with_dead = {group.recipe.init for group in planned if group.full}
    planned = [replace(g, full=True) if g.recipe.init in with_dead and _may_share(g) else g for g in planned]
    # Networks are drawn once per initialisation, so groups of one follow each other.
    return tuple(sorted(planned, key=lambda group: (group.recipe.init, group.full)))


def reads_data(proxies: Sequence[Proxy], protocol: Protocol = "paper") -> bool:
    """Whether a pass of these proxies sees the images that a run is given, rather than noise, ones or nothing."""
    return any(group.recipe.inputs == "data" for group in plan(proxies, protocol))


def recipe_of(proxy: Proxy, protocol: Protocol) -> Recipe:
    """Return the recipe of a proxy that reads statistics under a protocol."""
    recipe = proxy.recipe
    if recipe is None:
        raise UsageError(f"proxy {proxy.name!r} reads statistics but declares no recipe")
    if protocol == "paper" or recipe.redraws:
        return recipe
    fused = replace(recipe, init=_FUSED.init)
    if recipe.inputs in ("noise", "data"):
        fused = replace(fused, inputs=_FUSED.inputs)
    return fused


def statistics_of(proxies: Sequence[Proxy]) -> tuple[Statistic, ...]:
    """Return every statistic the proxies read, each once, in order of first use.

    Raises:
        UsageError: two proxies mean different statistics by one name.
    """
    found: dict[str, Statistic] = {}
    for proxy in proxies:
        for statistic in proxy.statistics:
            if found.setdefault(statistic.name, statistic) != statistic:
                raise UsageError(f"proxy {proxy.name!r} reads another statistic named {statistic.name!r}; rename one")
    return tuple(found.values())


def describe(proxies: Sequence[Proxy], protocol: Protocol = "paper") -> list[dict[str, object]]:
    """Return the plan as records, a pass each: its recipe, what it runs and the proxies that it feeds."""
    records: list[dict[str, object]] = []
    for group in plan(proxies, protocol):
        for one in group.passes:
            fed = [p.name for p in group.proxies if any(s in one.statistics for s in p.statistics)]
            records.append(
                {
                    "pass": one.kind if one.kind != "own" else f"own:{one.statistics[0].name}",
                    "init": group.recipe.init,
                    "inputs": group.recipe.inputs,
                    "norm": group.recipe.norm,
                    "network": "full" if group.full else "pruned",
                    "runs": _WORK[one.kind],
                    "proxies": fed,
                }
            )
    counts = [proxy.name for proxy in proxies if not proxy.statistics]
    if counts:
        nothing = dict.fromkeys(("init", "inputs", "norm"), "-")
        records.append({"pass": "counts", **nothing, "network": "full", "runs": "nothing", "proxies": counts})
    return records


_WORK = {
    "weights": "nothing",
    "blocks": "one forward, local backwards",
    "sweeps": "one forward, a backward per cotangent",
    "absolute": "one forward and backward of one image, float64",
    "own": "passes of its own",
}


def _groups(recipe: Recipe, proxies: Sequence[Proxy]) -> list[Group]:
    counting = [p for p in proxies if p.scope == "full"]
    seeing = [p for p in proxies if p.scope == "function" and any(map(_sees_dead_layers, p.statistics))]
    if not counting or not seeing:
        return [_group(recipe, bool(counting), proxies)]
    return [_group(recipe, True, [p for p in proxies if p not in seeing]), _group(recipe, False, seeing)]


def _check_one_recipe_each(groups: Sequence[Group]) -> None:
    """Values go by the names of statistics, so one statistic has one place."""
    seen: set[str] = set()
    for group in groups:
        names = {statistic.name for one in group.passes for statistic in one.statistics}
        if names & seen:
            raise UsageError(f"statistic {min(names & seen)!r} is read under two recipes or scopes; name one otherwise")
        seen |= names


def _may_share(group: Group) -> bool:
    """Whether a group may run on a full network that is there anyway: dead layers change nothing and cost little."""
    blind = not any(_sees_dead_layers(s) for p in group.proxies for s in p.statistics)
    return blind and group.recipe.absolute  # one image


def _sees_dead_layers(statistic: Statistic) -> bool:
    if isinstance(statistic, CustomStatistic):
        return not statistic.blind
    return isinstance(statistic, WeightStatistic | ActivationStatistic)


def _group(recipe: Recipe, full: bool, proxies: Sequence[Proxy]) -> Group:
    statistics = statistics_of(proxies)
    weights = [s for s in statistics if isinstance(s, WeightStatistic)]
    own = [s for s in statistics if isinstance(s, CustomStatistic)]
    read = [s for s in statistics if s not in weights and s not in own]
    passes = [Pass("weights", recipe, tuple(weights))] if weights else []
    if read:
        passes.append(Pass(_kind(recipe, read), recipe, tuple(read)))
    passes += [Pass("own", recipe, (s,)) for s in own]
    return Group(recipe, full, tuple(passes), tuple(proxies))


def _kind(recipe: Recipe, statistics: Sequence[Statistic]) -> Kind:
    if recipe.absolute:
        return "absolute"
    local = all(isinstance(s, MapStatistic | JacobianStatistic) for s in statistics)
    return "blocks" if local else "sweeps"
