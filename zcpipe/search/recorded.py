"""Scores that are measured are measured once: a journal keeps them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from zcpipe.errors import DataError
from zcpipe.rank.ranking import Floats
from zcpipe.search.journal import Journal
from zcpipe.search.scores import Scores
from zcpipe.spaces.base import Architecture


class RecordedScores:
    """Scores of other scores, each architecture asked for once; what earlier processes measured comes from a journal.

    Args:
        scores: what measures.
        journal: where it is recorded, all architectures of one call together.

    Raises:
        DataError: the journal holds other scores.
    """

    def __init__(self, scores: Scores, journal: Journal) -> None:
        self._scores, self._journal = scores, journal
        self._known: dict[str, dict[str, float]] = {}
        for record in journal.found:
            if record["kind"] == "scored":
                if set(record["scores"]) != set(scores.directions):
                    there, here = (", ".join(sorted(names)) for names in (record["scores"], scores.directions))
                    raise DataError(f"the journal holds scores of {there}, not of {here}; give another --out")
                self._learn(record["archs"], record["scores"])

    @property
    def directions(self) -> Mapping[str, str]:
        """Those of the scores."""
        return self._scores.directions

    def score(self, archs: Sequence[Architecture]) -> dict[str, Floats]:
        """Score architectures, and measure those that are new."""
        texts = [str(arch) for arch in archs]
        new = {text: arch for text, arch in zip(texts, archs, strict=True) if text not in self._known}
        if new:
            found = {name: values.tolist() for name, values in self._scores.score(list(new.values())).items()}
            self._journal.append({"kind": "scored", "archs": list(new), "scores": found})
            self._learn(list(new), found)
        return {name: np.array([self._known[text][name] for text in texts], np.float64) for name in self.directions}

    def _learn(self, texts: Sequence[str], scores: Mapping[str, Sequence[float]]) -> None:
        for position, text in enumerate(texts):
            self._known[text] = {name: values[position] for name, values in scores.items()}
