"""Ridge regression whose penalty leave-one-out chooses, in closed form."""

from __future__ import annotations

from collections.abc import Mapping
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
        # Not a product of matrices, whose rounding depends on the other rows.
        shown = np.einsum("ij,j->i", x.astype(np.float64), self.weights) + self.constant
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
        rows = x.astype(np.float64)
        mean, deviation = rows.mean(axis=0), rows.std(axis=0)
        # What is constant in float32 may vary by rounding here.
        deviation[x.min(axis=0) == x.max(axis=0)] = np.inf
        left, singular, right = np.linalg.svd((rows - mean) / deviation, full_matrices=False)
        centred = target - target.mean()
        errors = [loo_error(left, singular, centred, penalty) for penalty in self.penalties]
        penalty = self.penalties[int(np.argmin(errors))]
        weights = right.T @ (singular / (singular**2 + penalty) * (left.T @ centred)) / deviation
        return FittedRidge(weights, float(target.mean() - mean @ weights), scale, penalty)

    def restore(self, record: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]], context: Context) -> FittedRidge:
        """See `Predictor.restore`."""
        weights = array_of(tensors, "weights", np.float64, (len(context.coordinates),))
        constant, penalty = record.get("constant"), record.get("penalty")
        if not (isinstance(constant, float) and isinstance(penalty, float) and np.isfinite([constant, penalty]).all()):
            raise DataError("the record of ridge has no constant and penalty")
        return FittedRidge(weights, constant, Scale.restore(part(tensors, "scale")), penalty)


def loo_error(
    left: Floats,  # [n, k], left singular vectors of centred features
    singular: Floats,  # [k]
    target: Floats,  # [n], centred
    penalty: float,
) -> float:
    """Compute the mean squared error of rows that are left out one by one, with a constant fitted each time.

    It is exact, the centring of the features by the rows that are left included; only their scaling is by all rows.
    """
    kept = singular**2 / (singular**2 + penalty)
    residual = target - left @ (kept * (left.T @ target))
    leverage = 1 / len(target) + (left**2) @ kept
    return float(np.mean((residual / np.maximum(1 - leverage, 1e-12)) ** 2))
