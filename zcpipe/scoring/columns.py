"""The columns that scoring a space with some proxies fills, and what is to be known about each."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from zcpipe.errors import asking
from zcpipe.proxies import Proxy, get_proxy
from zcpipe.proxies.base import JacobianStatistic, Statistic
from zcpipe.scoring.plan import statistics_of
from zcpipe.spaces.base import Architecture, Slots, Space


@dataclass(frozen=True)
class Column:
    """One column of a table: proxies float64, counts int64, statistics a list of float32 in slot order.

    ``slots`` is empty for all but statistics, and for those of a space whose architectures differ in their slots: there
    `Space.slots` tells those of a row.
    """

    name: str
    kind: Literal["proxy", "count", "statistic"]
    unit: str
    direction: str
    scope: str
    paper: str
    slots: tuple[str, ...] = ()


COUNTS = ("params", "macs")


def columns_of(space: Space[Architecture], dataset: str, proxies: Sequence[Proxy]) -> tuple[Column, ...]:
    """Return the columns in table order: the proxies asked for, params and macs, the statistics per block and layer.

    ``params`` and ``macs`` are in every table, asked for or not: they are the baselines every ranking is held against.
    """
    with asking(space.name, f"the slots that its networks for {dataset} have in common"):
        common = space.common_slots(dataset)
        if not isinstance(common, Slots | None):
            raise TypeError(f"common_slots returned {reprlib.repr(common)}, neither Slots nor None")
    scored = [_of_proxy(proxy, "proxy") for proxy in proxies if proxy.name not in COUNTS]
    counts = [_of_proxy(get_proxy(name), "count") for name in COUNTS]
    statistics = [
        Column(
            name=f"{statistic.name}@{statistic.node}",
            kind="statistic",
            unit=statistic.unit,
            direction="none",
            scope=reader.scope,
            paper=reader.paper,
            slots=_slots(common, statistic),
        )
        for statistic in statistics_of(proxies)
        if statistic.node != "network"
        for reader in [next(proxy for proxy in proxies if statistic in proxy.statistics)]
    ]
    return (*scored, *counts, *statistics)


def _slots(slots: Slots | None, statistic: Statistic) -> tuple[str, ...]:
    if slots is None:
        return ()
    if statistic.node == "layer":
        return slots.layers
    return slots.blocks[1:] if isinstance(statistic, JacobianStatistic) else slots.blocks


def _of_proxy(proxy: Proxy, kind: Literal["proxy", "count"]) -> Column:
    return Column(proxy.name, kind, proxy.unit, proxy.direction, proxy.scope, proxy.paper)
