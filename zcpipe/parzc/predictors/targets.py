"""What a learner is shown of the targets, and how what it predicts becomes a target again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from zcpipe.errors import DataError
from zcpipe.parzc.arrays import Tensors, array_of
from zcpipe.parzc.predictors.base import Floats, Prediction
from zcpipe.rank import ranks

Shown = Literal["scores", "raw"]


@dataclass(frozen=True)
class Scale:
    """A strictly increasing map from targets to what a learner is shown, and back.

    "scores" shows the normal score of a target's mid-rank among the labelled rows, norm.ppf((rank - 1/2) / n): the
    order alone, so that outliers and the gaps between accuracies have no say. "raw" shows targets by mean and standard
    deviation. Between its points the map is linear, and beyond them it goes on with ``slope``.

    Attributes:
        values: targets, ascending.
        shown: what is shown for each, ascending.
        slope: of the targets over what is shown, beyond the points.
    """

    values: Floats  # [m], m at least 2
    shown: Floats  # [m]
    slope: float

    @classmethod
    def fit(cls, y: Floats, shown: Shown) -> Self:
        """Take the map from the labelled rows' targets, [n], not all equal."""
        if shown == "raw":
            mean, deviation = float(y.mean()), float(y.std())
            return cls(np.array([mean, mean + deviation]), np.array([0.0, 1.0]), deviation)
        from scipy.special import ndtri

        values, first = np.unique(y, return_index=True)
        scores = ndtri((ranks(y)[first] - 0.5) / len(y))
        return cls(values, scores, float((values[-1] - values[0]) / (scores[-1] - scores[0])))

    def show(self, y: Floats) -> Floats:
        """Map targets to what is shown."""
        return _along(y, self.values, self.shown, 1 / self.slope)

    def back(self, shown: Floats) -> Floats:
        """Map what was predicted to targets, an array of any shape."""
        return _along(shown, self.shown, self.values, self.slope)

    def prediction(self, mean: Floats, deviation: Floats) -> Prediction:
        """Make a prediction of targets from one of what is shown, [n] each.

        The deviation is a half of what lies between the targets of one deviation below and above.
        """
        low, high = self.back(mean - deviation), self.back(mean + deviation)
        return Prediction(self.back(mean), (high - low) / 2)

    def tensors(self) -> Tensors:
        """Return the arrays that it consists of."""
        return {"values": self.values, "shown": self.shown, "slope": np.array([self.slope])}

    @classmethod
    def restore(cls, tensors: Mapping[str, NDArray[Any]]) -> Self:
        """Rebuild it from `tensors`.

        Raises:
            DataError: they are no such map.
        """
        values = array_of(tensors, "values", np.float64, (None,))
        shown = array_of(tensors, "shown", np.float64, values.shape)
        slope = float(array_of(tensors, "slope", np.float64, (1,))[0])
        if len(values) < 2 or (np.diff(values) <= 0).any() or (np.diff(shown) <= 0).any() or slope <= 0:
            raise DataError("the map of the targets does not increase")
        return cls(values, shown, slope)


def _along(at: Floats, x: Floats, y: Floats, slope: float) -> Floats:
    beyond = np.minimum(at - x[0], 0.0) + np.maximum(at - x[-1], 0.0)
    result: Floats = np.interp(at, x, y) + slope * beyond
    return result
