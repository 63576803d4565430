"""Scores of architectures, wherever they come from, and what orders architectures by them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from zcpipe.errors import DataError, UsageError, unknown_name
from zcpipe.proxies import list_proxies
from zcpipe.rank import METHODS, NAMED
from zcpipe.rank.population import Bools
from zcpipe.rank.ranking import DIRECTIONS, Floats
from zcpipe.spaces.base import Architecture
from zcpipe.table import Table
from zcpipe.truth import align, direction_of, read_truth

COUNTS = ("params", "macs")

PREDICTED = "parzc"
"""What the column of a predictor's output is called."""


class Scores(Protocol):
    """Proxies and counts of architectures: looked up, measured or predicted."""

    @property
    def directions(self) -> Mapping[str, str]:
        """The columns that there are, and of each whether "higher" or "lower" values are better."""
        ...

    def score(self, archs: Sequence[Architecture]) -> dict[str, Floats]:
        """Score architectures.

        Returns:
            For each of ``directions`` the values in the order asked, float64 [n]; NaN where a score failed, while
            infinities are data.

        Raises:
            ZcpipeError: the scores cannot be had at all.
        """
        ...


@dataclass(frozen=True)
class TableScores:
    """Scores looked up in columns that lie in memory.

    Attributes:
        texts: the architectures' canonical texts, in the order of the table.
        keys: of each architecture, [n].
        columns: values in that order, float64 [n] each.
        directions: of each column.
        missing: where a column has no value because its proxy was never run, [n] each; where it is not said, a value
            that is not there failed.
    """

    texts: Sequence[str]
    keys: Sequence[str]
    columns: Mapping[str, Floats]
    directions: Mapping[str, str]
    missing: Mapping[str, Bools] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rows: dict[str, int] = {}
        for row, text in enumerate(self.texts):
            rows.setdefault(text, row)  # random draws may hold one architecture twice
        object.__setattr__(self, "_rows", rows)

    @classmethod
    def read(cls, table: Table, names: Iterable[str] | None = None, predicted: Path | None = None) -> TableScores:
        """Read a table.

        Args:
            table: what to read.
            names: proxies and counts to read, and `PREDICTED`; by default all that have a direction. The counts are
                always there.
            predicted: a file that ``zcpipe parzc predict`` made for this table; its means are the column `PREDICTED`.

        Raises:
            UsageError: the table has no such column with a direction, or nothing asks for what is predicted.
            DataError: a file is damaged, or knows none of the table's architectures.
        """
        ranked = [column.name for column in table.columns if column.direction in DIRECTIONS]
        asked = list(dict.fromkeys([*COUNTS, *(ranked if names is None else names)]))
        if predicted is not None and names is not None and PREDICTED not in asked:
            raise UsageError(
                f"nothing asks for {PREDICTED}, which is what predictions are called; give --warmup-by {PREDICTED} or "
                f"--moves {PREDICTED}, or leave --predicted out"
            )
        own = [name for name in asked if name != PREDICTED or predicted is None]
        if PREDICTED in own and PREDICTED not in ranked:
            raise UsageError(f"{PREDICTED} is what zcpipe parzc predict gives; name its file with --predicted")
        directions = table.directions(own)
        columns = table.values(own)
        missing = table.missing(columns)
        rows = table.to_arrow(["arch", "key"])
        texts: list[str] = rows["arch"].to_pylist()
        if predicted is not None:
            columns[PREDICTED] = align(texts, read_truth(predicted, "mean"))
            directions[PREDICTED] = direction_of(predicted, "mean")
        return cls(texts, rows["key"].to_pylist(), columns, directions, missing)

    def row(self, arch: Architecture) -> int | None:
        """Return the first row of an architecture, or of its text; None where the table lacks it."""
        rows: dict[str, int] = self._rows  # type: ignore[attr-defined]
        return rows.get(str(arch))

    def score(self, archs: Sequence[Architecture]) -> dict[str, Floats]:
        """Look architectures up.

        Raises:
            DataError: one is not in the table.
        """
        rows = self._rows_of(archs)
        return {name: values[rows] for name, values in self.columns.items()}

    def missing_of(self, archs: Sequence[Architecture]) -> dict[str, Bools]:
        """Return of columns on which architectures their proxies were never run: [n] each, in the order asked.

        Raises:
            DataError: one is not in the table.
        """
        rows = self._rows_of(archs)
        return {name: where[rows] for name, where in self.missing.items()}

    def _rows_of(self, archs: Sequence[Architecture]) -> NDArray[np.int64]:
        rows = np.empty(len(archs), np.int64)
        for position, arch in enumerate(archs):
            row = self.row(arch)
            if row is None:
                raise DataError(f"{arch} is not in the table of scores; score it with zcpipe run --archs")
            rows[position] = row
        return rows

    def digest(self, names: Iterable[str]) -> str:
        """Name the architectures and the values of columns."""
        digest = hashlib.blake2b("\n".join([*self.texts, *self.keys]).encode(), digest_size=8)
        for name in sorted(names):
            digest.update(self.columns[name].astype("<f8").tobytes())
        return digest.hexdigest()


def run_of(names: Iterable[str]) -> str:
    """Return the command that adds proxies to a table."""
    return f"`zcpipe run ... --proxies {','.join(names)} --out DIR`"


def require_space(table: Table, space: str) -> None:
    """Refuse the table of another space.

    Raises:
        UsageError: it is of another one.
    """
    if table.identity["space"] != space:
        raise UsageError(f"the table of scores is of {table.identity['space']}, not of {space}")


def columns_of(name: str) -> tuple[str, ...]:
    """Return the columns that a proxy or a named aggregate (`zcpipe.rank.NAMED`) is made of."""
    return NAMED[name].proxies if name in NAMED else (name,)


@dataclass(frozen=True)
class Guide:
    """A proxy or a named aggregate of several that orders architectures.

    Attributes:
        name: a column of the scores, or a name of `zcpipe.rank.NAMED`. A column hides an aggregate of its name.
        scores: where the values come from.

    Raises:
        UsageError: the scores have no such column, or lack one of the aggregate's.
    """

    name: str
    scores: Scores

    def __post_init__(self) -> None:
        known = self.scores.directions
        if self.name in known:
            return
        if self.name not in NAMED and self.name not in list_proxies():
            raise unknown_name("proxy or aggregate", self.name, [*known, *NAMED, *list_proxies()])
        parts = NAMED[self.name].proxies if self.name in NAMED else (self.name,)
        lacking = [name for name in parts if name not in known]
        if lacking:
            made = f"{self.name} is made of {', '.join(parts)}, but " if self.name in NAMED else ""
            raise UsageError(
                f"{made}there are no scores of {', '.join(lacking)}; {run_of(lacking)} adds them to a table"
            )

    def measure(self, archs: Sequence[Architecture]) -> dict[str, Floats]:
        """Return the columns that `order` needs."""
        values = self.scores.score(archs)
        return {name: values[name] for name in self.columns}

    @property
    def columns(self) -> tuple[str, ...]:
        """What it is made of."""
        return (self.name,) if self.name in self.scores.directions else NAMED[self.name].proxies

    def order(self, values: Mapping[str, Floats]) -> Floats:
        """Say how good architectures are among one another.

        Args:
            values: what `measure` gave of the population: an aggregate ranks over it alone.

        Returns:
            float64 [n], higher is better; NaN where a score failed.
        """
        if self.name in values:
            return values[self.name] if self.scores.directions[self.name] == "higher" else -values[self.name]
        return METHODS[NAMED[self.name].method](values, self.scores.directions)

    def goodness(self, archs: Sequence[Architecture]) -> Floats:
        """Measure and order architectures: float64 [n] as `order`."""
        return self.order(self.measure(archs))

    def reason(self, archs: Sequence[Architecture]) -> str:
        """Say why none of architectures has a score, or who says it."""
        missing = self.scores.missing_of(archs) if isinstance(self.scores, TableScores) else {}
        counts = {name: int(missing[name].sum()) for name in self.columns if name in missing}
        said = [f"{name} was never run on {n} of them: {run_of([name])} adds it" for name, n in counts.items() if n]
        if any(counts.get(name, 0) < len(archs) for name in self.columns if name != PREDICTED):
            said.append("zcpipe status says why proxies failed")
        if PREDICTED in self.columns:
            said.append("the column reason of a file of predictions says why one has none")
        return "; ".join(said)
