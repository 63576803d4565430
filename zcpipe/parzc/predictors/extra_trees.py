"""Extremely randomised trees (Geurts et al., 2006), grown by scikit-learn and kept as arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from zcpipe.errors import CapabilityError
from zcpipe.parzc.arrays import Tensors, part, prefixed
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
from zcpipe.parzc.predictors.forest import Forest, summed
from zcpipe.parzc.predictors.targets import Scale, Shown


@dataclass(frozen=True)
class FittedTrees:
    """Trees whose mean is the prediction and whose standard deviation is its uncertainty."""

    forest: Forest
    scale: Scale
    features: int

    def shown(self, x: Vectors) -> Floats:
        """Return the trees' mean before it becomes a target: [n], what scikit-learn predicts."""
        return self.forest.total(x) / len(self.forest)

    def predict(self, x: Vectors) -> Prediction:
        """Predict; the deviation is that of the trees' predictions as targets.

        Raises:
            UsageError: another number of features.
        """
        require_vectors(x, self.features)
        shown, std = np.empty(len(x)), np.empty(len(x))
        for rows, values in self.forest.values(x):
            shown[rows] = summed(values) / len(self.forest)
            targets = self.scale.back(values)
            targets -= summed(targets) / len(self.forest)
            std[rows] = np.sqrt(summed(targets**2) / len(self.forest))
        return Prediction(self.scale.back(shown), std)

    def record(self) -> dict[str, Any]:
        """Return what it is besides its arrays: nothing."""
        return {}

    def tensors(self) -> Tensors:
        """Return the arrays that it consists of."""
        return {**prefixed(self.forest.tensors(), "forest"), **prefixed(self.scale.tensors(), "scale")}


class ExtraTrees(Parameters):
    """Extremely randomised trees.

    Attributes:
        trees: how many.
        max_features: the share of the features that a split chooses from.
        min_leaf: the fewest labelled rows in a leaf.
        shown: what the trees see of the targets, see `Scale`.
    """

    name: ClassVar[str] = "extra-trees"
    ranges: ClassVar[Mapping[str, Range]] = {
        "max_features": Range(0.03, 1.0, log=True),
        "min_leaf": Range(choices=(1, 2, 3, 5)),
        "shown": Range(choices=("scores", "raw")),
    }

    trees: int = Field(default=defaults.EXTRA_TREES, ge=1, le=100_000)
    max_features: float = Field(default=defaults.EXTRA_TREES_FEATURES, gt=0, le=1)
    min_leaf: int = Field(default=1, ge=1)
    shown: Shown = "scores"

    def fit(self, x: Vectors, y: Floats, context: Context, seed: int) -> FittedTrees:
        """See `Predictor.fit`."""
        try:
            from sklearn.ensemble import ExtraTreesRegressor
        except ImportError as error:
            raise CapabilityError(
                f"extra-trees needs scikit-learn ({error}); install it with pip install 'zcpipe[parzc]'"
            ) from error
        require_labelled(x, y)
        require_no_start(self.name, context)
        scale = Scale.fit(y, self.shown)
        regressor = ExtraTreesRegressor(
            self.trees,
            max_features=self.max_features,
            min_samples_leaf=self.min_leaf,
            random_state=np.random.RandomState(np.random.MT19937(seed)),
            n_jobs=1,
        )
        grown = [one.tree_ for one in regressor.fit(x, scale.show(y)).estimators_]
        trees = [(t.children_left, t.children_right, t.feature, t.threshold, t.value[:, 0, 0]) for t in grown]
        return FittedTrees(Forest.of(trees), scale, x.shape[1])

    def restore(self, record: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]], context: Context) -> FittedTrees:
        """See `Predictor.restore`."""
        features = len(context.coordinates)
        forest = Forest.restore(part(tensors, "forest"), self.trees, features)
        return FittedTrees(forest, Scale.restore(part(tensors, "scale")), features)
