"""Gradient-boosted trees, grown by xgboost and kept as arrays.

xgboost's own format is not used for files: reading it is native code's, which a hostile file could lead astray.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from zcpipe.errors import CapabilityError, DataError
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
from zcpipe.parzc.predictors.forest import Forest, Tree
from zcpipe.parzc.predictors.targets import Scale, Shown
from zcpipe.parzc.training import numbered
from zcpipe.rank import correlate

if TYPE_CHECKING:
    from types import ModuleType


@dataclass(frozen=True)
class FittedBoosting:
    """Trees whose sum is the prediction; they give no uncertainty.

    Attributes:
        forest: the trees.
        scale: of the targets.
        gain: how much the splits on each feature lowered the loss in all, [d].
        chosen: depth and number of trees that cross-validation chose.
    """

    forest: Forest
    scale: Scale
    gain: Floats
    chosen: Mapping[str, int]

    def predict(self, x: Vectors) -> Prediction:
        """Predict; the deviation is NaN.

        Raises:
            UsageError: another number of features.
        """
        require_vectors(x, len(self.gain))
        return Prediction(self.scale.back(self.forest.total(x)), np.full(len(x), np.nan))

    def record(self) -> dict[str, Any]:
        """Return what it is besides its arrays."""
        return {"chosen": dict(self.chosen)}

    def tensors(self) -> Tensors:
        """Return the arrays that it consists of."""
        return {
            **prefixed(self.forest.tensors(), "forest"),
            **prefixed(self.scale.tensors(), "scale"),
            "gain": self.gain,
        }


class BoostedTrees(Parameters):
    """Gradient-boosted trees whose depth and number are chosen from a grid.

    Of every depth and number of trees the pair is taken whose predictions of the rows left out, all folds' together,
    have the highest Kendall's tau; the first of equal ones.

    Attributes:
        depths: the grid's.
        trees: the grid's, ascending.
        rate: how much each tree counts.
        rows: the share of the labelled rows that each tree sees.
        features: the share of the features that each tree sees.
        folds: of the cross-validation; rows of one key are left out together.
        shown: what the trees see of the targets, see `Scale`.
    """

    name: ClassVar[str] = "boosted-trees"
    ranges: ClassVar[Mapping[str, Range]] = {
        "rate": Range(0.01, 0.3, log=True),
        "rows": Range(0.5, 1.0),
        "features": Range(0.05, 1.0, log=True),
        "shown": Range(choices=("scores", "raw")),
    }

    depths: tuple[Annotated[int, Field(ge=1, le=20)], ...] = Field(
        default=defaults.BOOSTED_DEPTHS, min_length=1, max_length=20
    )
    trees: tuple[Annotated[int, Field(ge=1, le=10_000)], ...] = Field(
        default=defaults.BOOSTED_TREES, min_length=1, max_length=20
    )
    rate: float = Field(default=defaults.BOOSTED_RATE, gt=0, le=1)
    rows: float = Field(default=defaults.BOOSTED_ROWS, gt=0, le=1)
    features: float = Field(default=defaults.BOOSTED_FEATURES, gt=0, le=1)
    folds: int = Field(default=defaults.BOOSTED_FOLDS, ge=2, le=100)
    shown: Shown = "scores"

    def fit(self, x: Vectors, y: Floats, context: Context, seed: int) -> FittedBoosting:
        """See `Predictor.fit`."""
        xgboost = _import()
        require_labelled(x, y)
        require_no_start(self.name, context)
        scale = Scale.fit(y, self.shown)
        target = scale.show(y)
        depth, trees = self._choose(xgboost, x, y, target, context.keys, seed)
        booster = self._grow(xgboost, x, target, depth, trees, seed)
        gain = np.zeros(x.shape[1])
        for feature, value in booster.get_score(importance_type="total_gain").items():
            gain[int(feature[1:])] = value
        return FittedBoosting(Forest.of(list(_trees(booster))), scale, gain, {"depth": depth, "trees": trees})

    def restore(
        self, record: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]], context: Context
    ) -> FittedBoosting:
        """See `Predictor.restore`."""
        features = len(context.coordinates)
        chosen = record.get("chosen")
        if not (isinstance(chosen, dict) and isinstance(chosen.get("trees"), int)):
            raise DataError("the record of boosted-trees does not say what was chosen")
        return FittedBoosting(
            Forest.restore(part(tensors, "forest"), chosen["trees"], features),
            Scale.restore(part(tensors, "scale")),
            array_of(tensors, "gain", np.float64, (features,)),
            chosen,
        )

    def _choose(
        self,
        xgboost: ModuleType,
        x: Vectors,
        y: Floats,
        target: Floats,
        keys: NDArray[np.int64] | None,
        seed: int,
    ) -> tuple[int, int]:
        grid = list(itertools.product(self.depths, self.trees))
        if len(grid) == 1:
            return grid[0]
        number = np.arange(len(x)) if keys is None else numbered(keys)
        networks = int(number.max()) + 1
        if networks < self.folds:
            raise DataError(f"{networks} networks are too few for {self.folds} folds; give more labels, or fewer folds")
        fold = np.random.default_rng(seed).permutation(networks)[number] % self.folds
        predicted = np.empty((len(self.depths), len(self.trees), len(x)))
        for row, depth in enumerate(self.depths):
            for left_out in range(self.folds):
                inside, outside = fold != left_out, fold == left_out
                booster = self._grow(xgboost, x[inside], target[inside], depth, max(self.trees), seed)
                matrix = xgboost.DMatrix(x[outside], nthread=1)
                for column, trees in enumerate(self.trees):
                    predicted[row, column, outside] = booster.predict(matrix, iteration_range=(0, trees))
        taus = [correlate(one, y).kendall for one in predicted.reshape(len(grid), -1)]
        # NaN, where all predictions are equal, is never the highest unless all are.
        return grid[int(np.argmax(np.nan_to_num(taus, nan=-2.0)))]

    def _grow(self, xgboost: ModuleType, x: Vectors, target: Floats, depth: int, trees: int, seed: int) -> Any:  # noqa: ANN401 - xgboost's
        options = {
            "max_depth": depth,
            "eta": self.rate,
            "subsample": self.rows,
            "colsample_bytree": self.features,
            "tree_method": "hist",
            "max_bin": 64,
            "base_score": 0.0,
            "nthread": 1,
            "seed": seed % 2**31,
            "verbosity": 0,
        }
        return xgboost.train(options, xgboost.DMatrix(x, target, nthread=1), trees)


def _import() -> ModuleType:
    try:
        import xgboost
    except ImportError as error:
        raise CapabilityError(
            f"boosted-trees needs xgboost ({error}); install it with pip install 'zcpipe[parzc]'"
        ) from error
    module: ModuleType = xgboost
    return module


def _trees(booster: Any) -> Iterator[Tree]:  # noqa: ANN401 - xgboost's
    """Read the trees of a booster: children, feature, threshold and value of each."""
    model = json.loads(bytes(booster.save_raw("json")))["learner"]["gradient_booster"]["model"]
    for tree in model["trees"]:
        left, right, feature = (
            np.array(tree[name], np.int64) for name in ("left_children", "right_children", "split_indices")
        )
        condition = np.array(tree["split_conditions"], np.float32)
        # xgboost goes left below the threshold, a `Forest` at most at it.
        below = np.nextafter(condition, np.float32(-np.inf))
        yield left, right, feature, below.astype(np.float64), np.where(left < 0, condition, 0).astype(np.float64)
