"""How long it takes to learn from some architectures and to predict all, on one thread of this process."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import study
from parzc_stages import Problem, parameters

from zcpipe.parzc.features import Encoded, Encoder
from zcpipe.parzc.labels import draw
from zcpipe.parzc.parallel import one_thread
from zcpipe.parzc.predictors import Context, predictor

T = TypeVar("T")

TIMED = ("parzc", "mabn", "mabn-published", "gaussian-process", "extra-trees", "boosted-trees", "ridge")
# What the published code trains on NDS and ViT.
PUBLISHED_SIZE: dict[str, Any] = {"size": 752, "dim": 1600, "depth": 5, "dropout": 0.18}
PUBLISHED_TRAINING: dict[str, Any] = {
    "loss": "pairwise+diffkendall",
    "learning_rate": 2e-3,
    "batch_size": 35,
    "mc_samples": 1,
}
PUBLISHED_EPOCHS = 296
BATCHES = 2  # that are timed at the published size

Seconds = tuple[float, float]  # wall, CPU


def speed(problem: Problem, samples: int, options: argparse.Namespace) -> dict[str, Any]:
    """Time each predictor once.

    Args:
        problem: the table; all its usable rows are predicted.
        samples: how many rows are learnt from.
        options: where results are kept.
    """
    inputs = {
        **problem.identity,
        "spec": problem.spec.model_dump(mode="json"),
        "samples": samples,
        "timed": {name: parameters(name, {}) for name in TIMED},
        "published": [PUBLISHED_SIZE, PUBLISHED_TRAINING, PUBLISHED_EPOCHS, BATCHES],
    }
    return study.stage(options.out / "speed.json", inputs, lambda: _measure(problem, samples))


def _measure(problem: Problem, samples: int) -> dict[str, Any]:
    load = os.getloadavg()[0]
    with one_thread():
        (encoder, encoded), features = _timed(lambda: _encode(problem))
        rows = problem.learnt.require(encoded.usable)
        rows = rows[draw(len(rows), samples, 0)]
        x, y = encoded.x[rows], problem.learnt.values[rows]
        everybody = encoded.x[encoded.usable]
        keys = np.unique(problem.table.to_arrow(["key"])["key"].to_pylist(), return_inverse=True)[1]
        context = Context(encoder.coordinates, everybody, keys=keys[rows])
        found = []
        for name in TIMED:
            fitted, fit = _timed(lambda name=name: predictor(name).fit(x, y, context, 0))  # type: ignore[misc]
            _, predict = _timed(lambda fitted=fitted: fitted.predict(everybody))  # type: ignore[misc]
            found.append(_record(name, fit, predict))
        found.append(_at_published_size(x, y, everybody, context))
    return {
        "samples": samples,
        "predicted": len(everybody),
        "features": len(encoder.coordinates),
        "encode_wall": features[0],
        "encode_cpu": features[1],
        "cores": os.cpu_count(),
        "load": load,
        "rows": found,
    }


def _encode(problem: Problem) -> tuple[Encoder, Encoded]:
    encoder = Encoder.fit(problem.table, problem.spec)
    return encoder, encoder.encode(problem.table)


def _at_published_size(x: np.ndarray, y: np.ndarray, everybody: np.ndarray, context: Context) -> dict[str, Any]:
    """Time an epoch over a few batches as a training of two epochs less one of one, and multiply."""
    some = min(BATCHES * PUBLISHED_TRAINING["batch_size"], len(x))
    spent = []
    for epochs in (1, 1, 2):  # the first makes everything ready
        settings = {**PUBLISHED_TRAINING, "epochs": epochs}
        learner = predictor("mabn-published", {**PUBLISHED_SIZE, "settings": settings})
        fitted, seconds = _timed(lambda learner=learner: learner.fit(x[:some], y[:some], context, 0))  # type: ignore[misc]
        spent.append(seconds)
    _, predict = _timed(lambda: fitted.predict(x[:some]))
    epoch = [(two - one) * len(x) / some for one, two in zip(*spent[1:], strict=True)]
    whole = (epoch[0] * PUBLISHED_EPOCHS, epoch[1] * PUBLISHED_EPOCHS)
    scaled = (predict[0] * len(everybody) / some, predict[1] * len(everybody) / some)
    return {
        **_record("mabn-published at its published size", whole, scaled),
        "rows_timed": some,
        "epoch_wall": epoch[0],
    }


def _timed(work: Callable[[], T]) -> tuple[T, Seconds]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, (time.perf_counter() - wall, time.process_time() - cpu)


def _record(name: str, fit: Seconds, predict: Seconds) -> dict[str, Any]:
    return {
        "method": name,
        "fit_wall": fit[0],
        "fit_cpu": fit[1],
        "predict_wall": predict[0],
        "predict_cpu": predict[1],
    }
