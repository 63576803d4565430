"""What a proxy and a statistic are: declarations that the scoring plans from and the table keeps.

A statistic says what it reads off a pass; the planner (`zcpipe.scoring.plan`) takes care that everything that can be
read off one pass is. The kinds of statistics, from the most shared to the most free:

- `MapStatistic`, `JacobianStatistic`: block maps and local Jacobians (one number per block);
- `GradientStatistic`, `OutputStatistic`: weights, outputs and their gradients under the loss (one per layer);
- `WeightStatistic`: weights alone, no pass (one per layer);
- `InputGradientStatistic`, `ActivationStatistic`: gradients at the input and the inputs of ReLUs (one per network);
- `CustomStatistic`: a function of the network, with passes of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from zcpipe.errors import UsageError
from zcpipe.ops import ParameterStatistics, parameter_statistics
from zcpipe.ops.philox import Stream

Direction = Literal["higher", "lower", "none"]
Scope = Literal["function", "full"]
Cost = Literal["static", "cheap", "second-order", "per-sample"]
Node = Literal["block", "layer", "network"]

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Recipe:
    """The conditions of a pass. Proxies of equal recipe share one pass.

    `zcpipe.score` scores a network with the weights and the batch that it is given, so ``init`` and ``inputs`` are what
    `zcpipe run` prepares. What a definition feeds by itself, it feeds in both: a recipe with ``redraws`` draws weights
    and noise of the batch's shape (zen), one with ``absolute`` takes absolute weights and one sample of ones of the
    batch's shape (synflow, synflow_bn), and a `CustomStatistic` may make inputs of its own (meco: noise).

    Attributes:
        init: how the weights are drawn; see `zcpipe.scoring.init`. "kaiming_normal": AZ-NAS; "default": as torch's own
            layers do; "normal": standard normals.
        inputs: "noise": i.i.d. standard normal images and random labels; "data": the run's images and labels (noise
            and random labels unless the run says otherwise); "ones": one image of ones, with ``absolute`` alone;
            "none": no pass at all, for a `WeightStatistic`.
        norm: "batch": train mode, normalisation by the batch's statistics; "sample": the same for each sample alone,
            which a `CustomStatistic` that gives the model one sample after the other takes care of; "running": eval
            mode; "drop": normalisation layers are left out, with ``absolute`` alone.
        absolute: parameters and buffers are replaced by their absolute values and everything is computed in float64,
            for gradients and weights (or by `Network.absolute_gradients`).
        redraws: the definition itself draws the weights: also `zcpipe.score` does, and puts the model's own back.
    """

    init: Literal["kaiming_normal", "default", "normal"]
    inputs: Literal["noise", "data", "ones", "none"]
    norm: Literal["batch", "sample", "running", "drop"]
    absolute: bool = False
    redraws: bool = False


@dataclass(frozen=True)
class Gradients:
    """The weights of all layers, in the order of ``modules()``, and the gradient of a scalar for each.

    True gradients are those here times exp(``log_scale``).
    """

    weights: Sequence[Tensor]
    gradients: Sequence[Tensor]
    log_scale: float = 0.0

    @cached_property
    def sums(self) -> ParameterStatistics:
        """Sums over each layer, all taken in one call."""
        return parameter_statistics(self.weights, self.gradients)


@dataclass(frozen=True)
class LayerOutputs:
    """What was read off a layer's outputs: moments of each of its calls, its weight, and the size of the batch."""

    moments: Sequence[Tensor]
    weight: Tensor
    samples: int


@dataclass(frozen=True)
class InputGradient:
    """The gradient of the sum of all outputs at the input, one row a sample."""

    rows: Tensor  # [N, D]
    targets: Tensor | None  # [N], class numbers
    outputs: int  # width of the network's output


@dataclass(frozen=True)
class MapStatistic:
    """One number per block from its feature map, in two steps, so that the second one serves all blocks at once.

    ``moments`` takes the map, images [N, C, H, W] as they are, tokens and vectors as rows [positions, C], to read and
    not to write to, and returns a small tensor. ``finish`` takes those of all blocks and returns their numbers: -inf
    where the definition calls a block degenerate, NaN where its map holds non-finite values.
    """

    name: str
    unit: str
    moments: Callable[[Tensor], Tensor]
    finish: Callable[[Sequence[Tensor]], Sequence[float]]
    node: Node = field(default="block", init=False)


@dataclass(frozen=True)
class JacobianStatistic:
    """One number per block after the first, from one probe of its local Jacobian, in the same two steps.

    ``moments`` takes the gradient with respect to the previous map and the probe it was computed from, both in the
    layout of their maps, [N, C, H, W] or [N, T, C] or [N, C]; ``finish`` takes what it returned, whatever that is, of
    all blocks.
    """

    name: str
    unit: str
    moments: Callable[[Tensor, Tensor], Any]
    finish: Callable[[Sequence[Any]], Sequence[float]]
    node: Node = field(default="block", init=False)


@dataclass(frozen=True)
class GradientStatistic:
    """One number per layer from its weight and the weight's gradient.

    The gradient is that of the loss; under an ``absolute`` recipe that of the sum of all outputs.
    """

    name: str
    unit: str
    of: Callable[[Gradients], Sequence[float] | Values]
    node: Node = field(default="layer", init=False)


@dataclass(frozen=True)
class OutputStatistic:
    """One number per layer from its output and the loss's gradient there, in two steps.

    ``moments`` takes the sums of their product over positions, [N, C] in float64, as soon as the gradient exists, and
    returns a small tensor, which should be a sum over samples; ``finish`` takes those of a layer's calls.
    """

    name: str
    unit: str
    moments: Callable[[Tensor], Tensor]
    finish: Callable[[LayerOutputs], float]
    node: Node = field(default="layer", init=False)


@dataclass(frozen=True)
class WeightStatistic:
    """One number per layer from its weight alone; ``of`` takes the weights of all layers that count.

    A proxy of scope "function" counts those that the output depends on; the others have 0.
    """

    name: str
    unit: str
    of: Callable[[Sequence[Tensor]], Sequence[float] | Values]
    node: Node = field(default="layer", init=False)


@dataclass(frozen=True)
class InputGradientStatistic:
    """One number per network from the gradient of the sum of its outputs at the input."""

    name: str
    unit: str
    of: Callable[[InputGradient], float]
    node: Node = field(default="network", init=False)


@dataclass(frozen=True)
class ActivationStatistic:
    """One number per network from what enters its ReLU modules, in two steps.

    ``moments`` takes the input of one ReLU call, [N, ...], during the forward and returns a small tensor (it may be the
    network's running total, given as the second argument: None at first). ``finish`` takes the last total.
    """

    name: str
    unit: str
    moments: Callable[[Tensor, Tensor | None], Tensor]
    finish: Callable[[Tensor], float]
    node: Node = field(default="network", init=False)


#: Takes images and their tangents (None for zeros) and returns a module's output likewise; None if they do not fit.
PairForward = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor] | None]
OnNorm = Callable[[nn.BatchNorm2d, Tensor, int], None]


class Network(Protocol):
    """A network in the state of its pass, as a `CustomStatistic` gets it: frozen, out of place, nothing hooked.

    What is done to it (gradients asked for, hooks, weights) must be undone. A statistic that leaves weights or hooks
    changed fails, and they are put back.
    """

    model: nn.Module
    samples: int  # size of the batch
    targets: Tensor | None

    @property
    def inputs(self) -> Sequence[Tensor]:  # [N, ...] each
        """Positional arguments of the forward: a copy each time, since a forward may write to them."""
        ...

    @property
    def layers(self) -> Mapping[str, Tensor]:
        """Weights of all layers by name, in the order of ``modules()``."""
        ...

    @property
    def parameters(self) -> Sequence[Tensor]:
        """Parameters in the order of ``model.parameters()``, those of dead layers left out.

        Dead are layers that the output does not depend on, whether they ask for gradients or not. A network that is
        scored in full keeps them.
        """
        ...

    @property
    def live(self) -> Sequence[bool]:  # [layers]
        """Of each of ``layers`` whether its weight is among ``parameters``."""
        ...

    @property
    def gradients(self) -> Gradients:
        """Gradients of the loss for ``layers``, computed once for all statistics of the recipe."""
        ...

    def loss_gradients(
        self, parameters: Sequence[Tensor], inputs: Sequence[Tensor], targets: Tensor | None
    ) -> list[Tensor]:
        """Return the gradients of the loss of a batch, zeros where it does not depend on a parameter.

        One forward and one backward, with the native operations.
        """
        ...

    def absolute_gradients(self, norm: Literal["drop", "batch"]) -> Gradients:
        """Return absolute weights of ``layers`` and gradients of the sum of outputs for one sample of ones, float64.

        ``norm`` is what becomes of normalisation, as in a `Recipe`.
        """
        ...

    def loss(self, output: Tensor, targets: Tensor | None) -> Tensor:
        """Return the scalar loss of an output; targets of a part of the batch for a part of it."""
        ...

    def stream(self, purpose: str) -> Stream:
        """Return the random numbers for a purpose, always the same for this network."""
        ...

    def run(self, inputs: Sequence[Tensor], on_norm: OnNorm | None = None) -> object:
        """Run the model forward without gradients, with the native operations, and return what it returns.

        What it draws (dropout) is the same each time.

        ``on_norm`` is told of every train-mode ``BatchNorm2d`` that runs, dead layers' included: the module, the
        (biased) variances of its channels over the batch, and the number of values that they were taken over.
        """
        ...

    def pair_forwards(
        self, directions: Mapping[Tensor, Tensor], products: Mapping[Tensor, list[Tensor]], anchor: Tensor
    ) -> Mapping[nn.Module, PairForward]:
        """Return forwards of modules whose layers are fused, for values and tangents along weights + t directions.

        Args:
            directions: that of each layer's weight.
            products: each weight's list, which a backward adds the sum of the weight times its gradient to, in place of
                the gradient.
            anchor: a scalar that asks for gradients; results depend on it, so that a backward reaches every layer.
        """
        ...


@dataclass(frozen=True)
class CustomStatistic:
    """A function of the network that runs passes of its own: per-sample gradients, curvature, other inputs.

    ``measure`` returns one number per layer or block, or one for the network, as ``node`` says. ``blind`` says that
    layers that cannot influence the output cannot influence it either, so that it may share a network that has some.
    """

    name: str
    unit: str
    node: Node
    measure: Callable[[Network], Sequence[float] | Values]
    blind: bool = False


Statistic = (
    MapStatistic
    | JacobianStatistic
    | GradientStatistic
    | OutputStatistic
    | WeightStatistic
    | InputGradientStatistic
    | ActivationStatistic
    | CustomStatistic
)


@dataclass(frozen=True)
class Proxy:
    """One number per architecture: a reduction of statistics, or a count of the full architecture.

    ``reduce`` receives the declared statistics by name as float64 arrays over the nodes (of length 1 for those of the
    whole network); proxies without any receive ``params`` and ``macs``. It returns the raw value, -inf where the
    definition says so.

    ``scope`` says whether architectures of one key share the value ("function") or dead layers count too ("full").
    """

    name: str
    direction: Direction
    scope: Scope
    cost: Cost
    recipe: Recipe | None  # None for counts
    statistics: tuple[Statistic, ...]
    reduce: Callable[[Mapping[str, Values]], float]
    unit: str
    formula: str
    paper: str
    targets: bool = False  # whether it needs labels (and then a loss)

    @classmethod
    def of(
        cls,
        statistic: Statistic,
        *,
        recipe: Recipe,
        formula: str,
        paper: str,
        scope: Scope = "function",
        targets: bool = False,
    ) -> Proxy:
        """Return the commonest kind: cheap, the higher the better, one statistic summed over its nodes."""
        return cls(
            name=statistic.name,
            direction="higher",
            scope=scope,
            cost="cheap",
            recipe=recipe,
            statistics=(statistic,),
            reduce=total(statistic.name),
            unit=statistic.unit,
            formula=formula,
            paper=paper,
            targets=targets,
        )


def positions_of(feature: Tensor) -> Tensor:  # [N, C, H, W] or [N, T, C] or [N, C]
    """Return what the moment operations read: images as they are, tokens and vectors as rows, [positions, C].

    Raises:
        UsageError: another number of dimensions.
    """
    if feature.ndim not in (2, 3, 4):
        raise UsageError(
            f"block maps must be [N, C, H, W], tokens [N, T, C] or vectors [N, C], got shape {tuple(feature.shape)}"
        )
    return feature.flatten(0, 1) if feature.ndim == 3 else feature


def only(name: str) -> Callable[[Mapping[str, Values]], float]:
    """Return the reduction of a proxy that is one statistic of the whole network."""
    return lambda statistics: float(statistics[name][0])


def total(name: str) -> Callable[[Mapping[str, Values]], float]:
    """Return the reduction of a proxy that is the sum of a statistic over its nodes."""
    return lambda statistics: float(np.sum(statistics[name]))


def tensor_of(output: object) -> Tensor:  # [N, ...]
    """Return what a network computes: its output, or the first of several.

    Raises:
        UsageError: that is no tensor of floats.
    """
    first = output[0] if isinstance(output, (tuple, list)) and output else output
    if not isinstance(first, Tensor) or not first.is_floating_point():
        what = f"{first.dtype}" if isinstance(first, Tensor) else type(first).__name__
        raise UsageError(f"the model must return a tensor of floats (or several, the first counts), got {what}")
    return first


@contextmanager
def asking(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Inside, autograd records and these parameters ask for gradients; afterwards they do as before."""
    before = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_()
        with torch.enable_grad():
            yield
    finally:
        for parameter, wanted in zip(parameters, before, strict=True):
            parameter.requires_grad_(wanted)
