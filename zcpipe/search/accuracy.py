"""How accurate an architecture becomes: looked up in a truth file, or trained by the user's own function."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from zcpipe.errors import DataError, UsageError, ZcpipeError, reason_of
from zcpipe.rank.ranking import DIRECTIONS, Floats
from zcpipe.spaces.base import Architecture
from zcpipe.truth import direction_of, read_truth

A_contra = TypeVar("A_contra", bound=Architecture, contravariant=True)


@dataclass(frozen=True)
class Trained:
    """What one training gave.

    Attributes:
        accuracy: the target, which guides the search, in its own unit and direction; finite.
        report: what is only reported, such as the accuracy on the test set; NaN where nothing is.
        seconds: that the training took; finite, and not negative. None where that is to be measured.
    """

    accuracy: float
    report: float = math.nan
    seconds: float | None = None


class TrainingError(ZcpipeError):
    """A training that failed: it is recorded, and the same search again tries it anew (exit code 4).

    ``seconds`` is what it took nevertheless.
    """

    exit_code = DataError.exit_code  # of commands, whose accuracies come from files
    seconds = 0.0


class Accuracy(Protocol[A_contra]):
    """Where accuracies come from.

    Attributes:
        direction: whether "higher" or "lower" accuracies are better.
        target: what the accuracy is called.
        report: what is only reported, None where nothing is.
        measured: whether a training costs something, so that its result is recorded.
        timed: whether its seconds are known.
    """

    direction: str
    target: str
    report: str | None
    measured: bool
    timed: bool

    def train(self, arch: A_contra) -> Trained:
        """Train an architecture.

        Raises:
            TrainingError: it failed.
        """
        ...

    def digest(self) -> str:
        """Name all that there is to be looked up; empty where it is measured."""
        ...


class TruthAccuracy:
    """Accuracies of a truth file (simulated search).

    Args:
        path: a Parquet file with a text column ``arch``.
        target: the column that guides.
        report: a column that is only reported.
        seconds: a column of the seconds that training took, for budgets in seconds.

    Raises:
        UsageError: the file has no such column.
        DataError: it cannot be read, or says of a column that anything else is better than higher or lower values.
    """

    measured = False

    def __init__(self, path: Path | str, target: str, report: str | None = None, seconds: str | None = None) -> None:
        self._path = path
        self.target, self.report, self.timed = target, report, seconds is not None
        texts, self._values = read_truth(path, target)
        self._rows = {text: row for row, text in enumerate(texts)}
        nothing = np.full(len(texts), np.nan)
        self._reports: Floats = nothing if report is None else read_truth(path, report)[1]
        self._seconds: Floats = np.zeros(len(texts)) if seconds is None else read_truth(path, seconds)[1]
        self.direction = direction_of(path, target)
        self.report_direction = None if report is None else direction_of(path, report)

    def known(self, texts: Sequence[str]) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:  # [n]
        """Say of which architectures the target is known."""
        rows = (self._rows.get(text) for text in texts)
        return np.array([row is not None and math.isfinite(self._values[row]) for row in rows], dtype=bool)

    def train(self, arch: Architecture) -> Trained:
        """Look an architecture up.

        Raises:
            TrainingError: the file has no finite value of the target, or no seconds though they are asked for.
        """
        row = self._rows.get(str(arch))
        if row is None or not math.isfinite(self._values[row]):
            raise TrainingError(f"{self._path} has no value of {self.target!r} for {arch}")
        if not 0 <= self._seconds[row] < math.inf:
            raise TrainingError(f"{self._path} does not say how many seconds {arch} took to train")
        return Trained(float(self._values[row]), float(self._reports[row]), float(self._seconds[row]))

    def digest(self) -> str:
        """Name the file's content as far as it is read."""
        digest = hashlib.blake2b("\n".join(self._rows).encode(), digest_size=8)
        for values in (self._values, self._reports, self._seconds):
            digest.update(values.astype("<f8").tobytes())
        return digest.hexdigest()


class Evaluated:
    """Accuracies that a function of the user's measures.

    Args:
        evaluate: given an architecture, returns its accuracy, or a `Trained` with what to report besides.
        direction: whether "higher" or "lower" accuracies are better.
        target: what the accuracy is called.

    Raises:
        UsageError: another direction.
    """

    measured = timed = True

    def __init__(
        self, evaluate: Callable[[Any], float | Trained], direction: str = "higher", target: str = "accuracy"
    ) -> None:
        if direction not in DIRECTIONS:
            raise UsageError(f"unknown direction {direction!r}; give one of {' and '.join(DIRECTIONS)}")
        self._evaluate = evaluate
        self.direction, self.target = direction, target
        self.report: str | None = "report"

    def train(self, arch: Architecture) -> Trained:
        """Call the function, and measure how long it takes unless it says.

        Raises:
            TrainingError: it raised, or returned what is no finite number.
        """
        started = time.perf_counter()
        try:
            return self._trained(arch, started)
        except TrainingError as error:
            error.seconds = time.perf_counter() - started
            raise

    def _trained(self, arch: Architecture, started: float) -> Trained:
        try:
            found = self._evaluate(arch)
        except Exception as error:
            raise TrainingError(f"evaluate raised for {arch}: {reason_of(error)}") from error
        took = time.perf_counter() - started
        given = found if isinstance(found, Trained) else Trained(found)
        said = took if given.seconds is None else given.seconds
        accuracy, report, seconds = (_number(value, found, arch) for value in (given.accuracy, given.report, said))
        if not math.isfinite(accuracy):
            value = "NaN" if math.isnan(accuracy) else accuracy
            raise TrainingError(f"evaluate returned {value} for {arch}: raise where a training fails")
        if not 0 <= seconds < math.inf:
            raise TrainingError(f"evaluate says that {arch} took {seconds:g} seconds; say how many, or nothing")
        return Trained(accuracy, report, seconds)

    def digest(self) -> str:
        """Return nothing: what a function measures has no name."""
        return ""


def _number(value: Any, found: Any, arch: Architecture) -> float:  # noqa: ANN401 - whatever the function returned
    """Return a number of any kind, numpy's and torch's among them, as the float that a journal can hold."""
    said = f"evaluate returned {found!r:.60} for {arch}; return a number, or a zcpipe.search.Trained"
    if isinstance(value, str | bytes):
        raise TrainingError(said)
    try:
        return float(value)
    except Exception as error:
        raise TrainingError(said) from error


def require_known(accuracy: TruthAccuracy, texts: Sequence[str]) -> None:
    """Refuse to search among architectures of which some have no truth.

    Raises:
        DataError: how many, and which is the first.
    """
    known = accuracy.known(texts)
    if not known.all():
        first = texts[int(np.argmin(known))]
        raise DataError(
            f"{np.count_nonzero(~known)} of {len(texts)} candidates have no value of {accuracy.target!r} in the truth "
            f"file, the first is {first}; leave them out with --known-only, or give a truth file that has all"
        )
