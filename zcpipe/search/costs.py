"""What Pareto fronts of searches hold aggregates or accuracies against: sizes of networks, and latencies of a file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from zcpipe.errors import DataError, UsageError, unknown_name
from zcpipe.rank.ranking import Floats
from zcpipe.rank.selection import Positions
from zcpipe.search.pareto import front
from zcpipe.search.scores import COUNTS
from zcpipe.truth import read_truth

FRONT = "front.parquet"
"""The file of the fronts of a search's seeds."""

LATENCY = "latency"
COSTS = (*COUNTS, LATENCY)
"""The costs that there are; less is better."""


@dataclass(frozen=True)
class Costs:
    """The costs of a front.

    Attributes:
        names: some of `COSTS`.
        latencies: of architectures by their texts; empty where the front is not over them.
    """

    names: Sequence[str] = ("macs",)
    latencies: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, names: Sequence[str], latency: tuple[Path | str, str] | None = None) -> Costs:
        """Read latencies where there are any, and refuse costs that mean nothing.

        Args:
            names: some of `COSTS`.
            latency: a Parquet file with a text column ``arch``, and its column of latencies.

        Raises:
            UsageError: an unknown cost, latencies that are no cost or a cost without them, or no such column.
            DataError: the file is missing or damaged, or knows no latency.
        """
        for name in names:
            if name not in COSTS:
                raise unknown_name("cost", name, COSTS)
        if len(set(names)) < len(names):
            raise UsageError(f"a cost is named twice: {', '.join(names)}")
        if (latency is not None) != (LATENCY in names):
            raise UsageError(
                f"a front over {LATENCY} needs a file of latencies and its column, and the other way round"
            )
        if latency is None:
            return cls(tuple(names))
        archs, values = read_truth(*latency)
        known = {arch: value for arch, value in zip(archs, values.tolist(), strict=True) if not math.isnan(value)}
        if not known:
            raise DataError(f"{latency[0]}: column {latency[1]!r} has no values")
        if least := [arch for arch, value in known.items() if value < 0]:
            raise DataError(f"{latency[0]}: column {latency[1]!r} has latencies below 0, the first of {least[0]}")
        return cls(tuple(names), known)

    def latency(self, archs: Sequence[str]) -> list[float]:
        """Return latencies by the texts of architectures, NaN where none is known."""
        return [self.latencies.get(arch, math.nan) for arch in archs]

    def unknown(self, archs: Iterable[str]) -> int:
        """Count the architectures whose latency is asked for and not known."""
        return sum(arch not in self.latencies for arch in archs) if LATENCY in self.names else 0

    def front(
        self, values: Floats, direction: str, archs: Sequence[str], counts: Mapping[str, Sequence[float]]
    ) -> Positions:
        """Find which architectures no other dominates in a value and all costs.

        Args:
            values: what is held against the costs, [n]; who has NaN is not on the front.
            direction: whether "higher" or "lower" values are better.
            archs: the architectures' texts, [n]. One whose latency is asked for and not known is not on the front.
            counts: parameters and multiply-accumulates, [n] each.

        Returns:
            Positions, best value first, as `zcpipe.search.pareto.front`.
        """
        columns = {name: self.latency(archs) if name == LATENCY else counts[name] for name in self.names}
        objectives = {"": values, **{name: np.array(column, np.float64) for name, column in columns.items()}}
        return front(objectives, {"": direction, **dict.fromkeys(columns, "lower")})
