"""Choosing a predictor's parameters by how it ranks labelled architectures that are left out, with optuna."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from zcpipe.errors import CapabilityError, DataError, UsageError
from zcpipe.parzc.features import Encoder
from zcpipe.parzc.labels import Labels, draw, keys_of, parse_samples, require_seeds
from zcpipe.parzc.parallel import Progress, one_thread
from zcpipe.parzc.predictors import PREDICTORS, Context, predictor
from zcpipe.parzc.predictors.base import Range
from zcpipe.parzc.spec import FeatureSpec
from zcpipe.parzc.training import FEWEST
from zcpipe.rank import correlate
from zcpipe.table import Table

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True)
class Tried:
    """Parameters, and the Kendall's tau of the predictions of the rows left out."""

    parameters: dict[str, Any]
    kendall: float


def tune(
    table: Table,
    labels: Labels,
    spec: FeatureSpec,
    name: str,
    *,
    samples: str,
    trials: int = 50,
    folds: int = 3,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Tried]:
    """Search the ranges that a predictor states for the parameters that rank best what is left out.

    Only the labelled architectures that are drawn are seen: the same that `zcpipe.parzc.model.train` draws under the
    seed. Each fold leaves some out; architectures with one key are left out together. The first trial has the
    defaults.

    Args:
        table: the architectures.
        labels: their accuracies.
        spec: what the features are made of.
        name: of the predictor.
        samples: how many labelled architectures to draw, as a count or a share ("20%").
        trials: how many parameters to try.
        folds: of the cross-validation.
        seed: of the draw, the folds, the search and the trainings.
        progress: told how many trials are done.

    Returns:
        What was tried, best first, without what failed, as trainings that diverge do. Parameters hold only what differs
        from the defaults.

    Raises:
        UsageError: the predictor has nothing to choose, or a number is out of its range.
        DataError: too few labels, or a constant target, or every trial failed.
        CapabilityError: optuna is not installed.
    """
    library = _import()
    if name in PREDICTORS and not PREDICTORS[name].ranges:
        raise UsageError(f"{name} has no parameters to choose; tune its members one by one")
    for what, number, least in (("trials", trials, 1), ("folds", folds, 2)):
        if number < least:
            raise UsageError(f"{what} must be at least {least}, got {number}")
    require_seeds(1, seed)
    ranges = predictor(name).ranges
    encoder, encoded = Encoder.fit_encode(table, spec)
    rows = labels.require(encoded.usable)
    chosen = rows[draw(len(rows), parse_samples(samples, len(rows)), seed)]
    x, y = encoded.x[chosen], labels.values[chosen]
    keys = keys_of(table)[chosen]
    fold = _folds(keys, folds, seed)
    population = encoded.population
    found: list[Tried] = []
    failed: list[DataError] = []

    def objective(trial: optuna.Trial) -> float:
        suggested = {key: _suggest(trial, key, of_key) for key, of_key in ranges.items()} if trial.number else {}
        try:
            return tried(_nested(suggested))
        except DataError as error:
            failed.append(error)
            raise
        finally:
            if progress is not None:
                progress(trial.number + 1, trials)

    def tried(parameters: dict[str, Any]) -> float:
        learner = predictor(name, parameters)
        predicted = np.empty(len(y))
        with one_thread():
            for left_out in range(folds):
                inside, outside = fold != left_out, fold == left_out
                context = Context(encoder.coordinates, population, keys=keys[inside])
                predicted[outside] = learner.fit(x[inside], y[inside], context, seed).predict(x[outside]).mean
        kendall = correlate(predicted, y).kendall
        found.append(Tried(parameters, kendall))
        return float(np.nan_to_num(kendall, nan=-1.0))

    library.logging.set_verbosity(library.logging.ERROR)
    sampler = library.samplers.TPESampler(seed=seed % 2**32)  # all that its generator takes
    study = library.create_study(direction="maximize", sampler=sampler)
    study.optimize(objective, n_trials=trials, catch=(DataError,))
    if not found:
        raise DataError(f"all {trials} trials failed, the last so: {failed[-1]}")
    return sorted(found, key=lambda tried: -np.nan_to_num(tried.kendall, nan=-1.0))


def _suggest(trial: optuna.Trial, name: str, of_name: Range) -> Any:  # noqa: ANN401 - a parameter
    if of_name.choices:
        return trial.suggest_categorical(name, of_name.choices)
    return trial.suggest_float(name, of_name.low, of_name.high, log=of_name.log)


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Turn ``settings.epochs`` into ``epochs`` of ``settings``."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        outer, _, inner = key.partition(".")
        if inner:
            nested.setdefault(outer, {})[inner] = value
        else:
            nested[outer] = value
    return nested


def _folds(keys: NDArray[np.int64], folds: int, seed: int) -> NDArray[np.int64]:
    """Number rows with folds, equal keys alike, in folds of about one size."""
    _, number = np.unique(keys, return_inverse=True)
    fold = np.random.default_rng(seed).permutation(int(number.max()) + 1)[number] % folds
    sizes = np.bincount(fold, minlength=folds)
    if len(keys) - sizes.max() < FEWEST or sizes.min() < 1:
        raise DataError(
            f"{len(keys)} labelled architectures are too few for {folds} folds that leave {FEWEST} to learn from; "
            "give more --samples or other --folds"
        )
    result: NDArray[np.int64] = fold
    return result


def _import() -> Any:  # noqa: ANN401 - a module
    try:
        import optuna
    except ImportError as error:
        raise CapabilityError(f"tuning needs optuna ({error}); install it with pip install 'zcpipe[parzc]'") from error
    return optuna
