"""The columns that scoring a space with some proxies fills, and what is to be known about each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from zcpipe.proxies import Proxy, get_proxy
from zcpipe.proxies.base import JacobianStatistic
from zcpipe.scoring.measure import statistics_of
from zcpipe.spaces.base import Architecture, Space


@dataclass(frozen=True)
class Column:
    """One column of a table: proxies float64, counts int64, statistics a list of float32 in slot order."""

    name: str
    kind: Literal["proxy", "count", "statistic"]
    unit: str
    direction: str
    scope: str
    paper: str
    slots: tuple[str, ...] = ()


COUNTS = ("params", "macs")


def columns_of(space: Space[Architecture], dataset: str, proxies: Sequence[Proxy]) -> tuple[Column, ...]:
    """Return the columns in table order: the proxies asked for, params and macs, the statistics per block.

    ``params`` and ``macs`` are in every table, asked for or not: they are the baselines every ranking is held against.
    """
    scored = [_of_proxy(proxy, "proxy") for proxy in proxies if proxy.name not in COUNTS]
    counts = [_of_proxy(get_proxy(name), "count") for name in COUNTS]
    slots = space.block_slots(dataset)
    statistics = [
        Column(
            name=f"{statistic.name}@block",
            kind="statistic",
            unit=statistic.unit,
            direction="none",
            scope="function",
            paper=next(proxy.paper for proxy in proxies if statistic in proxy.statistics),
            slots=slots[1:] if isinstance(statistic, JacobianStatistic) else slots,
        )
        for statistic in statistics_of(proxies)
    ]
    return (*scored, *counts, *statistics)


def _of_proxy(proxy: Proxy, kind: Literal["proxy", "count"]) -> Column:
    return Column(proxy.name, kind, proxy.unit, proxy.direction, proxy.scope, proxy.paper)
