"""The Gaussian process: its posterior by its formula, its likelihood's gradient, its calibration."""

import pickle

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from zcpipe.errors import DataError
from zcpipe.parzc.features import Coordinate
from zcpipe.parzc.predictors import Context, predictor
from zcpipe.parzc.predictors.gaussian_process import covariance, kinds, objective, squared_distances
from zcpipe.parzc.predictors.targets import Scale

COORDINATES = (
    *(Coordinate("snip@layer", f"cells.0.{i}", "cells.0") for i in range(4)),
    Coordinate("params", "", ""),
    Coordinate("graph", "0-1=none", "graph"),
    Coordinate("graph", "0-1=skip", "graph"),
)


def problem(n, noise=0.1, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, len(COORDINATES))).astype(np.float32)
    return x, np.sin(x[:, 0]) + x[:, 4] + noise * rng.normal(size=n)


def test_proxies_statistics_and_graph_have_a_kernel_each():
    assert [group.tolist() for group in kinds(COORDINATES)] == [[4], [0, 1, 2, 3], [5, 6]]
    assert [group.tolist() for group in kinds(COORDINATES[:5])] == [[4], [0, 1, 2, 3]]


def test_distances_are_mean_squared_differences():
    x, _ = problem(6)
    found = squared_distances(x[:4], x, kinds(COORDINATES))
    expected = [((x[:4, None, g] - x[None][:, :, g]) ** 2).mean(axis=2) for g in ([4], [0, 1, 2, 3], [5, 6])]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_objective_is_the_likelihood_with_its_prior_and_has_its_gradient():
    x, y = problem(25)
    distances = squared_distances(x, x, kinds(COORDINATES))
    parameters = np.random.default_rng(1).normal(size=7) * 0.3
    centre = np.array([0, 0, 0, 0, 0, 0, -1.0])
    value, gradient = objective(parameters, distances, y)
    likelihood = multivariate_normal(cov=covariance(distances, parameters)).logpdf(y) + 25 / 2 * np.log(2 * np.pi)
    assert value == pytest.approx(((parameters - centre) ** 2).sum() / 8 - likelihood)
    steps = 1e-5 * np.eye(7)
    numeric = [
        (objective(parameters + step, distances, y)[0] - objective(parameters - step, distances, y)[0]) / 2e-5
        for step in steps
    ]
    np.testing.assert_allclose(gradient, numeric, rtol=1e-5, atol=1e-6)


def test_posterior_is_that_of_the_joint_normal_distribution():
    x, y = problem(40)
    fitted = predictor("gaussian-process", {"shown": "raw"}).fit(x[:30], y[:30], Context(COORDINATES, x), 0)
    joint = covariance(squared_distances(x, x, kinds(COORDINATES)), fitted.parameters)
    scale = Scale.fit(y[:30], "raw")
    gain = np.linalg.solve(joint[:30, :30], joint[:30, 30:]).T
    expected = gain @ scale.show(y[:30])
    spread = np.sqrt(np.diag(joint[30:, 30:] - gain @ joint[:30, 30:]))
    found = fitted.predict(x[30:])
    np.testing.assert_allclose(found.mean, scale.back(expected), rtol=1e-6)
    np.testing.assert_allclose(found.std, spread * scale.slope, rtol=1e-4)


def test_deviations_hold_the_share_of_targets_that_they_should():
    x, y = problem(600, noise=0.3)
    found = predictor("gaussian-process", {"shown": "raw"}).fit(x[:200], y[:200], Context(COORDINATES, x), 0)
    prediction = found.predict(x[200:])
    apart = np.abs(y[200:] - prediction.mean) / prediction.std
    assert 0.6 < np.mean(apart < 1) < 0.76
    assert 0.91 < np.mean(apart < 1.96) < 0.985


def test_more_rows_than_set_the_parameters_are_all_learnt_from():
    x, y = problem(120)
    context = Context(COORDINATES, x)
    few = predictor("gaussian-process", {"likelihood_rows": 30}).fit(x, y, context, 0)
    other = predictor("gaussian-process", {"likelihood_rows": 30}).fit(x, y, context, 1)
    assert len(few.x) == 120
    assert not np.array_equal(few.parameters, other.parameters)


def test_no_more_rows_are_learnt_from_than_memory_shall_hold():
    x, y = problem(120)
    context = Context(COORDINATES, x)
    capped, again, other = (predictor("gaussian-process", {"rows": 30}).fit(x, y, context, seed) for seed in (0, 0, 1))
    assert len(capped.x) == len(capped.target) == 30
    assert np.array_equal(capped.x, again.x) and not np.array_equal(capped.x, other.x)
    rows = [int(np.flatnonzero((x == row).all(axis=1))[0]) for row in capped.x]
    assert rows == sorted(rows)
    np.testing.assert_array_equal(capped.target, capped.scale.show(y[rows]))
    assert len(capped.scale.values) == 120
    with pytest.raises(DataError, match="not those of such a process of 20 rows at most"):
        predictor("gaussian-process", {"rows": 20}).restore({}, capped.tensors(), context)


def test_arrays_whose_covariance_is_none_are_refused():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 300)).astype(np.float32), rng.normal(size=40)
    coordinates = tuple(Coordinate("snip@layer", f"stem.{i}", "stem") for i in range(300))
    learner, context = predictor("gaussian-process"), Context(coordinates, x)
    tensors = learner.fit(x, y, context, 0).tensors()
    # Of large numbers that differ in their last digits the distances are rounding, which a short length lays bare.
    large = np.repeat(rng.uniform(1e5, 2e5, (1, 300)).astype(np.float32), 40, axis=0)
    large = np.where(rng.random(large.shape) < 0.3, np.nextafter(large, np.float32(np.inf)), large)
    hostile = {**tensors, "x": large, "parameters": np.array([4.0, -4.0, -4.0])}
    with pytest.raises(DataError, match="the covariance of the Gaussian process is not positive definite"):
        learner.restore({}, hostile, context)


def test_what_travels_between_processes_is_without_the_factor():
    x, y = problem(60)
    fitted = predictor("gaussian-process").fit(x, y, Context(COORDINATES, x), 0)
    before = fitted.predict(x)
    sent = pickle.dumps(fitted)
    assert len(sent) < x.nbytes + 60 * 60 * 8
    assert np.array_equal(pickle.loads(sent).predict(x).mean, before.mean)
