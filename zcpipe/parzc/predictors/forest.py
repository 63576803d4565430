"""Regression trees as flat arrays, and the descent of many rows through all of them at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from zcpipe.errors import DataError
from zcpipe.parzc.arrays import Tensors, array_of
from zcpipe.parzc.predictors.base import Floats, Vectors

_AT_ONCE = 1 << 18  # pairs of a row and a tree that descend together

Tree = tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]


@dataclass(frozen=True)
class Forest:
    """Trees, one after the other; a row goes left where its feature is at most the threshold.

    Attributes:
        left: of each node the one below it on the left, or itself if it is a leaf, [nodes].
        right: the same on the right.
        feature: which it looks at, [nodes], 0 for a leaf.
        threshold: [nodes], 0 for a leaf.
        value: what is predicted at it, [nodes].
        roots: of each tree the first node, [trees].
    """

    left: NDArray[np.int32]
    right: NDArray[np.int32]
    feature: NDArray[np.int32]
    threshold: Floats
    value: Floats
    roots: NDArray[np.int32]

    @classmethod
    def of(cls, trees: Sequence[Tree]) -> Self:
        """Put trees together.

        Args:
            trees: of each the children left and right, negative for those of a leaf, feature, threshold and value of
                its nodes; the first is the root, and children come after their parents.
        """
        sizes = np.array([len(tree[0]) for tree in trees])
        roots = np.cumsum(sizes) - sizes
        own = np.arange(sizes.sum())
        shift = np.repeat(roots, sizes)
        left, right, feature, threshold, value = (np.concatenate(arrays) for arrays in zip(*trees, strict=True))
        leaf = left < 0
        return cls(
            np.where(leaf, own, left + shift).astype(np.int32),
            np.where(leaf, own, right + shift).astype(np.int32),
            np.where(leaf, 0, feature).astype(np.int32),
            np.where(leaf, 0.0, threshold).astype(np.float64),
            value.astype(np.float64),
            roots.astype(np.int32),
        )

    def __len__(self) -> int:
        return len(self.roots)

    def values(self, x: Vectors) -> Iterator[tuple[slice, NDArray[np.float64]]]:
        """Yield some rows at a time, and what each tree predicts for each of them, [trees, rows]."""
        step = max(_AT_ONCE // len(self), 1)
        for start in range(0, len(x), step):
            rows = slice(start, min(start + step, len(x)))
            yield rows, self.value[self._leaves(x[rows])]

    def total(self, x: Vectors) -> Floats:
        """Sum over the trees, in their order: [n]."""
        result = np.empty(len(x))
        for rows, values in self.values(x):
            result[rows] = summed(values)
        return result

    def tensors(self) -> Tensors:
        """Return the arrays that it consists of."""
        return {
            "left": self.left,
            "right": self.right,
            "feature": self.feature,
            "threshold": self.threshold,
            "value": self.value,
            "roots": self.roots,
        }

    @classmethod
    def restore(cls, tensors: Mapping[str, NDArray[Any]], trees: int, features: int) -> Self:
        """Rebuild so many trees from `tensors`, for rows of so many features.

        Raises:
            DataError: they are no trees of such features.
        """
        roots = array_of(tensors, "roots", np.int32, (trees,))
        left = array_of(tensors, "left", np.int32, (None,))
        right, feature = (array_of(tensors, name, np.int32, left.shape) for name in ("right", "feature"))
        threshold, value = (array_of(tensors, name, np.float64, left.shape) for name in ("threshold", "value"))
        nodes, own = len(left), np.arange(len(left))
        leaf = left == own
        descends = (left > own) & (right > own) & (left < nodes) & (right < nodes)  # so that no row goes for ever
        if not len(roots) or not (np.where(leaf, right == own, descends)).all():
            raise DataError("the trees have nodes whose children do not come after them")
        if roots.min() < 0 or roots.max() >= nodes or feature.min() < 0 or feature.max() >= features:
            raise DataError(f"the trees have nodes or features that are not there, of {nodes} and {features}")
        return cls(left, right, feature, threshold, value, roots)

    def _leaves(self, x: Vectors) -> NDArray[np.int32]:  # [trees, rows]
        trees, n = len(self), len(x)
        flat = np.ascontiguousarray(x).ravel()
        at = np.repeat(self.roots, n)
        start = np.tile(np.arange(n) * x.shape[1], trees)  # of each pair's row
        going = np.flatnonzero(self.left[at] != at)
        while len(going):
            node = at[going]
            is_left = flat[start[going] + self.feature[node]] <= self.threshold[node]
            below = np.where(is_left, self.left[node], self.right[node])
            at[going] = below
            going = going[self.left[below] != below]
        return at.reshape(trees, n)


def summed(values: NDArray[np.float64]) -> Floats:  # [trees, rows] -> [rows]
    """Sum over the trees in their order, which numpy keeps for many rows alone: so a row has its sum by itself."""
    total = np.zeros(values.shape[1])
    for of_tree in values:
        total += of_tree
    return total
