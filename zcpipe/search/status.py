"""How far a search is, read from its directory, also while it is going on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from zcpipe.search.journal import NAME, read
from zcpipe.search.result import PICKS
from zcpipe.table.files import damage


@dataclass(frozen=True)
class SearchStatus:
    """What a search has recorded so far.

    Attributes:
        path: its directory.
        identity: what decides what it finds, as its journal says.
        scored: architectures that were scored for it; none where scores are looked up in a table.
        trained: models that were trained with success, by seed. Accuracies that are looked up are recorded when a seed
            is done.
        failed: trainings that failed, and did not succeed later.
        picks: the best of each seed, as the last call that came to its end wrote them; none before.
    """

    path: Path
    identity: Mapping[str, Any]
    scored: int
    trained: Mapping[int, int]
    failed: int
    picks: list[dict[str, Any]]

    @property
    def algorithm(self) -> str:
        """Its name."""
        return str(self.identity.get("algorithm", self.identity["kind"]))

    @property
    def searched(self) -> tuple[str, str]:
        """The space and the data set."""
        holder = self.identity["scores"] if self.identity["kind"] == "aznas" else self.identity
        return holder["space"], holder["dataset"]


def is_search(directory: Path | str) -> bool:
    """Whether a directory is one of a search."""
    return (Path(directory) / NAME).is_file()


def search_status(directory: Path | str) -> SearchStatus:
    """Read how far a search is; nothing is changed, and no process that searches is disturbed.

    Raises:
        DataError: the directory is not one of a search, or what it holds is damaged.
    """
    path = Path(directory)
    identity, *records = read(path)
    scored: set[str] = set()
    trained: defaultdict[int, set[str]] = defaultdict(set)
    failed: set[tuple[int, str]] = set()
    for record in records:
        if record["kind"] == "trained" and record["failure"]:
            failed.add((record["seed"], record["arch"]))
        elif record["kind"] == "trained":
            trained[record["seed"]].add(record["arch"])
            failed.discard((record["seed"], record["arch"]))
        elif record["kind"] == "seed":
            trained[record["seed"]].update(record["archs"])
        else:
            scored.update(record["archs"])
    picks: list[dict[str, Any]] = []
    if (path / PICKS).is_file():
        with damage(path / PICKS, "delete it; the same search writes it again"):
            picks = pq.read_table(path / PICKS).to_pylist()
    counts = {seed: len(archs) for seed, archs in trained.items()}
    return SearchStatus(path, identity, len(scored), counts, len(failed), picks)
