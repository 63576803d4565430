"""Training of a predictor and of an ensemble of them, and Monte-Carlo prediction.

Everything is a function of its arguments and the seed, to the bit, where torch computes with one thread; how many it
uses is for the process to say (``torch.set_num_threads(1)``). torch's global generator is as before afterwards.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, ValidationError, model_validator
from torch import Tensor, nn

from zcpipe.errors import DataError, UsageError, first_fault
from zcpipe.parzc.bayesian import BayesianLinear, kl, mean_weights, one_draw
from zcpipe.parzc.losses import ALPHA, fixes_scale, loss_named
from zcpipe.rank import correlate
from zcpipe.rank.ranking import Floats

FEWEST = 10  # labels that anything is learnt from
_CHUNK = 256  # rows that go through a network together where no gradient is asked for: few, to stay in the cache

Vectors = NDArray[np.float32]  # [n, d]
Labelled = tuple[Vectors, Floats]
_DRAWS_AT_MOST = 100  # of rows to hold out
_ORDER, _NOISE, _MAKE, _HOLD_OUT, _FIT, _DRAWS = range(6)  # what seeds are for


class Settings(BaseModel):
    """How a predictor is trained.

    Attributes:
        loss: as `loss_named` takes it.
        alpha: DiffKendall's.
        kl_weight: how often the Bayesian layers' divergence from the prior, over the number of rows, is added to the
            loss; 0 as published.
        prior_sigma: standard deviation of the prior of the Bayesian layers' weights.
        epochs: the most that are run; the learning rate falls to 0 over them along a cosine.
        batch_size: rows in a batch; all batches of an epoch are as large, or one less.
        learning_rate: Adam's at first.
        weight_decay: Adam's, added to the gradient.
        decay_rho: decay the Bayesian layers' rho as well, as the published code does; that widens the weights'
            distributions, for rho falls from -5 towards 0.
        patience: stop after so many epochs without a better Kendall's tau on the rows held out, and keep the best
            epoch's weights; None to run all epochs and keep the last.
        held_out: the share of the rows that an ensemble's members hold out where there is a patience.
        members: size of an ensemble.
        mc_samples: draws of the weights in a prediction, for each member.

    Raises:
        UsageError: a field is unknown or out of its range; one line says which.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    loss: str = "pairwise+diffkendall"
    alpha: float = Field(default=ALPHA, gt=0, allow_inf_nan=False)
    kl_weight: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    prior_sigma: float = Field(default=0.1, gt=0, allow_inf_nan=False)
    epochs: int = Field(default=60, ge=1, le=100_000)
    batch_size: int = Field(default=64, ge=2)
    learning_rate: float = Field(default=2e-3, gt=0, allow_inf_nan=False)
    weight_decay: float = Field(default=1e-3, ge=0, allow_inf_nan=False)
    decay_rho: bool = False
    patience: int | None = Field(default=None, ge=1)
    held_out: float = Field(default=0.2, gt=0, lt=1)
    members: int = Field(default=1, ge=1, le=1000)
    mc_samples: int = Field(default=10, ge=1, le=10_000)

    @model_validator(mode="wrap")
    @classmethod
    def _in_one_line(cls, data: Any, handler: ModelWrapValidatorHandler[Settings]) -> Settings:  # noqa: ANN401
        try:
            settings = handler(data)
        except ValidationError as error:
            raise UsageError(f"invalid settings: {first_fault(error, cls.model_fields)}") from None
        loss_named(settings.loss)
        return settings


class Scaled(nn.Module):
    """A network whose values are brought to the target's scale: centre + scale * network(x), in float64."""

    centre: Tensor
    scale: Tensor

    def __init__(self, network: nn.Module, centre: float = 0.0, scale: float = 1.0) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("centre", torch.tensor(centre, dtype=torch.float64))
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """Predict: [n, d] to [n], float64."""
        values: Tensor = self.network(x)
        return self.centre + self.scale * values.double()


@dataclass(frozen=True)
class Fitted:
    """What came of a training.

    Attributes:
        model: the network at the target's scale, in evaluation.
        losses: of each epoch, the mean over its batches.
        taus: of each epoch, Kendall's tau on the rows held out, with the Bayesian layers' mean weights; NaN where all
            predictions, or all targets, are equal. Empty without such rows.
        best: which epoch's weights were kept, from 0.
    """

    model: Scaled
    losses: tuple[float, ...]
    taus: tuple[float, ...]
    best: int


def fit(
    network: nn.Module,
    x: Vectors,
    y: Floats,
    settings: Settings,
    seed: int,
    validation: Labelled | None = None,
) -> Fitted:
    """Train a network, in place.

    Targets are brought to mean 0 and standard deviation 1 by the rows of ``x``, and predictions back. A loss that asks
    for the order alone says nothing of the predictions' scale: their mean and standard deviation over those rows, with
    the mean weights, are made the targets' then.

    Args:
        network: [n, d] to [n], float32, on the CPU; its weights are where the training starts.
        x: [n, d] float32.
        y: [n], what is to be predicted.
        settings: how.
        seed: of the order of the rows, the draws of weights and the dropout.
        validation: the rows held out, x and y, which decide on stopping; exactly where there is a patience.

    Raises:
        UsageError: shapes or dtypes do not fit, or there is a patience and nothing to decide by, or the contrary.
        DataError: fewer than 2 rows, values that are not finite, a constant target; or the training diverged.
    """
    _check_labelled(x, y, "training")
    if (settings.patience is None) != (validation is None):
        raise UsageError(
            "validation: give rows to decide on stopping by where settings.patience is set, and only there"
        )
    if validation is not None:
        _check_labelled(*validation, "validation", ordered=False)
    centre, scale = float(y.mean()), float(y.std())
    inputs, target = torch.tensor(x), torch.tensor((y - centre) / scale, dtype=torch.float32)
    optimiser = _adam(network, settings)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.epochs)
    order = torch.Generator().manual_seed(_seed(seed, _ORDER))
    losses: list[float] = []
    taus: list[float] = []
    best, highest, kept = 0, -math.inf, None
    with _seeded(_seed(seed, _NOISE)):
        for epoch in range(settings.epochs):
            losses.append(_epoch(network, inputs, target, settings, optimiser, order, epoch))
            schedule.step()
            if validation is None or settings.patience is None:
                best = epoch
                continue
            taus.append(_tau(network, *validation, settings, epoch))
            if kept is None or taus[-1] > highest:  # NaN, where all predictions are equal, is not higher
                best, kept = epoch, copy.deepcopy(network.state_dict())
                highest = -math.inf if math.isnan(taus[-1]) else taus[-1]
            elif epoch - best >= settings.patience:
                break
    if kept is not None:
        network.load_state_dict(kept)
    network.eval()
    values = _by_means(network, x, settings, best)
    if not fixes_scale(settings.loss):
        ratio = scale / (float(values.std()) or 1.0)
        centre, scale = centre - ratio * float(values.mean()), ratio
    return Fitted(Scaled(network, centre, scale).eval(), tuple(losses), tuple(taus), best)


def fit_ensemble(
    make: Callable[[], nn.Module],
    x: Vectors,
    y: Floats,
    settings: Settings,
    seed: int,
    keys: NDArray[np.int64] | None = None,
) -> list[Fitted]:
    """Train ``settings.members`` networks that differ in their seeds: first weights, rows held out, order and draws.

    Args:
        make: a new network; torch's global generator is seeded for it.
        x: [n, d] float32.
        y: [n], what is to be predicted.
        settings: how; with a patience each member holds out ``settings.held_out`` of the rows: of 100 draws the first
            that leaves different targets on both sides, or else one to learn from.
        seed: of everything.
        keys: of the rows, [n]; those of one key are held out together. None where all differ.

    Raises:
        UsageError: as `fit`.
        DataError: fewer than 10 rows, and as `fit`.
    """
    if len(x) < FEWEST:
        raise DataError(f"{len(x)} labelled architectures are too few to learn from; give at least {FEWEST}")
    fitted = []
    for member in range(settings.members):
        with _seeded(_seed(seed, _MAKE, member)):
            network = make()
        member_seed = _seed(seed, _FIT, member)
        if settings.patience is None:
            fitted.append(fit(network, x, y, settings, member_seed))
            continue
        inside, outside = _hold_out_of(y, settings.held_out, _seed(seed, _HOLD_OUT, member), keys)
        validation = (x[outside], y[outside])
        fitted.append(fit(network, x[inside], y[inside], settings, member_seed, validation))
    return fitted


def hold_out(
    n: int, share: float, seed: int, keys: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split n rows at random; returns the indices of those to learn from and of those held out, each ascending.

    At least 2 rows are on either side. Rows of one key are on one side, so that more may be held out than the share.

    Raises:
        DataError: there are fewer than 4 rows, or rows of one key leave fewer than 2 on a side.
    """
    if n < 4:
        raise DataError(f"{n} rows are too few to hold some out; give at least 4, or no patience")
    held = min(max(round(share * n), 2), n - 2)
    number = np.arange(n) if keys is None else numbered(keys)
    sizes = np.bincount(number)
    order = np.random.default_rng(seed).permutation(len(sizes))
    count = int(np.searchsorted(np.cumsum(sizes[order]), held)) + 1
    out = np.isin(number, order[:count])
    if n - np.count_nonzero(out) < 2:
        raise DataError(f"so many of {n} rows have one key that fewer than 2 are left to learn from; give no patience")
    return np.flatnonzero(~out), np.flatnonzero(out)


def numbered(keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number the keys of rows from 0 in the order in which they come first."""
    _, first, number = np.unique(keys, return_index=True, return_inverse=True)
    result: NDArray[np.int64] = np.argsort(np.argsort(first))[number]
    return result


def predict(
    models: nn.Module | Sequence[nn.Module],
    x: Vectors,
    samples: int,
    seed: int,
) -> tuple[Floats, Floats]:
    """Predict by Monte Carlo: each draw of a network's weights is one for all rows.

    Args:
        models: [n, d] to [n], a network or the members of an ensemble. They are evaluated without dropout.
        x: [n, d] float32.
        samples: draws for each member.
        seed: of the draws; with one seed the first draws are the same however many there are.

    Returns:
        Mean and standard deviation of each row over the members and draws, [n] each. The variance is over all of them,
        divided by their number: the mean of the members' variances and the variance of their means.

    Raises:
        UsageError: no model, no sample, or x is not [n, d] float32.
        DataError: x holds a value that is not finite.
    """
    members = [models] if isinstance(models, nn.Module) else list(models)
    if not members or samples < 1:
        raise UsageError(f"models and samples: got {len(members)} and {samples}, expected at least 1 each")
    _check_vectors(x, "the")
    mean, squares, count = np.zeros(len(x)), np.zeros(len(x)), 0
    for member, model in enumerate(members):
        with _seeded(_seed(seed, _DRAWS, member)):
            for _ in range(samples):
                with torch.no_grad(), one_draw(model):
                    values = _values(model, x)
                count += 1
                gap = values - mean
                mean += gap / count
                squares += gap * (values - mean)
    return mean, np.sqrt(squares / count)


def _hold_out_of(
    y: Floats, share: float, seed: int, keys: NDArray[np.int64] | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split rows as `hold_out`, with an order to learn, and if possible one to decide by."""
    found = None
    for attempt in range(_DRAWS_AT_MOST):
        inside, outside = hold_out(len(y), share, seed + attempt, keys)
        if np.ptp(y[inside]) > 0 and np.ptp(y[outside]) > 0:
            return inside, outside
        if found is None and np.ptp(y[inside]) > 0:
            found = inside, outside
    if found is None:
        raise DataError(f"{len(y)} targets differ too little to hold some out; give more labels, or no patience")
    return found


@torch.enable_grad()  # whatever a user's own training left behind
def _epoch(
    network: nn.Module,
    x: Tensor,  # [n, d]
    y: Tensor,  # [n]
    settings: Settings,
    optimiser: torch.optim.Optimizer,
    order: torch.Generator,
    epoch: int,
) -> float:
    loss_of = loss_named(settings.loss, settings.alpha)
    n = len(x)
    # No batch of a single row, of which the losses over pairs say nothing.
    count = max(1, min(-(-n // settings.batch_size), n // 2))
    losses = []
    network.train()
    for batch in torch.randperm(n, generator=order).tensor_split(count):
        loss = loss_of(network(x[batch]), y[batch])
        if settings.kl_weight:
            loss = loss + settings.kl_weight / n * kl(network, settings.prior_sigma)
        losses.append(loss.item())
        _require_finite(losses[-1], "losses", settings, epoch)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return sum(losses) / len(losses)


def _adam(network: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    bayesian = (module for module in network.modules() if isinstance(module, BayesianLinear))
    spared = set() if settings.decay_rho else {layer.rho for layer in bayesian}
    groups: list[dict[str, Any]] = [
        {"params": [p for p in network.parameters() if p not in spared]},
        {"params": [p for p in network.parameters() if p in spared], "weight_decay": 0.0},
    ]
    return torch.optim.Adam(groups, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True)


def _tau(network: nn.Module, x: Vectors, y: Floats, settings: Settings, epoch: int) -> float:
    values = _by_means(network, x, settings, epoch)
    return math.nan if np.all(y == y[0]) else correlate(values, y).kendall


def _by_means(network: nn.Module, x: Vectors, settings: Settings, epoch: int) -> Floats:
    with mean_weights(network):
        values = _values(network, x)
    _require_finite(values, "predictions", settings, epoch)
    return values


def _values(network: nn.Module, x: Vectors) -> Floats:
    """Evaluate a network, which stays in its mode, on all rows, some at a time."""
    was_training = network.training
    network.eval()
    values = np.empty(len(x))
    with torch.no_grad():
        for start in range(0, len(x), _CHUNK):
            values[start : start + _CHUNK] = network(torch.tensor(x[start : start + _CHUNK])).numpy()
    network.train(was_training)
    return values


def _require_finite(values: float | Floats, what: str, settings: Settings, epoch: int) -> None:
    if not np.isfinite(values).all():
        raise DataError(
            f"the training diverged: the {what} of epoch {epoch} (from 0) are not finite; lower learning_rate, now "
            f"{settings.learning_rate:g}, or encode the statistics in a way that keeps them small"
        )


def _check_labelled(x: Vectors, y: Floats, what: str, ordered: bool = True) -> None:
    _check_vectors(x, what)
    if y.shape != (len(x),):
        raise UsageError(f"{what} target: got shape {y.shape}, expected {(len(x),)}, a value for each row")
    if not np.isfinite(y).all():
        raise DataError(f"{what} target: {np.count_nonzero(~np.isfinite(y))} of {len(y)} values are not finite")
    if not len(y) or (ordered and np.all(y == y[0])):
        raise DataError(f"{what} target: all of its {len(y)} values are equal, there is no order to learn from")


def _check_vectors(x: Vectors, what: str) -> None:
    if x.ndim != 2 or x.dtype != np.float32:
        raise UsageError(f"{what} vectors: got {x.dtype} of shape {x.shape}, expected float32 [n, d]")
    finite = np.isfinite(x).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise DataError(f"{what} vectors: row {row} holds a value that is not finite; leave such rows out")


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generator of the CPU, and give it back as it was; those of GPUs are not touched."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _seed(seed: int, *path: int) -> int:
    """Derive an independent seed for a purpose."""
    return int(np.random.SeedSequence((seed, *path)).generate_state(1, np.uint64)[0])
