"""A table of NAS-Bench-201 beside its truth, in arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from nasbench201_published import TEST, VALIDATION

from zcpipe.table import Table
from zcpipe.truth import align, read_truth


@dataclass(frozen=True)
class Population:
    """Architectures by column: everything is [n], in order of index."""

    index: np.ndarray
    keys: np.ndarray
    columns: dict[str, np.ndarray]
    directions: dict[str, str]
    truth: dict[str, np.ndarray]

    def digest(self) -> str:
        """Name which architectures these are and what their columns hold."""
        held = hashlib.blake2b(digest_size=16)
        for values in (self.index, *self.columns.values()):
            held.update(np.ascontiguousarray(values).tobytes())
        return held.hexdigest()

    def cut(self, inside: np.ndarray) -> Population:
        """Keep the architectures of a mask."""
        columns = {name: values[inside] for name, values in self.columns.items()}
        truth = {name: values[inside] for name, values in self.truth.items()}
        return replace(self, index=self.index[inside], keys=self.keys[inside], columns=columns, truth=truth)

    def distinct(self) -> Population:
        """Keep the first architecture of each key."""
        inside = np.zeros(len(self.keys), dtype=bool)
        inside[np.unique(self.keys, return_index=True)[1]] = True
        return self.cut(inside)

    def failed_last(self) -> Population:
        """Give what has no score the worst."""
        worst = {name: -np.inf if way == "higher" else np.inf for name, way in self.directions.items()}
        filled = {name: np.where(np.isnan(v), worst.get(name, np.nan), v) for name, v in self.columns.items()}
        return replace(self, columns=filled)


def load(table: Table, truth: Path, asked: Collection[int] | None = None) -> Population:
    """Read counts and proxies of a table, and what is known of its architectures; counts come first.

    Args:
        table: what may hold more than a run of the study asks for, which earlier runs have put there.
        truth: the file of accuracies.
        asked: indices of the architectures to read, None for all. Columns that lack some of these are left out.
    """
    rows = table.to_arrow(["index", "arch", "key"])
    archs = rows["arch"].to_pylist()
    names = [column.name for kind in ("count", "proxy") for column in table.columns if column.kind == kind]
    index, values = rows["index"].to_numpy(), table.values(names)
    inside = np.ones(len(index), dtype=bool) if asked is None else np.isin(index, list(asked))
    lacking = table.missing(values)
    names = [name for name in names if not lacking[name][inside].any()]
    directed = [column.name for column in table.columns if column.direction != "none" and column.name in names]
    whole = Population(
        index=index,
        keys=np.array(rows["key"].to_pylist()),
        columns={name: values[name] for name in names},
        directions=table.directions(directed),
        truth={target: np.asarray(align(archs, read_truth(truth, target))) for target in (TEST, VALIDATION)},
    )
    return whole.cut(inside)
