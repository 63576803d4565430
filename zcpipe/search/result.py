"""What searches found: curves, picks and Pareto fronts, as arrays and as Parquet files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from zcpipe.errors import UsageError
from zcpipe.search.costs import FRONT, LATENCY, Costs
from zcpipe.search.loop import Outcome, Trial
from zcpipe.search.scores import COUNTS
from zcpipe.spaces.base import Size
from zcpipe.table.files import publish
from zcpipe.table.schema import canonical

CURVES, PICKS = "curves.parquet", "picks.parquet"
ABOUT = "zcpipe.search"  # the key of the files' metadata that says of which search they are

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Pick:
    """The model that a search would choose: the one with the best target, the first of equal ones.

    Attributes:
        seed: of the search.
        arch: the architecture.
        key: its key.
        accuracy: the target.
        report: what is only reported, NaN where nothing is.
        found: after how many trained models, itself included.
        trained: models that were trained in all.
        ended: why the search ended (`zcpipe.search.loop.Outcome`).
        params: of the full network.
        macs: of the full network.
    """

    seed: int
    arch: str
    key: str
    accuracy: float
    report: float
    found: int
    trained: int
    ended: str
    params: int
    macs: int


@dataclass(frozen=True)
class Found:
    """The searches of several seeds.

    Attributes:
        algorithm: its name.
        target: what guided.
        report: what was only reported, None where nothing was.
        direction: whether "higher" or "lower" targets are better.
        budget: trained models at most.
        outcomes: one for each seed.
        picks: one for each seed of which any training succeeded.
        sizes: of the full networks of all models that were trained with success, by their texts.
        costs: what their fronts hold the target against.
    """

    algorithm: str
    target: str
    report: str | None
    direction: str
    budget: int
    outcomes: tuple[Outcome, ...]
    picks: tuple[Pick, ...]
    sizes: Mapping[str, Size]
    costs: Costs

    @property
    def best_accuracy_mean(self) -> float:
        """The mean over the seeds of what is reported of their picks, of their target where nothing is."""
        return mean_and_error(self._finals())[0]

    @property
    def best_accuracy_se(self) -> float:
        """The standard error of that mean; NaN for one seed."""
        return mean_and_error(self._finals())[1]

    def _finals(self) -> Floats:  # [picks]
        """Return what is reported of the picks; a budget may be any number where seconds end the search."""
        return np.array([pick.accuracy if self.report is None else pick.report for pick in self.picks], np.float64)

    def best(self, column: str | None = None) -> Floats:
        """Return what the best model so far has after each trained model.

        Args:
            column: "accuracy" or "report"; by default what is reported if anything is. The best is always the one
                whose target is.

        Returns:
            float64 [seeds, budget]; NaN before the first success, constant after a search has ended.

        Raises:
            UsageError: another column.
        """
        name = column or ("accuracy" if self.report is None else "report")
        if name not in ("accuracy", "report"):
            raise UsageError(f"column must be accuracy or report, got {name!r}")
        found = np.full((len(self.outcomes), self.budget), np.nan)
        for row, outcome in zip(found, self.outcomes, strict=True):
            best = incumbents(outcome.trials, self.direction)
            for place, trial in enumerate(best):
                row[place] = math.nan if trial is None else getattr(trial, name)
            row[len(best) :] = row[len(best) - 1] if best else np.nan
        return found

    def reached(self, value: float, column: str | None = None) -> Floats:
        """Return after how many trained models each seed's best reaches a value, as `best`; NaN where it does not."""
        best = self.best(column)
        there = best >= value if self.direction == "higher" else best <= value
        return np.where(there.any(axis=1), there.argmax(axis=1) + 1.0, np.nan)

    def curves(self) -> pa.Table:
        """Return all trainings: a row for each seed and trained model."""
        rows = []
        for outcome in self.outcomes:
            best = incumbents(outcome.trials, self.direction)
            for trained, (trial, leader) in enumerate(zip(outcome.trials, best, strict=True), start=1):
                rows.append(
                    {
                        "seed": outcome.seed,
                        "trained": trained,
                        "arch": trial.arch,
                        "key": trial.key,
                        "accuracy": trial.accuracy,
                        "report": trial.report,
                        "seconds": trial.seconds,
                        "failure": trial.failure or None,
                        "best_accuracy": math.nan if leader is None else leader.accuracy,
                        "best_report": math.nan if leader is None else leader.report,
                    }
                )
        return _table(rows, _CURVES)

    def fronts(self) -> pa.Table:
        """Return the trained models on the Pareto front of each seed, best target first; failed ones are on none.

        ``seed``, ``trained`` (after how many models, itself included), ``arch``, ``key``, ``accuracy``, ``report``,
        ``params``, ``macs``, and ``latency`` where the front is over it.
        """
        rows: list[dict[str, object]] = []
        for outcome in self.outcomes:
            made = [(place, trial) for place, trial in enumerate(outcome.trials, start=1) if not trial.failure]
            archs = [trial.arch for _, trial in made]
            sizes = [vars(self.sizes[arch]) for arch in archs]
            accuracies = np.array([trial.accuracy for _, trial in made], np.float64)
            counts = {name: [size[name] for size in sizes] for name in COUNTS}
            for at in self.costs.front(accuracies, self.direction, archs, counts).tolist():
                place, trial = made[at]
                own = {"seed": outcome.seed, "trained": place, **vars(trial), **sizes[at]}
                rows.append({**own, LATENCY: self.costs.latencies.get(trial.arch)})
        return _table(rows, _FRONT.append(pa.field(LATENCY, pa.float64())) if self.costs.latencies else _FRONT)

    def write(self, directory: Path) -> None:
        """Write `CURVES`, `PICKS` and `FRONT`, each whole or not at all.

        Raises:
            DataError: the disk is full or gone.
        """
        about = {name: getattr(self, name) for name in ("algorithm", "target", "report", "direction", "budget")}
        picks = _table([vars(pick) for pick in self.picks], _PICKS)
        write_tables(directory, {CURVES: self.curves(), PICKS: picks, FRONT: self.fronts()}, about)


def write_tables(directory: Path, tables: Mapping[str, pa.Table], about: Mapping[str, Any]) -> None:
    """Write Parquet files, each whole or not at all.

    Args:
        directory: where.
        tables: by the files' names.
        about: the search, in JSON in the metadata of each (`ABOUT`).

    Raises:
        DataError: the disk is full or gone.
    """
    for name, table in tables.items():
        sink = pa.BufferOutputStream()
        pq.write_table(table.replace_schema_metadata({ABOUT: canonical(about)}), sink, compression="zstd")
        publish(directory / name, memoryview(sink.getvalue()))


def mean_and_error(values: Floats) -> tuple[float, float]:
    """Return the mean of those that are numbers, and its standard error; NaN for what too few do not have."""
    there = values[~np.isnan(values)]
    if len(there) < 2:
        return (float(there[0]) if len(there) else math.nan), math.nan
    return float(there.mean()), float(there.std(ddof=1) / math.sqrt(len(there)))


def incumbents(trials: Sequence[Trial], direction: str) -> list[Trial | None]:
    """Return the best trial so far after each, the first of equal ones; None before the first success."""
    best: Trial | None = None
    found = []
    for trial in trials:
        if not trial.failure and (best is None or _better(trial.accuracy, best.accuracy, direction)):
            best = trial
        found.append(best)
    return found


def _better(one: float, other: float, direction: str) -> bool:
    return one > other if direction == "higher" else one < other


_CURVES = pa.schema(
    [
        ("seed", pa.int64()),
        ("trained", pa.int32()),
        ("arch", pa.string()),
        ("key", pa.string()),
        ("accuracy", pa.float64()),
        ("report", pa.float64()),
        ("seconds", pa.float64()),
        ("failure", pa.string()),
        ("best_accuracy", pa.float64()),
        ("best_report", pa.float64()),
    ]
)
_PICKS = pa.schema(
    [
        ("seed", pa.int64()),
        ("arch", pa.string()),
        ("key", pa.string()),
        ("accuracy", pa.float64()),
        ("report", pa.float64()),
        ("found", pa.int32()),
        ("trained", pa.int32()),
        ("ended", pa.string()),
        ("params", pa.int64()),
        ("macs", pa.int64()),
    ]
)
_FRONT = pa.schema(
    [
        ("seed", pa.int64()),
        ("trained", pa.int32()),
        ("arch", pa.string()),
        ("key", pa.string()),
        ("accuracy", pa.float64()),
        ("report", pa.float64()),
        ("params", pa.int64()),
        ("macs", pa.int64()),
    ]
)


def _table(rows: Sequence[dict[str, object]], schema: pa.Schema) -> pa.Table:
    columns = {name: [row[name] for row in rows] for name in schema.names}
    arrays = [pa.array(columns[field.name], field.type, from_pandas=True) for field in schema]  # NaN becomes null
    return pa.Table.from_arrays(arrays, schema=schema)
