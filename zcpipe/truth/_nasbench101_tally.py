"""What NAS-Bench-101's files say of single trainings, added up by member of the space."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

import numpy as np

from zcpipe.errors import DataError, UsageError
from zcpipe.spaces.graphs import nasbench101_canonical, nasbench101_cells, nasbench101_encode, nasbench101_hashes
from zcpipe.truth._nasbench101_metrics import Metrics
from zcpipe.untrusted.plain import shown

EPOCHS = (108, 36, 12, 4)  # that the benchmark trained for
VALUES = ("validation", "test", "train", "seconds")

_VERTICES = {n * n: n for n in range(2, 8)}  # by the length of a matrix written out


class Run(NamedTuple):
    """One training, as a file states it and unchecked."""

    place: str  # in the file, for messages
    hash: object
    adjacency: object  # zeros and ones, row by row
    operations: object  # joined by commas
    epochs: object
    metrics: Metrics


class Tally:
    """Sums over the repeats of each member and number of epochs.

    Attributes:
        codes: of the members in the order of the space, [cells].
        counts: repeats, [cells, epochs].
        sums: of the values of `VALUES`, accuracies as fractions, [cells, epochs, values].
        params: trainable parameters, -1 where no file told, [cells].
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._known: dict[bytes, int] = {}  # digest of a cell as files write it -> index
        self.codes = nasbench101_cells()
        self.counts = np.zeros((len(self.codes), len(EPOCHS)), np.int32)
        self.sums = np.zeros((len(self.codes), len(EPOCHS), len(VALUES)))
        self.params = np.full(len(self.codes), -1, np.int64)

    def add(self, runs: Sequence[Run]) -> None:
        """Add trainings, in order.

        Raises:
            DataError: one is none that the benchmark could hold; the message names its place.
        """
        digests = [self._digest(run) for run in runs]
        self._learn({digest: run for digest, run in zip(digests, runs, strict=True) if digest not in self._known})
        cells = np.fromiter((self._known[digest] for digest in digests), np.int64, len(runs))
        epochs = np.fromiter(map(self._epochs, runs), np.int64, len(runs))
        values = np.array([self._values(run) for run in runs], np.float64).reshape(len(runs), len(VALUES))
        params = np.array([self._params(run) for run in runs], np.int64)
        before = self.params[cells]
        self.params[cells] = params
        other = (self.params[cells] != params) | (before >= 0) & (before != params)
        if other.any():
            self._refuse(runs[int(np.argmax(other))], "another record of its cell states another number of parameters")
        np.add.at(self.counts, (cells, epochs), 1)
        np.add.at(self.sums, (cells, epochs), values)

    def _digest(self, run: Run) -> bytes:
        for text in (run.hash, run.adjacency, run.operations):
            if not isinstance(text, str) or len(text) > 256:
                self._refuse(run, f"{shown(text)} is no hash, adjacency matrix or list of operations")
        text = f"{run.hash} {run.adjacency} {run.operations}"
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()

    def _learn(self, new: dict[bytes, Run]) -> None:
        """Find the members of cells not met before, and check their hashes."""
        if not new:
            return
        runs = list(new.values())
        codes = nasbench101_canonical([self._code(run) for run in runs])
        places = np.minimum(np.searchsorted(self.codes, codes), len(self.codes) - 1)
        for run, code, place in zip(runs, codes.tolist(), places.tolist(), strict=True):
            if self.codes[place] != code:
                self._refuse(run, "its cell is not connected or has more than 9 edges")
        for run, found in zip(runs, nasbench101_hashes(codes), strict=True):
            if run.hash != found:
                self._refuse(run, f"states the hash {shown(run.hash)}, but its cell has {found}")
        self._known.update(zip(new, places.tolist(), strict=True))

    def _code(self, run: Run) -> int:
        adjacency, operations = str(run.adjacency), str(run.operations).split(",")
        vertices = _VERTICES.get(len(adjacency), 0)
        if not vertices or set(adjacency) - {"0", "1"}:
            self._refuse(run, f"{shown(adjacency)} is no adjacency matrix of 2 to 7 vertices")
        if len(operations) < 2 or operations[0] != "input" or operations[-1] != "output":
            self._refuse(run, f"the operations {shown(run.operations)} do not begin with input and end with output")
        matrix = np.array(list(map(int, adjacency))).reshape(vertices, vertices)
        try:
            return nasbench101_encode(matrix, operations[1:-1])
        except UsageError as error:
            self._refuse(run, f"its cell is none ({error})")

    def _epochs(self, run: Run) -> int:
        if type(run.epochs) is not int or run.epochs not in EPOCHS:
            self._refuse(run, f"{shown(run.epochs)} epochs, expected one of {', '.join(map(str, sorted(EPOCHS)))}")
        return EPOCHS.index(run.epochs)

    def _values(self, run: Run) -> tuple[float, float, float, float]:
        _, seconds, *accuracies = run.metrics
        if not all(type(value) in (int, float) and 0 <= value <= 1 for value in accuracies):  # NaN fails too
            self._refuse(run, f"an accuracy of {', '.join(map(shown, accuracies))} is none between 0 and 1")
        if type(seconds) not in (int, float) or not 0 <= seconds < math.inf:
            self._refuse(run, f"a training time of {shown(seconds)} s is none")
        return run.metrics.validation, run.metrics.test, run.metrics.train, seconds

    def _params(self, run: Run) -> int:
        params = run.metrics.params
        if type(params) is not int or not 0 < params < 1 << 31:
            self._refuse(run, f"{shown(params)} is no number of parameters")
        return params

    def _refuse(self, run: Run, why: str) -> NoReturn:
        raise DataError(f"{self._where}: {run.place}: {why}; the file is damaged or foreign")
