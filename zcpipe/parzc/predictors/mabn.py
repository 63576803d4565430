"""Ensembles of ParZC's networks: the paper's MABN, and the one that the published code trains."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator
from torch import nn

from zcpipe.errors import DataError, UsageError
from zcpipe.parzc.arrays import Tensors, array_of, part, prefixed
from zcpipe.parzc.bayesian import RHO
from zcpipe.parzc.mabn import MABN, PublishedMABN
from zcpipe.parzc.predictors import defaults
from zcpipe.parzc.predictors.base import Context, Floats, Parameters, Prediction, Range, Vectors, require_labelled
from zcpipe.parzc.predictors.targets import Scale, Shown
from zcpipe.parzc.training import Scaled, Settings, fit_ensemble, predict

_TRAINING: Mapping[str, Range] = {
    "shown": Range(choices=("scores", "raw")),
    "dropout": Range(0.0, 0.5),
    "settings.learning_rate": Range(1e-4, 1e-2, log=True),
    "settings.weight_decay": Range(1e-5, 1e-1, log=True),
    "settings.epochs": Range(choices=(50, 100, 200, 300)),
    "settings.batch_size": Range(choices=(10, 32, 64, 128)),
    "settings.loss": Range(choices=("mse", "pairwise", "diffkendall", "mse+diffkendall", "pairwise+diffkendall")),
}


_PRECISION = threading.RLock()  # torch's default is one for all threads


@contextmanager
def _single_precision() -> Iterator[None]:
    """Make networks and draws in float32, whatever a user's own code has as torch's default; one thread at a time."""
    with _PRECISION:
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


@dataclass(frozen=True)
class FittedNetworks:
    """An ensemble; mean and deviation of a prediction are over its members and draws of their weights."""

    models: tuple[Scaled, ...]
    samples: int
    seed: int
    scale: Scale  # of the targets

    @_single_precision()
    def predict(self, x: Vectors) -> Prediction:
        """Predict by Monte Carlo; the draws are the same each time.

        Raises:
            UsageError: another number of features.
        """
        return self.scale.prediction(*predict(self.models, x, self.samples, self.seed))

    def record(self) -> dict[str, Any]:
        """Return what it is besides its arrays."""
        return {"seed": self.seed}

    def tensors(self) -> Tensors:
        """Return the arrays that it consists of."""
        tensors = prefixed(self.scale.tensors(), "scale")
        for member, model in enumerate(self.models):
            tensors |= {f"{member}.{name}": tensor.numpy() for name, tensor in model.state_dict().items()}
        return tensors


class _Networks(Parameters):
    """What both ensembles share; settings that are not given are those of ``default``."""

    name: ClassVar[str]
    default: ClassVar[Mapping[str, Any]]

    shown: Shown
    settings: Settings

    @field_validator("settings", mode="before")
    @classmethod
    def _filled(cls, given: object) -> object:
        return {**cls.default["settings"], **given} if isinstance(given, dict) else given

    @_single_precision()
    def fit(self, x: Vectors, y: Floats, context: Context, seed: int) -> FittedNetworks:
        """See `Predictor.fit`. With ``context.init`` each member starts from the weights of one there, in turn."""
        require_labelled(x, y)
        starts = iter(range(self.settings.members))
        start = None if context.init is None else self._start(context)

        def make() -> nn.Module:
            network = self._network(context)
            if start is not None:
                network.load_state_dict(start[next(starts) % len(start)])
            return network

        scale = Scale.fit(y, self.shown)
        fitted = fit_ensemble(make, x, scale.show(y), self.settings, seed, context.keys)
        return FittedNetworks(tuple(one.model for one in fitted), self.settings.mc_samples, seed, scale)

    @_single_precision()
    def restore(
        self, record: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]], context: Context
    ) -> FittedNetworks:
        """See `Predictor.restore`."""
        members, seed = self.settings.members, record.get("seed")
        if type(seed) is not int or seed < 0:
            raise DataError(f"the record of {self.name} has no seed of at least 0")
        with torch.device("meta"):  # a size that no array has costs nothing
            shapes = Scaled(self._network(context)).state_dict()
        scale = Scale.restore(part(tensors, "scale"))
        held_arrays = sum(not name.startswith("scale.") for name in tensors)
        if held_arrays != members * len(shapes):
            raise DataError(f"{held_arrays} arrays are not those of {members} networks of {len(shapes)} each")
        models = []
        for member in range(members):
            held = part(tensors, str(member))
            state = {name: array_of(held, name, _dtype(tensor), tuple(tensor.shape)) for name, tensor in shapes.items()}
            self._check_layout(state, context)
            model = Scaled(self._network(context)).eval()
            model.load_state_dict({name: torch.tensor(array) for name, array in state.items()})
            models.append(model)
        return FittedNetworks(tuple(models), self.settings.mc_samples, seed, scale)

    @abstractmethod
    def _network(self, context: Context) -> nn.Module:
        """Make a network with first weights of torch's generator."""

    def _check_layout(self, state: Mapping[str, NDArray[Any]], context: Context) -> None:
        """Refuse tokens that are not those of the features."""

    def _start(self, context: Context) -> Sequence[Mapping[str, torch.Tensor]]:
        """Return the weights to start from, of each network.

        Raises:
            UsageError: they are of another predictor or of other sizes.
        """
        if not isinstance(context.init, FittedNetworks):
            raise UsageError(f"{self.name} cannot start from a model of another predictor; give --init one of its own")
        shapes = {name: tuple(tensor.shape) for name, tensor in self._network(context).state_dict().items()}
        states = [model.network.state_dict() for model in context.init.models]
        for name in dict.fromkeys((*shapes, *states[0])):
            got = tuple(states[0][name].shape) if name in states[0] else None
            if got != shapes.get(name):
                raise UsageError(
                    f"{self.name} cannot start from the model: its {name} has shape {got}, expected "
                    f"{shapes.get(name)}; use the same features and sizes"
                )
        return states


class Mabn(_Networks):
    """An ensemble of the paper's form over one token for each part of a network; see `zcpipe.parzc.mabn.MABN`."""

    name: ClassVar[str] = "mabn"
    default: ClassVar[Mapping[str, Any]] = defaults.MABN
    ranges: ClassVar[Mapping[str, Range]] = {
        "dim": Range(choices=(16, 32, 64, 128)),
        "depth": Range(choices=(1, 2, 3, 4)),
        "token_hidden": Range(choices=(16, 32, 64)),
        "channel_hidden": Range(choices=(32, 64, 128, 256)),
        **_TRAINING,
    }

    dim: int = Field(default=defaults.MABN["dim"], ge=1, le=4096)
    depth: int = Field(default=defaults.MABN["depth"], ge=1, le=64)
    token_hidden: int = Field(default=defaults.MABN["token_hidden"], ge=1, le=16384)
    channel_hidden: int = Field(default=defaults.MABN["channel_hidden"], ge=1, le=16384)
    dropout: float = Field(default=defaults.MABN["dropout"], ge=0, lt=1)
    rho: float = Field(default=RHO, ge=-50, le=10)
    shown: Shown = "scores"
    settings: Settings = Settings(**defaults.MABN["settings"])

    def _network(self, context: Context) -> nn.Module:
        return MABN(
            len(context.coordinates),
            context.layout,
            dim=self.dim,
            depth=self.depth,
            token_hidden=self.token_hidden,
            channel_hidden=self.channel_hidden,
            dropout=self.dropout,
            rho=self.rho,
        )

    def _check_layout(self, state: Mapping[str, NDArray[Any]], context: Context) -> None:
        expected = np.where(context.layout < 0, len(context.coordinates), context.layout)
        if not np.array_equal(state["network.layout"], expected):
            raise DataError("the tokens of the networks are not those of the features")


class PublishedMabn(_Networks):
    """An ensemble of the published code's form; see `zcpipe.parzc.mabn.PublishedMABN`."""

    name: ClassVar[str] = "mabn-published"
    default: ClassVar[Mapping[str, Any]] = defaults.PUBLISHED
    ranges: ClassVar[Mapping[str, Range]] = {
        "size": Range(choices=(64, 128, 256, 512)),
        "dim": Range(choices=(64, 128, 256)),
        "depth": Range(choices=(1, 2, 3, 4)),
        **_TRAINING,
    }

    size: int = Field(default=defaults.PUBLISHED["size"], ge=16, le=16384)
    dim: int = Field(default=defaults.PUBLISHED["dim"], ge=2, le=8192)
    depth: int = Field(default=defaults.PUBLISHED["depth"], ge=1, le=64)
    dropout: float = Field(default=defaults.PUBLISHED["dropout"], ge=0, lt=1)
    shown: Shown = "raw"
    settings: Settings = Settings(**defaults.PUBLISHED["settings"])

    def _network(self, context: Context) -> nn.Module:
        return PublishedMABN(
            len(context.coordinates), size=self.size, dim=self.dim, depth=self.depth, dropout=self.dropout
        )


def _dtype(tensor: torch.Tensor) -> type[np.generic]:
    return torch.empty(0, dtype=tensor.dtype).numpy().dtype.type
