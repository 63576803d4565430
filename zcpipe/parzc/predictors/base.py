"""What a predictor is: it learns from labelled feature vectors, and what it learnt can be kept in a file of arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator

from zcpipe.errors import DataError, UsageError, first_fault
from zcpipe.parzc.arrays import Tensors
from zcpipe.parzc.features import Coordinate, token_layout
from zcpipe.parzc.places import GRAPH
from zcpipe.parzc.training import FEWEST

Floats = NDArray[np.float64]  # [n]
Vectors = NDArray[np.float32]  # [n, d]


@dataclass(frozen=True)
class Context:
    """What is known of the features besides the labelled rows.

    Attributes:
        coordinates: what each feature is, [d].
        population: the features of every architecture that the encoder was fitted on, [N, d]; no label among them.
        init: what training starts from, of the same predictor; None to start anew.
        keys: of each labelled row, as any numbers; rows of one key are one network and stay together wherever some of
            the labelled rows are held out. None where all differ.
    """

    coordinates: tuple[Coordinate, ...]
    population: Vectors
    init: Fitted | None = None
    keys: NDArray[np.int64] | None = None

    @cached_property
    def layout(self) -> NDArray[np.int64]:
        """How networks cut a vector into tokens, [tokens, width], -1 where a token has nothing.

        Raises:
            DataError: as `token_layout`.
        """
        return token_layout(self.coordinates)

    def part(self, own: NDArray[np.int64], init: Fitted | None = None) -> Context:
        """Return the context of some of the features, by their positions."""
        coordinates = tuple(self.coordinates[at] for at in own)
        return Context(coordinates, columns(self.population, own), init, self.keys)


@dataclass(frozen=True)
class Prediction:
    """A predictive distribution of each row's target: mean and standard deviation, [n] each.

    The order of the means is the ranking. A deviation is NaN where the predictor has none.
    """

    mean: Floats
    std: Floats


class Fitted(Protocol):
    """What came of a training."""

    def predict(self, x: Vectors) -> Prediction:
        """Predict rows [n, d], each by itself: the others have no influence, save on the rounding of networks."""
        ...

    def record(self) -> dict[str, Any]:
        """Return what it is besides its arrays, as JSON can hold it."""
        ...

    def tensors(self) -> Tensors:
        """Return the arrays that it consists of."""
        ...


class Predictor(Protocol):
    """A way to learn, with its parameters.

    Attributes:
        name: what it is called.
        ranges: what `zcpipe.parzc.tuning` may choose, by parameter.
    """

    name: ClassVar[str]
    ranges: ClassVar[Mapping[str, Range]]

    def fit(self, x: Vectors, y: Floats, context: Context, seed: int) -> Fitted:
        """Learn from labelled rows.

        Args:
            x: features, [n, d] float32, finite.
            y: targets, [n], finite; the higher, the better or the worse, as you like.
            context: what else is known.
            seed: of all that is random.

        Raises:
            UsageError: ``context.init`` is nothing to start from.
            DataError: too few rows, or a constant target.
            CapabilityError: a library is not installed.
        """
        ...

    def is_random(self) -> bool:
        """Whether trainings under other seeds may give another result."""
        ...

    def restore(self, record: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]], context: Context) -> Fitted:
        """Rebuild what ``record()`` and ``tensors()`` of a `Fitted` gave.

        Raises:
            DataError: they do not fit each other or the features.
        """
        ...


PARTS = ("all", "statistics", "proxies", "both")
"""Parts of the features: all, the statistics of nodes, the scalar proxies and counts, or both without the graph."""


def part_of(coordinates: Sequence[Coordinate], part: str) -> NDArray[np.int64]:
    """Return which features make a part, one of `PARTS`."""
    graph = [coordinate.group == GRAPH for coordinate in coordinates]
    scalar = [coordinate.group == "" for coordinate in coordinates]
    wanted = {
        "all": [True] * len(coordinates),
        "statistics": [not (g or s) for g, s in zip(graph, scalar, strict=True)],
        "proxies": scalar,
        "both": [not g for g in graph],
    }
    return np.flatnonzero(wanted[part]).astype(np.int64)


def columns(x: Vectors, own: NDArray[np.int64]) -> Vectors:
    """Return some of the columns, by their ascending positions: without a copy where they stand side by side."""
    if len(own) and own[-1] - own[0] + 1 == len(own):
        return x[:, own[0] : own[-1] + 1]
    return x[:, own]


@dataclass(frozen=True)
class Range:
    """What a parameter may become when parameters are chosen: one of ``choices``, or a number from low to high."""

    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[Any, ...] = ()


class Parameters(BaseModel):
    """Parameters of a predictor, which say in one line what is wrong with them.

    Raises:
        UsageError: a parameter is unknown or out of its range.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    def is_random(self) -> bool:
        """See `Predictor.is_random`: most are."""
        return True

    @model_validator(mode="wrap")
    @classmethod
    def _in_one_line(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:  # noqa: ANN401
        try:
            return handler(data)
        except ValidationError as error:
            name = getattr(cls, "name", "predictor")
            raise UsageError(f"invalid parameter of {name}: {first_fault(error, cls.model_fields)}") from None


def require_labelled(x: Vectors, y: Floats) -> None:
    """Refuse what nothing can be learnt from.

    Raises:
        UsageError: shapes or dtypes do not fit.
        DataError: fewer than 10 rows, values that are not finite, or a constant target.
    """
    require_vectors(x, x.shape[1] if x.ndim == 2 else 0)
    if y.shape != (len(x),):
        raise UsageError(f"y: got shape {y.shape}, expected {(len(x),)}, a target for each row")
    if len(y) < FEWEST:
        raise DataError(f"{len(y)} labelled architectures are too few to learn from; give at least {FEWEST}")
    if not np.isfinite(y).all():
        raise DataError(f"{np.count_nonzero(~np.isfinite(y))} of {len(y)} targets are not finite")
    if np.all(y == y[0]):
        raise DataError(f"the target is {y[0]:g} for all {len(y)} labelled architectures: there is no order to learn")


def require_vectors(x: Vectors, features: int) -> None:
    """Refuse what are no feature vectors.

    Raises:
        UsageError: ``x`` is not [n, features] float32.
        DataError: a value is not finite.
    """
    if x.ndim != 2 or x.dtype != np.float32 or x.shape[1] != features:
        raise UsageError(f"x: got {x.dtype} of shape {x.shape}, expected float32 [n, {features or 'd'}]")
    if not np.isfinite(x).all():
        row = int(np.argmin(np.isfinite(x).all(axis=1)))
        raise DataError(f"row {row} of the features holds a value that is not finite; leave such rows out")


def require_no_start(name: str, context: Context) -> None:
    """Refuse to start a learner from another that has no weights to go on with.

    Raises:
        UsageError: there is something to start from.
    """
    if context.init is not None:
        raise UsageError(f"{name} learns in one go and cannot start from a model; leave --init out, or train mabn")
