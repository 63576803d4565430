"""How far a search is, read from its directory, also while it is going on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from zcpipe.errors import DataError
from zcpipe.search.journal import NAME, Record, read
from zcpipe.search.live import KIND
from zcpipe.search.result import PICKS
from zcpipe.table.files import damage, disk_errors
from zcpipe.table.place import Place, locate
from zcpipe.table.store import HEADER

_PLAIN = (int, float, str, type(None))  # what a pick may hold


@dataclass(frozen=True)
class SearchStatus:
    """What a search has recorded so far.

    Attributes:
        path: its directory.
        algorithm: its name.
        space: what it searches.
        dataset: for which data set.
        scored: architectures that were scored for it; none where scores are looked up in a table.
        trained: models that were trained with success, by seed. Accuracies that are looked up are recorded when a seed
            is done.
        failed: trainings that failed, and did not succeed later.
        picks: the best of each seed when a call last came to its end, as it wrote them; none before.
        identity: what decides what it finds, as its journal says.
    """

    path: Path
    algorithm: str
    space: str
    dataset: str
    scored: int
    trained: Mapping[int, int]
    failed: int
    picks: list[dict[str, Any]]
    identity: Mapping[str, Any]


def is_search(directory: str | Place) -> bool:
    """Whether a directory is one of a search, and not of a table."""
    place = locate(directory)
    if not isinstance(place, Path):
        return False
    with disk_errors("use", place, "name the directory of a table or a search"):
        return (place / NAME).is_file() and not (place / HEADER).exists()


def search_status(directory: str | Path) -> SearchStatus:
    """Read how far a search is; nothing is changed, and no process that searches is disturbed.

    Raises:
        UsageError: the directory is an address that names nothing.
        DataError: it is not one of a search, or what it holds is damaged or of another zcpipe.
    """
    if not isinstance(path := locate(directory), Path):
        raise DataError(f"{path} holds no search: these are on local disks")
    identity, *records = read(path)
    try:
        holder = identity["scores"] if identity["kind"] == "aznas" else identity
        picks = _picks(path / PICKS) if (path / PICKS).is_file() else []
        return SearchStatus(
            path,
            identity["algorithm"] if identity["kind"] == "search" else identity["kind"],
            holder["space"],
            holder["dataset"],
            *_counts(records),
            picks,
            identity,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} holds records that this zcpipe does not know; ask the one that made them") from error


def _counts(records: Sequence[Record]) -> tuple[int, dict[int, int], int]:
    """Return how many architectures were scored, models trained by seed, and trainings failed."""
    scored: set[str] = set()
    trained: defaultdict[int, set[str]] = defaultdict(set)
    failed: set[tuple[int, str]] = set()
    for record in records:
        if record["kind"] in ("scored", KIND):
            scored.update(record["archs"])
        elif record["kind"] == "seed":
            trained[record["seed"]].update(record["archs"])
        elif record["failure"]:
            failed.add((record["seed"], record["arch"]))
        else:
            trained[record["seed"]].add(record["arch"])
            failed.discard((record["seed"], record["arch"]))
    for seed, arch in failed:  # of a seed that is done all are told, those that failed and were passed over as well
        trained[seed].discard(arch)
    return len(scored), {seed: len(archs) for seed, archs in trained.items()}, len(failed)


def _picks(path: Path) -> list[dict[str, Any]]:
    """Return the picks of all seeds.

    Raises:
        DataError: the file is damaged.
        KeyError: it is another one.
        TypeError, ValueError: likewise.
    """
    with damage(path, "delete it; the same search writes it again"):
        picks: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    for pick in picks:
        float(pick["accuracy"] if "accuracy" in pick else pick["aggregate"])
        if not all(isinstance(value, _PLAIN) for value in (pick["seed"], pick["arch"], *pick.values())):
            raise TypeError(f"no pick: {pick}")
    return picks
