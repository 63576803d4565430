"""Ridge regression whose penalty leave-one-out chooses, in closed form.

Of many rows some are worked through at a time, so that there is no copy of all in double precision.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from zcpipe.errors import DataError
from zcpipe.parzc.arrays import Tensors, array_of, part, prefixed
from zcpipe.parzc.predictors import defaults
from zcpipe.parzc.predictors.base import (
    Context,
    Floats,
    Parameters,
    Prediction,
    Range,
    Vectors,
    require_labelled,
    require_no_start,
    require_vectors,
)
from zcpipe.parzc.predictors.targets import Scale, Shown

_AT_ONCE = 1 << 22  # values of a block in double precision, unless it is as many rows as features


@dataclass(frozen=True)
class FittedRidge:
    """A linear function of the features; it gives no uncertainty.

    Attributes:
        weights: [d].
        constant: what is added.
        scale: of the targets.
        penalty: that leave-one-out chose.
    """

    weights: Floats
    constant: float
    scale: Scale
    penalty: float

    def predict(self, x: Vectors) -> Prediction:
        """Predict; the deviation is NaN.

        Raises:
            UsageError: another number of features.
        """
        require_vectors(x, len(self.weights))
        shown = np.empty(len(x))
        for rows in _blocks(x):
            # Not a product of matrices, whose rounding depends on the other rows.
            shown[rows] = np.einsum("ij,j->i", x[rows].astype(np.float64), self.weights) + self.constant
        return Prediction(self.scale.back(shown), np.full(len(x), np.nan))

    def record(self) -> dict[str, Any]:
        """Return what it is besides its arrays."""
        return {"constant": self.constant, "penalty": self.penalty}

    def tensors(self) -> Tensors:
        """Return the arrays that it consists of."""
        return {"weights": self.weights, **prefixed(self.scale.tensors(), "scale")}


class Ridge(Parameters):
    """Ridge regression on features standardised by the labelled rows; a constant one counts for nothing.

    Attributes:
        penalties: of which the one is taken with the smallest squared error of the rows left out one by one, the first
            of equal ones.
        shown: what the regression sees of the targets, see `Scale`.
    """

    name: ClassVar[str] = "ridge"
    ranges: ClassVar[Mapping[str, Range]] = {"shown": Range(choices=("scores", "raw"))}

    penalties: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = Field(
        default=defaults.RIDGE_PENALTIES, min_length=1, max_length=1000
    )
    shown: Shown = "scores"

    def is_random(self) -> bool:
        """See `Predictor.is_random`: nothing is."""
        return False

    def fit(self, x: Vectors, y: Floats, context: Context, seed: int) -> FittedRidge:
        """See `Predictor.fit`; nothing is random."""
        require_labelled(x, y)
        require_no_start(self.name, context)
        scale = Scale.fit(y, self.shown)
        target = scale.show(y)
        centred = target - target.mean()
        mean = x.mean(axis=0, dtype=np.float64)
        deviation = np.sqrt(sum(((x[rows] - mean) ** 2).sum(axis=0) for rows in _blocks(x)) / len(x))
        # What is constant in float32 may vary by rounding here.
        deviation[x.min(axis=0) == x.max(axis=0)] = np.inf
        # Of the features' matrix the triangle has the singular values and right vectors, and it is small.
        triangle: Floats = np.zeros((0, x.shape[1]))
        along = np.zeros(x.shape[1])
        for rows in _blocks(x):
            standard = (x[rows] - mean) / deviation
            whole = len(standard) == len(x)  # which needs no triangle
            triangle = standard if whole else _triangle(np.vstack([triangle, standard]))
            along += standard.T @ centred[rows]
        _, singular, right = np.linalg.svd(triangle, full_matrices=False)
        along = right @ along
        shrunk = 1 / (singular[:, None] ** 2 + np.array(self.penalties))
        errors = np.zeros(len(self.penalties))
        for rows in _blocks(x):
            projected = (x[rows] - mean) / deviation @ right.T
            errors += (loo_residuals(projected, shrunk, along, centred[rows], len(x)) ** 2).sum(axis=0)
        best = int(np.argmin(errors))
        weights = right.T @ (along * shrunk[:, best]) / deviation
        return FittedRidge(weights, float(target.mean() - mean @ weights), scale, self.penalties[best])

    def restore(self, record: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]], context: Context) -> FittedRidge:
        """See `Predictor.restore`."""
        weights = array_of(tensors, "weights", np.float64, (len(context.coordinates),))
        constant, penalty = record.get("constant"), record.get("penalty")
        if not (isinstance(constant, float) and isinstance(penalty, float) and np.isfinite([constant, penalty]).all()):
            raise DataError("the record of ridge has no constant and penalty")
        return FittedRidge(weights, constant, Scale.restore(part(tensors, "scale")), penalty)


def _triangle(x: Floats) -> Floats:
    found: Floats = np.linalg.qr(x, mode="r")  # type: ignore[assignment]
    return found


def loo_residuals(
    projected: Floats,  # [rows, k], some rows of centred features along their right singular vectors
    shrunk: Floats,  # [k, p], 1 / (squared singular value + penalty)
    along: Floats,  # [k], the projections of all rows times the targets
    target: Floats,  # [rows], centred by all rows
    n: int,  # rows in all
) -> Floats:  # [rows, p]
    """Compute for each penalty what rows that are left out one by one miss, with a constant fitted each time.

    It is exact, the centring of the features by the rows that are left included; only their scaling is by all rows.
    """
    residual = target[:, None] - projected @ (along[:, None] * shrunk)
    leverage = 1 / n + projected**2 @ shrunk
    missed: Floats = residual / np.maximum(1 - leverage, 1e-12)
    return missed


def _blocks(x: Vectors) -> Iterator[slice]:
    """Yield a few rows at a time, the same ones whatever else is computed."""
    step = max(_AT_ONCE // max(x.shape[1], 1), x.shape[1])
    return (slice(start, start + step) for start in range(0, len(x), step))
