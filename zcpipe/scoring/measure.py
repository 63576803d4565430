"""From proxies to values: running the plan, what went wrong, and the reductions at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from zcpipe.errors import NonfiniteError, UnsupportedError, UsageError, is_out_of_memory, trace
from zcpipe.ops.layout import contiguous_images, needs_other_layout
from zcpipe.ops.philox import Stream
from zcpipe.proxies.base import (
    CustomStatistic,
    Gradients,
    GradientStatistic,
    Proxy,
    Recipe,
    Statistic,
    WeightStatistic,
)
from zcpipe.scoring.absolute import absolute_gradients
from zcpipe.scoring.arithmetic import plain_arithmetic
from zcpipe.scoring.blocks import BlockResult, ProbeSource, block_statistics
from zcpipe.scoring.guard import left_as_it_was, untouched
from zcpipe.scoring.network import Loss, ScoredNetwork
from zcpipe.scoring.plan import Group, Pass, plan
from zcpipe.scoring.plan import Protocol as PlanProtocol
from zcpipe.scoring.rewrite import run_fast
from zcpipe.scoring.sweeps import sweep
from zcpipe.scoring.values import values_of
from zcpipe.spaces.layers import recurrent_gradients


@dataclass(frozen=True)
class Batch:
    """What enters a network: positional inputs, first dimension N, and labels."""

    inputs: Sequence[Tensor]
    targets: Tensor | None = None


class Counted(Protocol):
    """How large an architecture is; see `zcpipe.spaces.base.Size`."""

    @property
    def params(self) -> int:
        """Independent scalars of all weights and biases."""
        ...

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one input."""
        ...


class Subject(Protocol):
    """One architecture as scoring sees it: its network under any recipe, its batch, its random numbers."""

    blocks: Sequence[str]  # names of the block modules in the order in which they run
    loss: Loss | None  # None for cross-entropy
    pruned: bool  # whether a network that is not asked for in full has no dead layers

    def network(self, recipe: Recipe, full: bool) -> AbstractContextManager[nn.Module]:
        """Lend the network with the weights that a recipe asks for; ``full``: with its dead layers."""
        ...

    def batch(self, recipe: Recipe) -> Batch:
        """Return the batch that a recipe asks for."""
        ...

    def stream(self, purpose: str) -> Stream:
        """Return the random numbers for a purpose."""
        ...

    def probe(self, block: str, output: Tensor) -> Tensor:
        """Return the probe of a block, of its output's shape and layout."""
        ...

    def size(self) -> Counted:
        """Count parameters and multiply-accumulates, at the latest when they are read."""
        ...


@dataclass(frozen=True)
class Failure:
    """Why a proxy has no value: ``kind`` is error, memory, nonfinite or unsupported."""

    proxy: str
    kind: str
    message: str


@dataclass
class Measurement:
    """What scoring one network gave. A failed proxy is None in ``scores`` and named in ``failures``.

    ``layers`` names the nodes of those statistics that have one value per layer.
    """

    scores: dict[str, float | None] = field(default_factory=dict)
    statistics: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    layers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)


def philox_probes(seed: int, space: str, scope: str, repeat: int) -> ProbeSource:
    """Return the source of +-1 probes that belongs to a seed and an architecture's key."""

    def probe(block: str, output: Tensor) -> Tensor:
        g_out = torch.empty_like(output)
        Stream.of(seed, space, scope, repeat, f"probe:{block}").rademacher_(g_out)
        return g_out

    return probe


def measure(subject: Subject, proxies: Sequence[Proxy], protocol: PlanProtocol = "paper") -> Measurement:
    """Score one architecture.

    Args:
        subject: its network; untouched afterwards.
        proxies: what to compute.
        protocol: see `zcpipe.scoring.plan.plan`.

    Raises:
        UsageError: blocks, probes or targets do not fit the network.

    What goes wrong as the network is made is raised as it is: without a network there is nothing to say of it. Later
    everything that is raised is a proxy's failure, also what would end the process (``sys.exit``), but for a Ctrl-C.

    What fails because the network takes a ``view`` of a map, as if it were contiguous, is measured again with images
    that are.
    """
    result = _measure(subject, proxies, protocol)
    stuck = [f.proxy for f in result.failures if needs_other_layout(f.message)]
    if stuck:
        with contiguous_images():
            again = _measure(subject, [proxy for proxy in proxies if proxy.name in stuck], protocol)
        result.scores |= again.scores
        result.statistics |= again.statistics
        result.layers |= again.layers
        result.failures = [f for f in result.failures if f.proxy not in stuck] + again.failures
    return result


def _measure(subject: Subject, proxies: Sequence[Proxy], protocol: PlanProtocol) -> Measurement:
    result = Measurement()
    for group in plan(proxies, protocol):
        try:
            with subject.network(group.recipe, group.full) as model:
                _guarded(group.proxies, result, partial(_run_group, subject, model, group, result))
        except UnsupportedError as error:  # weights that this recipe cannot draw
            trace(error)
            result.failures.extend(_failure(proxy, error) for proxy in group.proxies)
    counted = [proxy for proxy in proxies if not proxy.statistics]
    if counted:
        _guarded(counted, result, lambda: _count(counted, subject.size, result))
    result.scores = {proxy.name: result.scores.get(proxy.name) for proxy in proxies}
    return result


def status_of(proxies: Sequence[Proxy], scores: Mapping[str, float | None], failures: Sequence[Failure]) -> str:
    """Summarise an outcome: ``ok``, ``partial``, ``memory`` or ``error``.

    The proxies that need a pass decide, since sizes never fail with them: ``partial`` if some of them have values,
    ``memory`` or ``error`` by the reason if none has.
    """
    if all(scores[proxy.name] is not None for proxy in proxies):
        return "ok"
    deciding = [proxy for proxy in proxies if proxy.statistics] or list(proxies)
    if any(scores[proxy.name] is not None for proxy in deciding):
        return "partial"
    return "memory" if any(failure.kind == "memory" for failure in failures) else "error"


def _run_group(subject: Subject, model: nn.Module, group: Group, result: Measurement) -> None:
    """Run the passes of one network; one that fails costs its own proxies only."""
    errors: dict[str, BaseException] = {}
    batch = subject.batch(group.recipe)
    may_be_dead = not (group.full or subject.pruned)
    network = ScoredNetwork(model, batch.inputs, batch.targets, subject.loss, subject.stream, may_be_dead)
    for one in group.passes:
        try:
            measured = _run_pass(one, network, subject)
        except (UsageError, KeyboardInterrupt):
            raise
        except BaseException as error:
            errors |= dict.fromkeys((statistic.name for statistic in one.statistics), _kept(error))
            continue
        errors |= measured.errors
        result.statistics |= measured.statistics
        layers = tuple(network.layers) if any(s.node == "layer" for s in one.statistics) else ()
        result.layers |= {s.name: layers for s in one.statistics if s.node == "layer"}
    for proxy in group.proxies:
        broken = next((errors[s.name] for s in proxy.statistics if s.name in errors), None)
        if broken is not None:
            result.failures.append(_failure(proxy, broken))
        else:
            _reduce(proxy, result.statistics, result)
    for name in errors:
        result.statistics.pop(name, None)


def _run_pass(one: Pass, network: ScoredNetwork, subject: Subject) -> BlockResult:
    if one.kind == "weights":
        return _each(one.statistics, lambda s: _of_weights(cast(WeightStatistic, s), network))
    # Scores are defined in the precision of the inputs, whatever the caller casts automatically.
    inputs = network.inputs
    training, device = one.recipe.norm != "running", inputs[0].device
    recurrent = nullcontext() if training else recurrent_gradients(network.modules.values(), device)
    with untouched(network.modules, training=training), plain_arithmetic(device), recurrent:
        if one.kind == "blocks":
            given = network.model, network.modules, inputs, subject.blocks, one.statistics, subject.probe
            return run_fast(partial(block_statistics, *given), network.modules, called=subject.blocks)
        if one.kind == "absolute":
            gradients = absolute_gradients(network.model, network.modules, inputs, one.recipe.norm)
            return _each(one.statistics, lambda s: _of_gradients(cast(GradientStatistic, s), gradients))
        if one.kind == "own":
            return _each(one.statistics, lambda s: _own(cast(CustomStatistic, s), network, len(subject.blocks)))
        return sweep(network, subject.blocks, one.statistics, subject.probe)


def _of_weights(statistic: WeightStatistic, network: ScoredNetwork) -> NDArray[np.float64]:  # [layers]
    """Take a statistic of the weights of live layers; dead ones have 0."""
    live = np.array(network.live, dtype=bool)
    values = np.zeros(len(live))
    weights = [w.detach() for w, counts in zip(network.layers.values(), live, strict=True) if counts]
    values[live] = values_of(statistic, statistic.of(weights), len(weights))
    return values


def _of_gradients(statistic: GradientStatistic, gradients: Gradients) -> NDArray[np.float64]:  # [layers]
    return values_of(statistic, statistic.of(gradients), len(gradients.weights))


def _own(statistic: CustomStatistic, network: ScoredNetwork, blocks: int) -> NDArray[np.float64]:  # [nodes]
    nodes = {"network": 1, "layer": len(network.layers), "block": blocks}[statistic.node]
    with left_as_it_was(network.modules, f"statistic {statistic.name}"):
        found = statistic.measure(network)
    return values_of(statistic, found, nodes)


def _each(statistics: Sequence[Statistic], of: Callable[[Statistic], NDArray[np.float64]]) -> BlockResult:
    """Take each statistic by itself; one that fails costs the proxies that read it."""
    values, errors = {}, {}
    for statistic in statistics:
        try:
            values[statistic.name] = of(statistic)
        except (UsageError, KeyboardInterrupt):
            raise
        except BaseException as error:
            errors[statistic.name] = _kept(error)
    return BlockResult(values, errors)


def _kept(error: BaseException) -> BaseException:
    """Return an error without its traceback, whose frames hold what keeps the error, and the network: a circle."""
    trace(error)
    return error.with_traceback(None)


class _Counts(Mapping[str, NDArray[np.float64]]):
    """What proxies of counts read, each counted when it is asked for: a failure costs those that ask."""

    def __init__(self, size: Counted) -> None:
        self._size = size

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        if name not in ("params", "macs"):
            raise KeyError(name)
        return np.array(getattr(self._size, name), dtype=np.float64)

    def __iter__(self) -> Iterator[str]:
        return iter(("params", "macs"))

    def __len__(self) -> int:
        return 2


def _count(proxies: Sequence[Proxy], size: Callable[[], Counted], result: Measurement) -> None:
    counts = _Counts(size())
    for proxy in proxies:
        _reduce(proxy, counts, result)


def _reduce(proxy: Proxy, values: Mapping[str, NDArray[np.float64]], result: Measurement) -> None:
    try:
        score = float(proxy.reduce(values))
    except (UsageError, KeyboardInterrupt):
        raise
    except BaseException as error:
        trace(error)
        result.failures.append(_failure(proxy, error))
        return
    if np.isnan(score):
        bad = next((s.name for s in proxy.statistics if np.isnan(values[s.name]).any()), None)
        where = f"statistic {bad} holds non-finite values" if bad else "the reduction is not a number"
        result.failures.append(Failure(proxy.name, "nonfinite", where))
    else:
        result.scores[proxy.name] = score


def _guarded(proxies: Sequence[Proxy], result: Measurement, compute: Callable[[], None]) -> None:
    """Run a group; if the network fails in it, every proxy that waits for it fails with the reason.

    What the caller got wrong, such as blocks that do not exist, is the caller's to hear.
    """
    try:
        compute()
    except (UsageError, KeyboardInterrupt):
        raise
    except BaseException as error:
        trace(error)
        result.failures.extend(_failure(proxy, error) for proxy in proxies)


def _failure(proxy: Proxy, error: BaseException) -> Failure:
    kind = "memory" if is_out_of_memory(error) else "error"
    reason = (str(error).splitlines() or [""])[0]
    if isinstance(error, UnsupportedError):
        return Failure(proxy.name, "unsupported", reason)
    if isinstance(error, NonfiniteError):
        return Failure(proxy.name, "nonfinite", reason)
    return Failure(proxy.name, kind, f"{type(error).__name__}: {reason}")
