"""What came of scoring an architecture, where it was computed as well as where it was looked up."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from zcpipe.errors import UsageError, unknown_name
from zcpipe.search.scores import TableScores
from zcpipe.spaces.base import Architecture


@dataclass(frozen=True)
class Scored:
    """What scoring one architecture gave.

    Attributes:
        values: of each proxy and count, NaN where it failed or was never run.
        status: that of a table's rows: ok, partial, error, timeout or memory. What was never run has not failed.
        reason: why it is not ok, and what was never run; nothing where all is there.
        seconds: that it took.
    """

    values: Mapping[str, float]
    status: str
    reason: str
    seconds: float


class Scorer(Protocol):
    """Scores with what became of each architecture."""

    @property
    def directions(self) -> Mapping[str, str]:
        """The proxies and counts, and of each whether "higher" or "lower" values are better."""
        ...

    def scored(self, archs: Sequence[Architecture]) -> list[Scored]:
        """Score architectures, in the order asked."""
        ...


class LookedUp:
    """Scores of a table. Why some failed it does not say, and looking up takes no time.

    Args:
        table: the scores.
        names: what is wanted of them.

    Raises:
        UsageError: the table has no such column.
    """

    def __init__(self, table: TableScores, names: Sequence[str]) -> None:
        for name in names:
            if name not in table.directions:
                raise unknown_name("proxy of the table", name, table.directions)
        if not table.texts:
            raise UsageError("the table of scores is empty; run zcpipe on it first")
        self._table = table

    @property
    def directions(self) -> Mapping[str, str]:
        """Those of the table."""
        return self._table.directions

    def scored(self, archs: Sequence[Architecture]) -> list[Scored]:
        """Look architectures up.

        Raises:
            DataError: one is not in the table.
        """
        columns = self._table.score(archs)
        missing = self._table.missing_of(archs)
        rows = zip(*(values.tolist() for values in columns.values()), strict=True)
        return [
            _looked_up(dict(zip(columns, row, strict=True)), [name for name in missing if missing[name][place]])
            for place, row in enumerate(rows)
        ]


def _looked_up(values: Mapping[str, float], missing: Sequence[str]) -> Scored:
    failed = [name for name, value in values.items() if math.isnan(value) and name not in missing]
    reasons = [f"{', '.join(failed)} failed"] if failed else []
    reasons += [f"never run: {', '.join(missing)}"] if missing else []
    return Scored(values, "partial" if failed else "ok", "; ".join(reasons), 0.0)
