"""The default predictor: several learners, each heard by the normal scores of its predictions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from zcpipe.errors import DataError, UsageError, unknown_name
from zcpipe.parzc.arrays import Tensors, part, prefixed, scores_of
from zcpipe.parzc.encodings import Scores
from zcpipe.parzc.predictors import defaults
from zcpipe.parzc.predictors.base import (
    PARTS,
    Context,
    Fitted,
    Floats,
    Parameters,
    Prediction,
    Predictor,
    Range,
    Vectors,
    columns,
    part_of,
    require_labelled,
)
from zcpipe.parzc.predictors.forest import summed
from zcpipe.parzc.predictors.targets import Scale


@dataclass(frozen=True)
class FittedMembers:
    """Learners, and what their predictions of the population were like.

    A member's prediction becomes its normal score among the member's predictions of the population, and the mean over
    the members orders architectures. To become a target again the mean goes to what has the same rank, in the
    population, among the means of the members' predictions.
    """

    members: tuple[Fitted, ...]
    parts: tuple[NDArray[np.int64], ...]  # the features that each sees
    scores: Scores  # of each member's predictions
    scale: Scale  # from targets to the means of the scores

    def predict(self, x: Vectors) -> Prediction:
        """Predict; the deviation is that of the first member that gives one, or without any that between the members.

        Those of several members are not put together: trees that are grown to the end differ by chance as well, and a
        deviation that counts what lies between them covers far more targets than it says.

        Raises:
            UsageError: another number of features.
        """
        found = [member.predict(columns(x, own)) for member, own in zip(self.members, self.parts, strict=True)]
        means = np.stack([one.mean for one in found], axis=1)
        return Prediction(self.scale.back(_combined(self.scores, means)), _deviation(found))

    def record(self) -> dict[str, Any]:
        """Return what it is besides its arrays."""
        return {"members": [member.record() for member in self.members]}

    def tensors(self) -> Tensors:
        """Return the arrays that it consists of."""
        tensors = {**prefixed(self.scores.tensors(), "scores"), **prefixed(self.scale.tensors(), "scale")}
        for number, member in enumerate(self.members):
            tensors |= prefixed(member.tensors(), str(number))
        return tensors


class Parzc(Parameters):
    """The mean of the normal scores of several predictors' predictions.

    Attributes:
        members: name and parameters of each. Behind the name may stand ``:statistics``, ``:proxies`` or ``:both`` for
            the part of the features that it sees; who would see none is left out. The first that gives a deviation
            gives that of the whole.
    """

    name: ClassVar[str] = "parzc"
    ranges: ClassVar[Mapping[str, Range]] = {}

    members: tuple[tuple[str, dict[str, Any]], ...] = Field(
        default=tuple((name, dict(parameters)) for name, parameters in defaults.PARZC), min_length=1
    )

    def is_random(self) -> bool:
        """See `Predictor.is_random`: as soon as a member is."""
        from zcpipe.parzc.predictors import predictor  # which lists this one

        return any(predictor(text.partition(":")[0], parameters).is_random() for text, parameters in self.members)

    def fit(self, x: Vectors, y: Floats, context: Context, seed: int) -> FittedMembers:
        """See `Predictor.fit`. With ``context.init`` the members that are networks start from those there.

        Raises:
            UsageError: as `Predictor.fit`, or no member is a network that could start from another.
        """
        require_labelled(x, y)
        heard = self._heard(context)
        members = tuple(
            learner.fit(columns(x, own), y, context.part(own, start), seed)
            for (learner, own), start in zip(heard, self._starts(context.init, len(heard)), strict=True)
        )
        parts = tuple(own for _, own in heard)
        seen = [columns(context.population, own) for own in parts]
        means = np.stack([member.predict(own).mean for member, own in zip(members, seen, strict=True)], axis=1)
        scores = Scores.fit(means, np.zeros(len(members), bool))
        return FittedMembers(members, parts, scores, matched(means.mean(axis=1), _combined(scores, means)))

    def restore(
        self, record: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]], context: Context
    ) -> FittedMembers:
        """See `Predictor.restore`."""
        records = record.get("members")
        heard = self._heard(context)
        if not (isinstance(records, list) and len(records) == len(heard)):
            raise DataError(f"the record of {self.name} is not that of {len(heard)} members")
        if not all(isinstance(one, dict) for one in records):
            raise DataError(f"the record of {self.name} has a member that is no record")
        members = tuple(
            learner.restore(one, part(tensors, str(number)), context.part(own))
            for number, ((learner, own), one) in enumerate(zip(heard, records, strict=True))
        )
        scale = Scale.restore(part(tensors, "scale"))
        scores = scores_of(part(tensors, "scores"), len(members))
        return FittedMembers(members, tuple(own for _, own in heard), scores, scale)

    def has_network(self, context: Context) -> bool:
        """Whether a member that sees any of the features is a network, which can start from another.

        Raises:
            UsageError: a member is none, or none sees any of the features.
        """
        from zcpipe.parzc.predictors.mabn import Mabn, PublishedMabn

        return any(isinstance(learner, Mabn | PublishedMabn) for learner, _ in self._heard(context))

    def _heard(self, context: Context) -> list[tuple[Predictor, NDArray[np.int64]]]:
        """Return the members that see any features, and which."""
        from zcpipe.parzc.predictors import predictor  # which lists this one

        heard = []
        for text, parameters in self.members:
            name, _, features = text.partition(":")
            if name == self.name:
                raise UsageError(f"{self.name} cannot be a member of itself")
            if features not in ("", *PARTS):
                raise unknown_name("part of the features", features, PARTS)
            learner, own = predictor(name, parameters), part_of(context.coordinates, features or "all")
            if len(own):
                heard.append((learner, own))
        if not heard:
            raise UsageError(f"no member of {self.name} sees any of the features; name statistics or proxies for them")
        return heard

    def _starts(self, init: Fitted | None, members: int) -> list[Fitted | None]:
        from zcpipe.parzc.predictors.mabn import FittedNetworks

        if init is None:
            return [None] * members
        if not isinstance(init, FittedMembers) or len(init.members) != members:
            raise UsageError(f"{self.name} cannot start from a model of other members; give --init one of its own")
        starts: list[Fitted | None] = [one if isinstance(one, FittedNetworks) else None for one in init.members]
        if not any(starts):
            raise UsageError(
                f"{self.name} has no network among its members that could start from a model; leave --init out, or use "
                "--predictor mabn with a model of mabn"
            )
        return starts


def matched(values: Floats, shown: Floats) -> Scale:
    """Make the map that takes ``shown`` to what has the same rank among ``values``, of one population, [N] each.

    It keeps at most 512 points. Where either does not differ from one point to the next, both are left out: the map
    increases strictly, so that no order is lost.
    """
    at = np.unique(np.linspace(0, len(values) - 1, min(len(values), 512)).round().astype(np.int64))
    values, shown = np.sort(values)[at], np.sort(shown)[at]
    kept = [0]
    for point in range(1, len(at)):
        if values[point] > values[kept[-1]] and shown[point] > shown[kept[-1]]:
            kept.append(point)
    if len(kept) < 2:
        raise DataError("every architecture of the table is predicted the same: its features do not tell them apart")
    values, shown = values[kept], shown[kept]
    return Scale(values, shown, float((values[-1] - values[0]) / (shown[-1] - shown[0])))


def spread(found: list[Prediction]) -> Floats:
    """Compute the standard deviation of the mixture of several predictions of the same rows, about its mean: [n].

    Those without a deviation count with their mean alone; a row is NaN where none has one and there is only one.
    """
    means = np.stack([one.mean for one in found])
    stds = np.stack([one.std for one in found])
    known = ~np.isnan(stds)
    counts = known.sum(axis=0)
    inner = summed(np.where(known, stds, 0.0) ** 2) / np.maximum(counts, 1)
    variance = summed((means - summed(means) / len(found)) ** 2) / len(found) + inner
    return np.where((counts == 0) & (len(found) == 1), np.nan, np.sqrt(variance))


def _deviation(found: list[Prediction]) -> Floats:  # [n]
    given = [one.std for one in found if not np.isnan(one.std).any()]
    return given[0] if given else spread(found)


def _combined(scores: Scores, means: Floats) -> Floats:  # [n, members] -> [n]
    encoded = np.empty(means.shape, np.float32)
    scores.encode(means, encoded)
    result: Floats = encoded.astype(np.float64).mean(axis=1)
    return result
