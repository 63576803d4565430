"""REINFORCE: a controller learns, choice by choice, what accurate architectures are made of."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from zcpipe.errors import DataError, UsageError
from zcpipe.parzc.predictors.base import Parameters
from zcpipe.rank import ranks
from zcpipe.search.algorithms.base import Setting
from zcpipe.search.candidates import TRIES
from zcpipe.search.warmup import WarmUp
from zcpipe.spaces.base import Architecture, MadeOfChoices

A = TypeVar("A", bound=Architecture)
Floats = NDArray[np.float64]

_ROUND = 16  # architectures that a warm-up draws before their rewards teach the controller


class Reinforce(Parameters):
    """Draw architectures from a controller and make choices more probable that gave more than the average reward.

    The controller is the one that Dong et al. (NATS-Bench, TPAMI 2021) publish for the topology space: no network, but
    an independent categorical distribution for each choice, whose logits Adam moves along the policy's gradient
    (Williams, 1992) with an exponential moving average of the rewards for a baseline. As there, the baseline takes a
    reward in before the reward is compared with it. What the controller draws that is no candidate is drawn again.

    A warm-up that keeps N of M draws M architectures from the controller in rounds, and rewards each by its rank among
    those drawn so far by the score. Then Adam and the baseline begin anew, the N best of the M are trained first, and
    the controller goes on from what the scores and they have taught it.

    Attributes:
        learning_rate: Adam's.
        momentum: of the baseline.
    """

    name: ClassVar[str] = "reinforce"
    takes: ClassVar[frozenset[str]] = frozenset({"warmup"})
    paper: ClassVar[str] = "Dong et al., NATS-Bench: Benchmarking NAS Algorithms for Topology and Size, TPAMI 2021"

    learning_rate: float = Field(default=0.01, gt=0, allow_inf_nan=False)
    momentum: float = Field(default=0.9, ge=0, lt=1)

    def start(self, setting: Setting[A]) -> _Reinforce[A]:
        """Begin a search.

        Raises:
            UsageError: the space's architectures are not made of independent choices (`MadeOfChoices`).
            DataError: no candidate is drawn, or none of those that the warm-up draws has a score.
        """
        return _Reinforce(setting, Controller(setting, self.learning_rate, self.momentum))


class Controller(Generic[A]):
    """A categorical distribution for each choice of a space.

    Args:
        setting: whose candidates are drawn.
        learning_rate: Adam's.
        momentum: of the baseline.

    Attributes:
        logits: [choices, most options of any], -inf where a choice has fewer.
        probabilities: the distributions that they make.

    Raises:
        UsageError: the space's architectures are not made of independent choices.
    """

    def __init__(self, setting: Setting[A], learning_rate: float, momentum: float) -> None:
        space = setting.candidates.space
        if not isinstance(space, MadeOfChoices):
            raise UsageError(
                f"reinforce learns which of a space's options to choose, and {space.name} has no options that are the "
                "same for all its architectures; search it by random or evolution, or by scores alone with aznas"
            )
        self._choose = space.choose
        self._candidates = setting.candidates
        self._rng = setting.rng("reinforce")
        sizes = np.array(space.choices)
        there = np.arange(sizes.max()) < sizes[:, None]
        self.logits: Floats = np.where(there, 1e-3 * self._rng.standard_normal(there.shape), -np.inf)
        self._learning_rate, self._momentum = learning_rate, momentum
        self.probabilities = _softmax(self.logits)
        self._drew = False
        self.forget()

    def forget(self) -> None:
        """Begin Adam and the baseline anew; the logits stay."""
        self._mean, self._square = np.zeros(self.logits.shape), np.zeros(self.logits.shape)
        self._steps = 0
        self._sum = self._weight = 0.0

    def draw(self) -> tuple[A, Sequence[int]] | None:
        """Draw a candidate; return it and what it is made of, None where none of `TRIES` draws was a candidate.

        Raises:
            DataError: none ever was.
        """
        reached = np.cumsum(self.probabilities, axis=1)
        for _ in range(TRIES):
            numbers = (reached < self._rng.random(len(reached))[:, None] * reached[:, -1:]).sum(axis=1).tolist()
            arch = self._choose(numbers)
            if arch is not None and arch in self._candidates:
                self._drew = True
                return arch, numbers
        if self._drew:
            return None
        raise DataError(
            f"none of {TRIES} architectures that the controller drew is a candidate: the table holds too few of the "
            "space, or the limits are too narrow for reinforce; search by random or evolution"
        )

    def learn(self, numbers: Sequence[int], reward: float) -> None:
        """Take one step along the gradient of a choice's probability."""
        self._sum = self._momentum * self._sum + (1 - self._momentum) * reward
        self._weight = self._momentum * self._weight + (1 - self._momentum)
        gradient = -self.probabilities
        gradient[np.arange(len(numbers)), numbers] += 1
        gradient *= reward - self._sum / self._weight
        self._steps += 1
        self._mean = 0.9 * self._mean + 0.1 * gradient
        self._square = 0.999 * self._square + 0.001 * gradient**2
        mean, square = self._mean / (1 - 0.9**self._steps), self._square / (1 - 0.999**self._steps)
        self.logits = self.logits + self._learning_rate * mean / (np.sqrt(square) + 1e-8)
        self.probabilities = _softmax(self.logits)


def _softmax(logits: Floats) -> Floats:  # [choices, most]
    unscaled = np.exp(logits - logits.max(axis=1, keepdims=True))
    scaled: Floats = unscaled / unscaled.sum(axis=1, keepdims=True)
    return scaled


class _Reinforce(Generic[A]):
    def __init__(self, setting: Setting[A], controller: Controller[A]) -> None:
        self._controller = controller
        self._first: deque[tuple[A, Sequence[int]]] = deque()
        if setting.warmup is not None:
            self._first.extend(_warm(controller, setting, setting.warmup))
        self._asked: Sequence[int] = ()
        self._worst = math.inf

    def ask(self) -> A | None:
        drawn = self._first.popleft() if self._first else self._controller.draw()
        if drawn is None:
            return None
        arch, self._asked = drawn
        return arch

    def tell(self, arch: A, accuracy: float) -> None:
        if not math.isnan(accuracy):
            self._worst = min(self._worst, accuracy)
        elif math.isinf(self._worst):
            return  # a failure before any success: there is no scale yet to put it on
        self._controller.learn(self._asked, self._worst if math.isnan(accuracy) else accuracy)


def _warm(controller: Controller[A], setting: Setting[A], warmup: WarmUp) -> list[tuple[A, Sequence[int]]]:
    """Reward the controller by scores, as long as it draws any candidate; return the best of them, best first."""
    made_of: dict[A, Sequence[int]] = {}
    archs: list[A] = []
    scored: dict[str, Floats] = {}
    while len(archs) < warmup.scored:
        asked = (controller.draw() for _ in range(min(_ROUND, warmup.scored - len(archs))))
        drawn = [one for one in asked if one is not None]
        if not drawn:
            break
        made_of.update(drawn)
        archs += [arch for arch, _ in drawn]
        new = warmup.guide.measure([arch for arch, _ in drawn])
        scored = {name: np.concatenate([scored[name], new[name]]) if scored else new[name] for name in new}
        place = ranks(warmup.guide.order(scored))
        m = np.count_nonzero(~np.isnan(place))
        for (_, numbers), of_one in zip(drawn, place[-len(drawn) :].tolist(), strict=True):
            if not math.isnan(of_one):
                controller.learn(numbers, (of_one - 0.5) / m)
    controller.forget()
    return [(arch, made_of[arch]) for arch in warmup.best(archs, setting.candidates)]


METHODS = (Reinforce,)
