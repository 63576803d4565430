"""Which nodes and statistics boosted trees rank by: the gain of their splits, and what shuffling costs."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from zcpipe.errors import CapabilityError, UsageError
from zcpipe.parzc.features import Coordinate, Encoder
from zcpipe.parzc.labels import Floats, Labels, draw, keys_of, parse_samples, require_seeds, split
from zcpipe.parzc.parallel import HERE, Pool, Progress, each
from zcpipe.parzc.predictors.base import Context, Vectors
from zcpipe.parzc.predictors.boosted_trees import BoostedTrees
from zcpipe.parzc.spec import FeatureSpec
from zcpipe.rank import correlate
from zcpipe.table import Table

SHUFFLED = 2000  # held-out architectures at most that are shuffled

FIGURES = (".png", ".pdf", ".svg")

_SHOWN = 40  # bars of a panel at most
_TYPES = pa.schema(
    [
        ("kind", pa.string()),
        ("name", pa.string()),
        *((name, pa.float64()) for name in ("gain", "gain_error", "permutation", "permutation_error")),
    ]
)


@dataclass(frozen=True)
class Importance:
    """What a part of the features counts for, the mean over the seeds with its standard error (NaN of one seed).

    Attributes:
        kind: "node" for all statistics of one place in the network, "column" for all places of one statistic, or for a
            proxy.
        name: the slot, or the column.
        gain: the share of the gain of all splits that is that of splits on the part.
        gain_error: its standard error.
        permutation: by how much Kendall's tau on held-out architectures falls when the part is shuffled among them.
        permutation_error: its standard error.
    """

    kind: str
    name: str
    gain: float
    gain_error: float
    permutation: float
    permutation_error: float


@dataclass(frozen=True)
class Importances:
    """What the parts of the features count for, and how well all of them together rank.

    Attributes:
        target: what is learnt and ranked.
        samples: how many architectures are learnt from.
        seeds: how many draws of them.
        kendall: of the predictions of held-out architectures, nothing shuffled; the mean over the seeds.
        kendall_error: its standard error (NaN of one seed).
        unordered: how many of the draws left labels that are all equal, to learn or to rank. Then all is NaN, as such
            a row of `zcpipe.parzc.protocol.evaluate` is.
        rows: nodes in the order of the features, then columns. Scalar proxies are columns alone.
    """

    target: str
    samples: int
    seeds: int
    kendall: float
    kendall_error: float
    unordered: int
    rows: tuple[Importance, ...]

    @property
    def title(self) -> str:
        """What was measured, in two sentences."""
        error = "" if math.isnan(self.kendall_error) else f" ± {self.kendall_error:.3f}"
        draws = "1 draw" if self.seeds == 1 else f"{self.seeds} draws: means ± standard errors"
        told = f"{self.target} learnt by boosted trees from {self.samples} architectures, {draws}. "
        if self.unordered:
            return told + (
                f"There is no number, for {self.unordered} of the draws left labels to learn or to rank that are all "
                "equal; give other --samples"
            )
        return told + f"Kendall's tau on others with nothing shuffled: {self.kendall:.3f}{error}"


def measure_importance(
    table: Table,
    target: Labels,
    spec: FeatureSpec,
    samples: str,
    seeds: int = 10,
    *,
    learner: BoostedTrees | None = None,
    pool: Pool = HERE,
    progress: Progress | None = None,
) -> Importances:
    """Measure what nodes and columns count for in boosted trees.

    Args:
        table: the architectures.
        target: what is learnt, and ranked on held-out architectures with other keys, at most `SHUFFLED` of them.
        spec: what the features are made of.
        samples: how many labelled architectures to learn from, as a count or a share ("20%").
        seeds: how many times, each time with other ones.
        learner: the trees, by default with the grid of `BoostedTrees`.
        pool: where to compute.
        progress: told how many seeds are done.

    Raises:
        UsageError: as `Encoder.fit`.
        DataError: too few labels, or a constant target.
    """
    require_seeds(seeds)
    encoder = Encoder.fit(table, spec)
    encoded = encoder.encode(table)
    rows = target.require(encoded.usable)
    count = parse_samples(samples, len(rows))
    draw(len(rows), count, 0)
    parts = _parts(encoder.coordinates)
    study = _Study(
        encoded.x[rows], target.values[rows], keys_of(table)[rows], encoder.coordinates, list(parts.values()), count,
        learner or BoostedTrees(),
    )  # fmt: skip
    measured = each(_measure, study, list(range(seeds)), pool, progress)
    found = np.array([parts_of for _, parts_of in measured])  # [seeds, 2, parts]
    taus = np.array([tau for tau, _ in measured])
    mean = found.mean(axis=0)
    error = found.std(axis=0, ddof=1) / math.sqrt(seeds) if seeds > 1 else np.full_like(mean, np.nan)
    importances = tuple(
        Importance(kind, name, *(float(one[which, at]) for which in (0, 1) for one in (mean, error)))
        for at, (kind, name) in enumerate(parts)
    )
    tau_error = float(taus.std(ddof=1) / math.sqrt(seeds)) if seeds > 1 else math.nan
    unordered = int(np.isnan(found[:, 0]).any(axis=1).sum())
    return Importances(target.target, count, seeds, float(taus.mean()), tau_error, unordered, importances)


def tabulate_importance(found: Importances) -> bytes:
    """Return importances as the content of a Parquet file; what was measured stands in its metadata."""
    sink = pa.BufferOutputStream()
    said = {name: str(value) for name, value in vars(found).items() if name != "rows"}
    pq.write_table(pa.Table.from_pylist([vars(row) for row in found.rows], _TYPES.with_metadata(said)), sink)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def require_figure(path: Path) -> None:
    """Refuse what no figure can be drawn to, before the work.

    Raises:
        UsageError: the file's ending is none of `FIGURES`.
        CapabilityError: matplotlib is not installed.
    """
    _import()
    if path.suffix not in FIGURES:
        raise UsageError(f"{path}: no figure of that kind can be drawn; name it {', '.join(FIGURES)}")


def draw_importance(found: Importances, ending: str) -> bytes:
    """Draw importances: of nodes in network order, and of columns, gain above and permutation below.

    Of more than 40 bars the 40 with the largest gain are drawn.

    Args:
        found: what is drawn.
        ending: of the file, one of `FIGURES`, which says its format.

    Returns:
        The file's content.

    Raises:
        CapabilityError: matplotlib is not installed.
    """
    figure = _import().Figure(figsize=(12, 8), layout="constrained")
    axes = figure.subplots(2, 2, sharex="col")
    for column, (kind, title) in enumerate((("node", "places in the network"), ("column", "statistics and proxies"))):
        every = [row for row in found.rows if row.kind == kind]
        strongest = sorted(every, key=lambda row: -row.gain)[:_SHOWN]
        shown = [row for row in every if row in strongest]
        at = np.arange(len(shown))
        axes[0, column].bar(at, [r.gain for r in shown], yerr=_bars([r.gain_error for r in shown]), color="C0")
        axes[1, column].bar(
            at, [r.permutation for r in shown], yerr=_bars([r.permutation_error for r in shown]), color="C1"
        )
        axes[1, column].set_xticks(at, [row.name for row in shown], rotation=90, fontsize=8)
        axes[0, column].set_title(title if len(shown) == len(every) else f"{title}: {len(shown)} of {len(every)}")
    axes[0, 0].set_ylabel("share of the splits' gain")
    axes[1, 0].set_ylabel("Kendall's tau lost by shuffling")
    figure.suptitle(found.title, fontsize=10)
    content = io.BytesIO()
    figure.savefig(content, format=ending.removeprefix("."))
    return content.getvalue()


def _import() -> Any:  # noqa: ANN401 - a module
    try:
        from matplotlib import figure
    except ImportError as error:
        raise CapabilityError(
            f"figures need matplotlib ({error}); install it with pip install 'zcpipe[plot]'"
        ) from error
    return figure


@dataclass(frozen=True)
class _Study:
    x: Vectors
    y: Floats
    keys: NDArray[np.int64]
    coordinates: tuple[Coordinate, ...]
    parts: list[NDArray[np.int64]]
    samples: int
    learner: BoostedTrees


def _measure(study: _Study, seed: int) -> tuple[float, Floats]:  # Kendall's tau, [2, parts]
    drawn = split(study.keys, study.samples, seed)
    generator = np.random.default_rng(seed)
    test = np.sort(generator.permutation(drawn.test)[:SHUFFLED])
    x, y = study.x[test], study.y[test]
    if any(np.all(labels == labels[0]) for labels in (study.y[drawn.train], y)):  # some draw of few labels leaves such
        return math.nan, np.full((2, len(study.parts)), np.nan)
    context = Context(study.coordinates, study.x, keys=study.keys[drawn.train])
    fitted = study.learner.fit(study.x[drawn.train], study.y[drawn.train], context, seed)
    tau = correlate(fitted.predict(x).mean, y).kendall
    order = generator.permutation(len(x))
    result = np.zeros((2, len(study.parts)))
    whole = fitted.gain.sum()
    for at, own in enumerate(study.parts):
        result[0, at] = fitted.gain[own].sum() / whole if whole else 0.0
        if result[0, at]:  # what no split is on can be shuffled for nothing
            shuffled = x.copy()
            shuffled[:, own] = x[np.ix_(order, own)]
            result[1, at] = tau - np.nan_to_num(correlate(fitted.predict(shuffled).mean, y).kendall)
    return tau, result


def _parts(coordinates: Sequence[Coordinate]) -> dict[tuple[str, str], NDArray[np.int64]]:
    """Return the coordinates of each node and of each column."""
    nodes: dict[tuple[str, str], list[int]] = {}
    columns: dict[tuple[str, str], list[int]] = {}
    for at, coordinate in enumerate(coordinates):
        if coordinate.slot:
            nodes.setdefault(("node", coordinate.slot), []).append(at)
        columns.setdefault(("column", coordinate.column), []).append(at)
    return {name: np.array(own, np.int64) for name, own in (nodes | columns).items()}


def _bars(errors: list[float]) -> list[float] | None:
    return None if np.isnan(errors).any() else errors
