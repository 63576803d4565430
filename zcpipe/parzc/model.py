"""Models: what was learnt from a table, with all that is needed to predict other tables like it, in one file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from zcpipe.errors import CapabilityError, DataError, UsageError, ZcpipeError, reason_of
from zcpipe.parzc.arrays import part, prefixed
from zcpipe.parzc.features import Encoder
from zcpipe.parzc.labels import Labels, draw, keys_of, parse_samples, require_seeds
from zcpipe.parzc.parallel import HERE, Pool, Progress, each, one_thread
from zcpipe.parzc.predictors import Context, Fitted, Prediction, Predictor, predictor
from zcpipe.parzc.predictors.base import Parameters, Vectors
from zcpipe.parzc.predictors.forest import summed
from zcpipe.parzc.predictors.parzc import spread
from zcpipe.parzc.spec import FeatureSpec
from zcpipe.rank import ranks
from zcpipe.table import Table
from zcpipe.table.files import disk_errors, publish
from zcpipe.table.new import require_outside
from zcpipe.table.schema import canonical, package_version
from zcpipe.untrusted.stream import size_of

FORMAT = 1
_KEY = "zcpipe.parzc"  # of the metadata
_MEND = "name a file that zcpipe parzc train made"
_FAILED = "a feature failed or is missing; zcpipe status says why"


@dataclass(frozen=True)
class Training:
    """What a model was trained on: so many labelled architectures, drawn under the seed."""

    samples: int
    seed: int


class Model:
    """A trained predictor with the encoder of its features.

    Attributes:
        encoder: what makes the features.
        predictor: what learnt, with its parameters.
        fitted: what came of it, for each seed.
        table: space, dataset and recipe of the table.
        target: the truth's column.
        direction: of the target, "higher" or "lower".
        training: what it was trained on.
        version: of the zcpipe that trained it.
    """

    def __init__(
        self,
        encoder: Encoder,
        predictor: Predictor,
        fitted: tuple[Fitted, ...],
        table: Mapping[str, Any],
        target: str,
        direction: Literal["higher", "lower"],
        training: Training,
        version: str,
    ) -> None:
        self.encoder = encoder
        self.predictor = predictor
        self.fitted = fitted
        self.table = dict(table)
        self.target = target
        self.direction = direction
        self.training = training
        self.version = version

    def predict(self, table: Table) -> pa.Table:
        """Predict every architecture of a table.

        Returns:
            In order of index: ``index``, ``arch``, ``mean`` and ``std`` of the target, ``rank`` (1 is best, ties
            averaged) and ``reason``. The first three are null for rows that lack a feature, or have a slot that no
            architecture had on which the features were fitted: ``reason`` says so, and is null for the others. So is
            ``std`` where the predictor has none.

        Raises:
            UsageError: the table lacks a column.
            DataError: it is of another space, dataset or recipe, or all of its architectures have slots that are new.
        """
        self._require_same(table)
        encoded = self.encoder.encode(table)
        mean, std = np.full(len(table), np.nan), np.full(len(table), np.nan)
        with one_thread():
            found = self.predict_vectors(encoded.population)
        mean[encoded.usable], std[encoded.usable] = found.mean, found.std
        place = encoded.usable.sum() + 1 - ranks(mean, self.direction)
        columns = table.to_arrow(["index", "arch"])
        for name, values in (("mean", mean), ("std", std), ("rank", place)):
            field = pa.field(name, pa.float64(), metadata=self._meaning(name))
            columns = columns.append_column(field, pa.array(values, from_pandas=True))
        reasons: list[str | None] = [None if usable else _FAILED for usable in encoded.usable]
        for row, slot in encoded.unknown.items():
            reasons[row] = f"the slot {slot} is new since the training; train again on a table that holds it"
        return columns.append_column("reason", pa.array(reasons, pa.string()))

    def predict_vectors(self, x: Vectors) -> Prediction:
        """Predict feature vectors [n, d] that the encoder made: the mixture of what came of each seed.

        A deviation is NaN where no seed has one, and the seeds cannot differ.
        """
        found = [one.predict(x) for one in self.fitted]
        mean, std = summed(np.stack([one.mean for one in found])) / len(found), spread(found)
        if not self.predictor.is_random():
            std[np.isnan([one.std for one in found]).all(axis=0)] = np.nan
        return Prediction(mean, std)

    def save(self, path: Path | str) -> None:
        """Write it as one safetensors file; nothing is overwritten.

        Raises:
            DataError: the file is there already, cannot be written, or lies in a table.
            CapabilityError: safetensors is not installed.
        """
        require_outside(Path(path))
        publish(Path(path), self.to_bytes(), exclusive=True)

    def to_bytes(self) -> bytes:
        """Return the file's content: the same model gives the same bytes.

        Raises:
            DataError: an array holds a value that is not finite, so that no file of it could be read.
            CapabilityError: safetensors is not installed.
        """
        _import_safetensors()
        from safetensors.numpy import save

        assert isinstance(self.predictor, Parameters)  # noqa: S101 - all are
        record = {
            "format": FORMAT,
            "version": self.version,
            "table": self.table,
            "target": self.target,
            "direction": self.direction,
            "samples": self.training.samples,
            "seed": self.training.seed,
            "predictor": {"name": self.predictor.name, "parameters": self.predictor.model_dump(mode="json")},
            "encoder": self.encoder.record(),
            "fitted": [one.record() for one in self.fitted],
        }
        tensors = prefixed(self.encoder.tensors(), "encoder")
        for number, one in enumerate(self.fitted):
            tensors |= prefixed(one.tensors(), f"fitted.{number}")
        arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
        for name, array in arrays.items():
            if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
                raise DataError(
                    f"the training failed: the array {name} of the model holds a value that is not finite; choose "
                    "other parameters of the predictor, or another encoding"
                )
        return save(arrays, metadata={_KEY: canonical(record)})

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a model; the file is data, of which nothing is executed, and all of it is checked.

        Raises:
            DataError: the file cannot be read, is damaged, or is no such model.
            CapabilityError: safetensors is not installed.
        """
        place = Path(path)
        text, tensors = _read(place)
        try:
            record = _Record.model_validate(json.loads(text))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(step) for step in first["loc"])
            raise DataError(
                f"{place}: its record is not a model's ({where}: {first['msg'].lower()}); {_MEND}"
            ) from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place}: its record is not a model's ({reason_of(error):.160}); {_MEND}") from error
        try:
            return cls._restore(record, tensors)
        except CapabilityError:
            raise
        except ZcpipeError as error:
            raise DataError(f"{place} is no model that this zcpipe can use: {error}") from error

    @classmethod
    def _restore(cls, record: _Record, tensors: Mapping[str, NDArray[Any]]) -> Self:
        encoder = Encoder.restore(record.encoder, part(tensors, "encoder"))
        learnt = predictor(record.predictor.name, record.predictor.parameters)
        context = Context(encoder.coordinates, np.zeros((0, len(encoder.coordinates)), np.float32))
        with one_thread():  # as in training: a Gaussian process is factorised here
            fitted = tuple(
                learnt.restore(one, part(tensors, f"fitted.{number}"), context)
                for number, one in enumerate(record.fitted)
            )
        training = Training(record.samples, record.seed)
        table = record.table.model_dump()
        return cls(encoder, learnt, fitted, table, record.target, record.direction, training, record.version)

    def _require_same(self, table: Table) -> None:
        for name, own in self.table.items():
            other = table.identity[name]
            if other != own:
                raise DataError(
                    f"the model was trained on a table of {name} {_shown(own, other)}, this one is of "
                    f"{name} {_shown(other, own)}; train another with zcpipe parzc train"
                )

    def _meaning(self, name: str) -> dict[str, str]:
        meaning = {"target": self.target, "predictor": self.predictor.name}
        return {**meaning, "direction": "lower" if name == "rank" else self.direction if name == "mean" else "none"}


def train(
    table: Table,
    labels: Labels,
    spec: FeatureSpec,
    learner: Predictor,
    *,
    samples: str | None = None,
    seeds: int = 1,
    seed: int = 0,
    init: Model | None = None,
    pool: Pool = HERE,
    progress: Progress | None = None,
) -> Model:
    """Train a predictor on architectures of a table.

    The encoder is fitted on all architectures of the table, which takes no label: it sees those that are predicted
    later (it is transductive), and no truth of them.

    Args:
        table: the architectures.
        labels: their accuracies.
        spec: what the features are made of.
        learner: what learns.
        samples: how many labelled architectures to draw, as a count or a share ("20%"); None for all.
        seeds: how many times to train, each time under another seed on the same architectures; the model is the mean.
        seed: of the draw, and the first of the seeds.
        init: a model whose networks' weights training starts from.
        pool: where to train, seed by seed.
        progress: told how many seeds are done.

    Raises:
        UsageError: the table lacks a column, or ``init`` is of another predictor or of other sizes.
        DataError: too few labels, or a constant target.
    """
    require_seeds(seeds, seed)
    encoder, encoded = Encoder.fit_encode(table, spec)
    rows = labels.require(encoded.usable)
    chosen = rows if samples is None else rows[draw(len(rows), parse_samples(samples, len(rows)), seed)]
    start = None
    if init is not None:
        if init.predictor.name != learner.name:
            raise UsageError(
                f"{learner.name} cannot start from a model of {init.predictor.name}; a network starts from one of its "
                "own kind: --predictor mabn from a model of mabn"
            )
        if init.encoder.spec != encoder.spec:
            theirs, own = init.encoder.spec.model_dump(), spec.model_dump()
            raise UsageError(
                f"the model to start from has other features ({_shown(theirs, own)}; here {_shown(own, theirs)}); "
                "choose the same"
            )
        if init.encoder.coordinates != encoder.coordinates:
            raise UsageError(
                f"the model to start from has other features ({len(init.encoder.coordinates)} coordinates, here "
                f"{len(encoder.coordinates)}); train it on a table of networks that have the same places"
            )
        start = init.fitted
    job = _Job(
        encoded.x[chosen],
        labels.values[chosen],
        keys_of(table)[chosen],
        encoder,
        encoded.population,
        learner,
        start,
    )
    fitted = each(_fit, job, [seed + k for k in range(seeds)], pool, progress)
    identity = {name: table.identity[name] for name in ("space", "dataset", "recipe")}
    training = Training(len(chosen), seed)
    direction: Literal["higher", "lower"] = "lower" if labels.direction == "lower" else "higher"
    return Model(encoder, learner, tuple(fitted), identity, labels.target, direction, training, package_version())


@dataclass(frozen=True)
class _Job:
    x: Vectors
    y: NDArray[np.float64]
    keys: NDArray[np.int64]
    encoder: Encoder
    population: Vectors
    learner: Predictor
    start: tuple[Fitted, ...] | None


def _fit(job: _Job, seed: int) -> Fitted:
    start = None if job.start is None else job.start[seed % len(job.start)]
    context = Context(job.encoder.coordinates, job.population, start, job.keys)
    return job.learner.fit(job.x, job.y, context, seed)


class _Identity(BaseModel):
    model_config = ConfigDict(extra="forbid")

    space: str
    dataset: str
    recipe: dict[str, Any]


class _Learner(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    parameters: dict[str, Any]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid")

    format: Literal[1]
    version: str
    table: _Identity
    target: str
    direction: Literal["higher", "lower"]
    samples: int = Field(ge=0)
    seed: int = Field(ge=0)
    predictor: _Learner
    encoder: dict[str, Any]
    fitted: list[dict[str, Any]] = Field(min_length=1)


def _read(path: Path) -> tuple[str, dict[str, NDArray[Any]]]:
    """Read the record's text and the arrays of a file."""
    safetensors = _import_safetensors()
    size_of(path, "a file that zcpipe parzc train made")
    with disk_errors("read", path, _MEND), path.open("rb"):
        pass  # says in plain words that it may not be read
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if _KEY not in metadata:
                raise DataError(f"{path} was not written by zcpipe parzc train; {_MEND}")
            return metadata[_KEY], {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (safetensors.SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is truncated, damaged or no safetensors file ({reason_of(error)}); {_MEND}") from error


def _import_safetensors() -> Any:  # noqa: ANN401 - a module
    try:
        import safetensors
    except ImportError as error:
        raise CapabilityError(
            f"models need safetensors ({error}); install it with pip install 'zcpipe[parzc]'"
        ) from error
    return safetensors


def _shown(value: object, other: object) -> str:
    """Return a value, of a mapping what differs from the other, in one line."""
    if isinstance(value, dict) and isinstance(other, dict):
        return ", ".join(f"{key} {value.get(key)!r}" for key in sorted(value) if value.get(key) != other.get(key))
    return repr(value)
