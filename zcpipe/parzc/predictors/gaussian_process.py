"""A Gaussian process over groups of features: proxies, statistics and the cell's graph have a kernel each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.linalg import LinAlgError, cho_factor, cho_solve, solve_triangular
from scipy.optimize import minimize

from zcpipe.errors import DataError
from zcpipe.parzc.arrays import Tensors, array_of, part, prefixed
from zcpipe.parzc.features import Coordinate
from zcpipe.parzc.places import GRAPH
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

Groups = Sequence[NDArray[np.int64]]  # the features of each kernel

_AT_ONCE = 1024  # rows that are predicted together, whatever else is asked: the rounding of products depends on it
_JITTER = 1e-6


@dataclass(frozen=True)
class FittedProcess:
    """The posterior of a Gaussian process.

    Attributes:
        x: the labelled rows that were learnt from, [n, d].
        target: what they are shown as, [n], centred on 0.
        groups: the features of each kernel.
        parameters: logarithms of the kernels' deviations, of their lengths and of the noise's deviation, [2 g + 1].
        scale: of the targets.
    """

    x: Vectors
    target: Floats
    groups: Groups
    parameters: Floats
    scale: Scale

    def predict(self, x: Vectors) -> Prediction:
        """Predict a new training's target: the deviation counts the noise of the labels, too.

        Raises:
            UsageError: another number of features.
        """
        require_vectors(x, self.x.shape[1])
        mean, deviation = np.empty(len(x)), np.empty(len(x))
        for start in range(0, len(x), _AT_ONCE):
            rows = slice(start, start + _AT_ONCE)
            # Padded to the same number of rows each time, so that a row's value does not depend on the others.
            padded = np.zeros((_AT_ONCE, x.shape[1]), np.float32)
            padded[: len(x[rows])] = x[rows]
            centre, spread = self._posterior(padded)
            mean[rows], deviation[rows] = centre[: len(x[rows])], spread[: len(x[rows])]
        return self.scale.prediction(mean, deviation)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the factor out of what travels between processes: it is as large as rows times rows."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def record(self) -> dict[str, Any]:
        """Return what it is besides its arrays: nothing."""
        return {}

    def tensors(self) -> Tensors:
        """Return the arrays that it consists of."""
        own: Tensors = {"x": self.x, "target": self.target, "parameters": self.parameters}
        return {**own, **prefixed(self.scale.tensors(), "scale")}

    @cached_property
    def factor(self) -> Floats:
        """The lower triangle of the Cholesky factor of the labelled rows' covariance, [n, n]; above it is anything.

        Raises:
            DataError: the covariance is not positive definite.
        """
        return factorised(covariance(each_distance(self.x, self.x, self.groups), self.parameters))

    @cached_property
    def _weights(self) -> Floats:
        weights: Floats = cho_solve((self.factor, True), self.target)
        return weights

    def _posterior(self, x: Vectors) -> tuple[Floats, Floats]:
        across = signal(each_distance(x, self.x, self.groups), self.parameters)  # [m, n]
        explained = solve_triangular(self.factor, across.T, lower=True)
        count = len(self.groups)
        prior = np.exp(2 * self.parameters[:count]).sum() + np.exp(2 * self.parameters[-1])
        return across @ self._weights, np.sqrt(np.maximum(prior - (explained**2).sum(axis=0), 0.0))


class GaussianProcess(Parameters):
    """Squared-exponential kernels, one for each kind of feature, summed; the marginal likelihood sets their parameters.

    A kernel's distances are mean squared differences over its features. A weak prior keeps the logarithms of all
    parameters near 0, and that of the noise's deviation near -1.

    Attributes:
        shown: what it sees of the targets, see `Scale`.
        rows: at most so many of the labelled rows are learnt from, drawn under the seed: memory grows with their square
            and time with their cube. All of them make the scale of the targets.
        likelihood_rows: at most so many of those set the parameters.
    """

    name: ClassVar[str] = "gaussian-process"
    ranges: ClassVar[Mapping[str, Range]] = {"shown": Range(choices=("scores", "raw"))}

    shown: Shown = "scores"
    rows: int = Field(default=defaults.GP_ROWS, ge=10, le=20_000)
    likelihood_rows: int = Field(default=defaults.GP_LIKELIHOOD_ROWS, ge=10, le=20_000)

    def fit(self, x: Vectors, y: Floats, context: Context, seed: int) -> FittedProcess:
        """See `Predictor.fit`; the seed says which rows are learnt from and set the parameters."""
        require_labelled(x, y)
        require_no_start(self.name, context)
        scale = Scale.fit(y, self.shown)
        target = scale.show(y)
        groups = kinds(context.coordinates)
        order = np.random.default_rng(seed).permutation(len(y))[: self.rows]
        some, own = np.sort(order[: self.likelihood_rows]), np.sort(order)
        distances = squared_distances(x[some], x[some], groups)
        start = np.concatenate([np.zeros(len(groups)), np.full(len(groups), 0.5), [-1.0]])
        found = minimize(
            objective,
            start,
            args=(distances, target[some]),
            jac=True,
            method="L-BFGS-B",
            bounds=[(-4.0, 4.0)] * len(start),
            options={"maxiter": defaults.GP_ITERATIONS},
        )
        return FittedProcess(x[own], target[own], groups, found.x, scale)

    def restore(
        self, record: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]], context: Context
    ) -> FittedProcess:
        """See `Predictor.restore`."""
        groups = kinds(context.coordinates)
        x = array_of(tensors, "x", np.float32, (None, len(context.coordinates)))
        target = array_of(tensors, "target", np.float64, (len(x),))
        parameters = array_of(tensors, "parameters", np.float64, (2 * len(groups) + 1,))
        if not 0 < len(x) <= self.rows or np.abs(parameters).max() > 4.0:
            raise DataError(f"the arrays of {self.name} are not those of such a process of {self.rows} rows at most")
        fitted = FittedProcess(x, target, groups, parameters, Scale.restore(part(tensors, "scale")))
        _ = fitted.factor  # predicting needs it, and here it can be refused
        return fitted


def kinds(coordinates: Sequence[Coordinate]) -> Groups:
    """Return the features that are proxies, that are statistics, and that are the graph's, without kinds of none."""
    of_each = np.array([1 if c.slot and c.column != GRAPH else 2 if c.column == GRAPH else 0 for c in coordinates])
    return [np.flatnonzero(of_each == kind) for kind in range(3) if (of_each == kind).any()]


def squared_distances(a: Vectors, b: Vectors, groups: Groups) -> Floats:  # [g, m, n]
    """Return the mean squared difference over the features of each group, of each row of a from each of b."""
    found = np.empty((len(groups), len(a), len(b)))
    for out, distances in zip(found, each_distance(a, b, groups), strict=True):
        out[:] = distances
    return found


def each_distance(a: Vectors, b: Vectors, groups: Groups) -> Iterator[Floats]:  # [m, n] each
    """Yield what `squared_distances` returns, one group at a time."""
    for group in groups:
        left, right = a[:, group].astype(np.float64), b[:, group].astype(np.float64)
        out: Floats = left @ right.T
        out *= -2
        out += (left**2).sum(axis=1)[:, None]
        out += (right**2).sum(axis=1)
        np.maximum(out, 0.0, out=out)
        out /= len(group)
        yield out


def signal(distances: Iterable[Floats], parameters: Floats) -> Floats:  # [m, n]
    """Return the sum of the kernels, without noise."""
    count = len(parameters) // 2
    found: Floats | None = None
    for i, distance in enumerate(distances):
        kernel = distance * (-np.exp(-2 * parameters[count + i]) / 2)
        kernel += 2 * parameters[i]
        np.exp(kernel, out=kernel)
        found = kernel if found is None else np.add(found, kernel, out=found)
    assert found is not None  # noqa: S101 - there are features
    return found


def covariance(distances: Iterable[Floats], parameters: Floats) -> Floats:
    """Return the covariance of the labelled rows, noise and a little for the numerics on its diagonal."""
    found = signal(distances, parameters)
    found[np.diag_indices_from(found)] += np.exp(2 * parameters[-1]) + _JITTER
    return found


def factorised(matrix: Floats) -> Floats:  # [n, n], symmetric, which is overwritten
    """Return the lower triangle of the Cholesky factor; above it is anything.

    Raises:
        DataError: the matrix is not positive definite.
    """
    try:
        factor: Floats = cho_factor(matrix.T, lower=True, overwrite_a=True)[0]
    except LinAlgError as error:
        raise DataError(
            "the covariance of the Gaussian process is not positive definite; encode the features in a way that keeps "
            "them small, such as rank"
        ) from error
    return factor


def objective(parameters: Floats, distances: Floats, target: Floats) -> tuple[float, Floats]:
    """Return the negative logarithm of marginal likelihood times prior, and its gradient."""
    count = len(distances)
    factor = (factorised(covariance(distances, parameters)), True)
    weights = cho_solve(factor, target)
    centre = np.zeros(len(parameters))
    centre[-1] = -1.0
    value = target @ weights / 2 + np.log(np.diag(factor[0])).sum() + ((parameters - centre) ** 2).sum() / 8
    # Of the trace of (inverse - weights weights') times the covariance's derivative, a half.
    outer = cho_solve(factor, np.eye(len(target))) - np.outer(weights, weights)
    gradient = (parameters - centre) / 4
    for i in range(count):
        scaled = distances[i] * np.exp(-2 * parameters[count + i])
        kernel = outer * np.exp(2 * parameters[i] - scaled / 2)
        gradient[i] += kernel.sum()
        gradient[count + i] += (kernel * scaled).sum() / 2
    gradient[-1] += np.exp(2 * parameters[-1]) * np.trace(outer)
    return float(value), gradient
