"""Labels: trained accuracies of a table's architectures, and which of them are drawn for training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zcpipe.errors import DataError, UsageError
from zcpipe.parzc.training import FEWEST
from zcpipe.table import Table
from zcpipe.truth import align, direction_of, read_truth

Floats = NDArray[np.float64]
Positions = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Labels:
    """One column of a truth file for the rows of a table.

    Attributes:
        target: the column's name.
        direction: "higher" or "lower", whichever is better.
        values: [n] in order of index, NaN where the truth does not know the architecture.
    """

    target: str
    direction: str
    values: Floats

    @classmethod
    def read(cls, table: Table, path: Path | str, target: str) -> Labels:
        """Look up the truth of a table's architectures.

        Raises:
            UsageError: the file has no such column.
            DataError: it cannot be read, knows none of the architectures, holds an infinite label, or says of the
                column that anything else is better than higher or lower values.
        """
        truth = read_truth(path, target)
        texts: list[str] = table.to_arrow(["arch"])["arch"].to_pylist()
        values = align(texts, truth)
        infinite = np.flatnonzero(np.isinf(values))
        if len(infinite):
            raise DataError(
                f"{path}: column {target!r} is infinite for {len(infinite)} of the table's architectures, the first of "
                f"them {texts[infinite[0]]}; correct it, or make it null: that is no label"
            )
        return cls(target, direction_of(path, target), values)

    def require(self, usable: Bools) -> Positions:
        """Return the rows that have a label and all features, ascending.

        Raises:
            DataError: there are fewer than 10 of them, or their labels are all equal.
        """
        known = ~np.isnan(self.values)
        rows = np.flatnonzero(known & usable)
        if len(rows) < FEWEST:
            raise DataError(
                f"{len(rows)} of the table's {len(usable)} architectures have a value of {self.target!r} and all "
                f"features ({int(known.sum())} have the value, {int(usable.sum())} the features); at least {FEWEST} "
                "are needed"
            )
        values = self.values[rows]
        if np.all(values == values[0]):
            raise DataError(
                f"target {self.target!r} is constant ({values[0]:g}) over all {len(rows)} labelled architectures: "
                "there is no order to learn"
            )
        return rows


@dataclass(frozen=True)
class Split:
    """Rows to learn from and rows to test on, ascending; no architecture of the one has the key of one of the other."""

    train: Positions
    test: Positions


def split(keys: NDArray[np.int64], samples: int, seed: int) -> Split:
    """Draw rows to learn from, and find those to test on.

    With one seed more samples hold all of fewer.

    Args:
        keys: of each row, [n], as any numbers.
        samples: how many rows to learn from.
        seed: of the draw.

    Returns:
        The rows drawn, and all whose key is not among theirs.

    Raises:
        DataError: fewer than 10 samples, or fewer than 2 rows are left to test on.
    """
    train = draw(len(keys), samples, seed)
    test = np.flatnonzero(~np.isin(keys, keys[train]))
    if len(test) < 2:
        raise DataError(
            f"with {samples} of {len(keys)} architectures to learn from, {len(test)} with other keys are left to test "
            "on; use fewer --samples"
        )
    return Split(train, test)


def keys_of(table: Table) -> NDArray[np.int64]:
    """Return the key of each row of a table as a number."""
    keys = table.to_arrow(["key"])["key"].cast("large_string")  # one dictionary may hold more than 2 GiB
    numbers: NDArray[np.int64] = keys.combine_chunks().dictionary_encode().indices.to_numpy()
    return numbers


def require_seeds(seeds: int, seed: int = 0) -> None:
    """Refuse numbers of seeds, and first seeds, that are none.

    Raises:
        UsageError: there is no seed, a negative one, or one beyond the integers of a Parquet file.
    """
    if seeds < 1:
        raise UsageError(f"seeds must be at least 1, got {seeds}")
    if seed < 0:
        raise UsageError(f"seed must be at least 0, got {seed}")
    if seed + seeds > 2**63:
        raise UsageError(f"seeds must be less than 2**63, got {seeds} from {seed} on")


def draw(n: int, samples: int, seed: int) -> Positions:
    """Draw ``samples`` of n rows without replacement; returns them ascending.

    Raises:
        DataError: fewer than 10 samples, or more than there are rows.
    """
    if samples < FEWEST:
        raise DataError(f"{samples} labelled architectures are too few to learn from; give at least {FEWEST}")
    if samples > n:
        raise DataError(
            f"{samples} samples were asked for, but {n} architectures have a label and all features; give fewer"
        )
    return np.sort(np.random.default_rng(seed).permutation(n)[:samples])


def parse_samples(text: str, n: int) -> int:
    """Read a number of samples: a count, or a share of n such as ``20%`` (rounded, a half up).

    Raises:
        UsageError: it is neither.
    """
    cleaned = text.strip()
    try:
        if cleaned.endswith("%"):
            share = float(cleaned[:-1])
            if 0 < share <= 100:
                return math.floor(share / 100 * n + 0.5)
        elif cleaned.isdecimal():
            return int(cleaned)
    except ValueError:
        pass
    raise UsageError(f"samples must be counts or shares such as 78 or 20%, got {text!r}")
