"""``zcpipe.score``: zero-cost proxies of any module."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter

from zcpipe.errors import PrecisionError, UnsupportedError, UsageError
from zcpipe.ops import as_images
from zcpipe.ops.philox import Stream
from zcpipe.proxies import resolve
from zcpipe.proxies.base import JacobianStatistic, MapStatistic, Proxy, Recipe
from zcpipe.scoring.blocks import ProbeSource
from zcpipe.scoring.faults import measure_given
from zcpipe.scoring.init import initialise, is_of_inference_mode, require_module, without_rule
from zcpipe.scoring.layers import unknown_layers
from zcpipe.scoring.measure import Batch, Counted, Failure, Measurement, philox_probes, status_of
from zcpipe.scoring.network import Loss, ScoredNetwork
from zcpipe.scoring.plan import Protocol, statistics_of
from zcpipe.scoring.size import count_macs, count_params

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Scores(Mapping[str, float | None]):
    """Proxy name -> raw value, None where it failed; ``failures`` says why.

    ``statistics`` holds what the proxies were reduced from: ``<statistic>@block`` -> one value per block
    (for ``trainability@block`` one per block after the first), ``<statistic>@layer`` -> one value per layer.
    ``nodes_by_name`` names these blocks and layers.
    """

    values_by_name: dict[str, float | None]
    statistics: dict[str, NDArray[np.float64]]
    failures: tuple[Failure, ...]
    status: str  # ok, partial if some proxies failed, memory or error if all of a pass did
    nodes_by_name: dict[str, tuple[str, ...]]

    def __getitem__(self, name: str) -> float | None:
        return self.values_by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_by_name)

    def __len__(self) -> int:
        return len(self.values_by_name)

    @property
    def nodes(self) -> pa.Table:
        """The statistics as a table, a row per node: ``node`` (layer or block), ``name`` (its module), statistics.

        Null where a statistic has no value.
        """
        import pyarrow as pa  # slow to import

        rows: dict[tuple[str, str], dict[str, object]] = {}
        for column, values in self.statistics.items():
            statistic, _, kind = column.rpartition("@")
            for name, value in zip(self.nodes_by_name[column], values.tolist(), strict=True):
                rows.setdefault((kind, name), {"node": kind, "name": name})[statistic] = value
        fields = [pa.field("node", pa.string()), pa.field("name", pa.string())]
        names = dict.fromkeys(column.rpartition("@")[0] for column in self.statistics)
        return pa.Table.from_pylist(
            list(rows.values()), pa.schema([*fields, *(pa.field(name, pa.float64()) for name in names)])
        )


def score(
    model: nn.Module,
    inputs: Tensor | Sequence[Tensor],  # [N, ...]
    targets: Tensor | None = None,  # [N]
    proxies: str | Sequence[str] = "aznas",
    *,
    blocks: Sequence[str] | None = None,
    probes: Mapping[str, Tensor] | Sequence[Tensor] | None = None,
    seed: int = 0,
    loss: Loss | None = None,
    unsupported: Literal["error", "warn", "skip"] = "error",
    protocol: Protocol = "paper",
) -> Scores:
    """Score a network as it stands: with the weights it has, on the batch it is given.

    The model comes back exactly as it was: parameters, buffers, other attributes of its modules, modes, hooks,
    ``requires_grad`` and the global random state. In-place activations and train-mode batch norm are handled.
    ``zcpipe.initialise`` draws the weights of a recipe first, if those are wanted. Only what a definition itself draws
    or feeds is so here too: zen's weights and noise, synflow's ones, meco's noise image. Threads that score at one time
    take turns: use processes to score several networks at once.

    Args:
        model: any module. Its output, or the first of several, is [N, classes] for the default loss.
        inputs: its positional inputs, [N, ...] each. Images are computed in channels-last layout on the CPU, but for
            models that take a ``view`` of a map, as if it were contiguous: theirs are.
        targets: class numbers, for the proxies that need labels.
        proxies: names or groups (``zcpipe.list_proxies()``).
        blocks: names of the modules whose outputs are the block maps, in the order in which they run; by default
            ``model.block_names`` if the model has them. The AZ-NAS proxies need at least two.
        probes: +-1 cotangents for the local Jacobians, by block name or as a sequence for ``blocks[1:]``; by default
            drawn from ``seed``.
        seed: of the probes and of all else that a definition draws.
        loss: a function of output and targets that returns one number as a tensor; by default the mean cross-entropy.
        unsupported: what becomes of weights that no rule knows, of proxies that the network cannot have (nwot without
            ReLUs), and of those that fail because the network cannot run on the inputs or the loss cannot be taken:
            "error" raises; "warn" leaves them out with a warning; "skip" leaves them out.
        protocol: "fused" computes all that can share one pass in one; the weights and the batch are those given anyway.

    Returns:
        The scores, the statistics behind them, and the reasons of failures.

    Raises:
        UsageError: no module, unknown proxies, missing, unknown or misordered blocks, probes, targets or a loss
            that do not fit, inputs that are empty or not finite, numbers of half precision where a proxy needs
            float32 or float64, or a call inside ``torch.inference_mode``. With ``unsupported="error"`` also a
            network whose forward raises on the inputs (other channels, dtypes or tokens than its own, the meta
            device) and a loss that raises.
        UnsupportedError: with ``unsupported="error"``, a network that cannot have a proxy: one without layers that the
            proxy reads the weights of, for example.

    A proxy that fails by itself, or for want of memory, is None with its reason in ``failures``.

    Example:
        >>> import torch, zcpipe
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, 8, 3, padding=1))
        >>> scores = zcpipe.score(net, torch.randn(16, 3, 8, 8), blocks=["0", "1"])
        >>> scores.status, sorted(scores)
        ('ok', ['complexity', 'expressivity', 'progressivity', 'trainability'])
    """
    chosen = resolve(proxies)
    require_module(model)
    if not isinstance(inputs, Tensor | Sequence):
        raise UsageError(f"inputs must be torch tensors, got {type(inputs).__name__}")
    batch = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    _check_inputs(batch)
    _check_targets(chosen, targets, len(batch[0]))
    if unsupported not in ("error", "warn", "skip"):
        raise UsageError(f"unsupported must be error, warn or skip, got {unsupported!r}")
    # Autograd is to begin at the network, whatever the caller made the inputs from.
    batch = [tensor.clone() if tensor.is_inference() else tensor.detach() for tensor in batch]
    batch = [as_images(tensor) for tensor in batch]
    read = statistics_of(chosen)
    local = any(isinstance(statistic, MapStatistic | JacobianStatistic) for statistic in read)
    names = _block_names(model, blocks) if local else ()
    if any(statistic.node == "layer" for statistic in read):
        _check_layers(model, unsupported)
    probe = philox_probes(seed, "", "", 0) if probes is None else _given_probes(names, probes)
    subject = _Given(model, Batch(batch, targets), names, probe, loss, seed)
    network = ScoredNetwork(model, batch, targets, loss, subject.stream)
    try:
        result, fault = measure_given(subject, network, chosen, protocol)
    except PrecisionError as error:
        raise PrecisionError(f"{error}; score in float32: call model.float()") from error
    _report(result.failures, fault, unsupported)
    return _scores(chosen, result, names)


class _Given:
    """The network that `score` was given; see `zcpipe.scoring.measure.Subject`."""

    pruned = False

    def __init__(
        self,
        model: nn.Module,
        batch: Batch,
        blocks: Sequence[str],
        probe: ProbeSource,
        loss: Loss | None,
        seed: int,
    ) -> None:
        self._model = model
        self._batch = batch
        self._probe = probe
        self._seed = seed
        self.blocks = blocks
        self.loss = loss

    @contextmanager
    def network(self, recipe: Recipe, full: bool) -> Iterator[nn.Module]:
        """Lend the model, for a recipe that redraws with other weights in its parameters."""
        if not recipe.redraws:
            yield self._model
            return
        lacking = without_rule(self._model, recipe.init)
        if lacking is not None:
            raise UnsupportedError(f"its definition draws all weights anew, and has no rule for {lacking}")
        parameters = list(self._model.parameters())
        own = [parameter.data for parameter in parameters]
        # What is written lies elsewhere: a backward that the caller has not run yet finds the weights of its forward.
        counted = tuple(parameter for parameter in parameters if not is_of_inference_mode(parameter))
        with _unsafe_preserve_version_counter(counted):
            try:
                for parameter in parameters:
                    parameter.data = parameter.data.clone()
                try:
                    initialise(self._model, seed=self._seed, init=recipe.init, strict=True)
                except PrecisionError:
                    raise
                except UsageError as error:
                    raise UnsupportedError(str(error)) from error
                yield self._model
            finally:
                for parameter, data in zip(parameters, own, strict=True):
                    parameter.data = data

    def batch(self, recipe: Recipe) -> Batch:
        """Return the batch given."""
        return self._batch

    def stream(self, purpose: str) -> Stream:
        """Return the random numbers of the seed for a purpose."""
        return Stream.of(self._seed, "", "", 0, purpose)

    def probe(self, block: str, output: Tensor) -> Tensor:
        """Return the probe given, or drawn."""
        return self._probe(block, output)

    def size(self) -> Counted:
        """Return the model, counted when it is asked."""
        return _Size(self._model, [as_images(tensor) for tensor in self._batch.inputs])


class _Size:
    """Counts of a model; see `zcpipe.scoring.measure.Counted`."""

    def __init__(self, model: nn.Module, inputs: Sequence[Tensor]) -> None:
        self._model = model
        self._inputs = inputs

    @property
    def params(self) -> int:
        """Count what the model holds."""
        return count_params(self._model)

    @cached_property
    def macs(self) -> int:
        """Count on the meta device."""
        return count_macs(self._model, self._inputs)


def _scores(proxies: Sequence[Proxy], result: Measurement, blocks: Sequence[str]) -> Scores:
    statistics, nodes = {}, {}
    for statistic in statistics_of(proxies):
        if statistic.name in result.statistics and statistic.node != "network":
            column = f"{statistic.name}@{statistic.node}"
            statistics[column] = result.statistics[statistic.name]
            of_blocks = tuple(blocks[1:] if isinstance(statistic, JacobianStatistic) else blocks)
            nodes[column] = result.layers.get(statistic.name, ()) if statistic.node == "layer" else of_blocks
    status = status_of(proxies, result.scores, result.failures)
    return Scores(result.scores, statistics, tuple(result.failures), status, nodes)


def _report(failures: Sequence[Failure], fault: str | None, unsupported: str) -> None:
    if fault is not None and unsupported == "error":
        raise UsageError(fault)
    if fault is not None and unsupported == "warn":
        warnings.warn(fault, stacklevel=3)
    for failure in failures:
        if failure.kind == "unsupported":
            what = f"proxy {failure.proxy!r}: {failure.message}"
            _refuse(what, "leave it out, or pass unsupported='warn' or 'skip'", unsupported)


def _refuse(what: str, mend: str, unsupported: str) -> None:
    if unsupported == "error":
        raise UnsupportedError(f"{what}; {mend}")
    if unsupported == "warn":
        warnings.warn(what, stacklevel=4)


def _check_layers(model: nn.Module, unsupported: str) -> None:
    modules = dict(model.named_modules())
    for weights in unknown_layers(modules):
        what = f"no rule knows the weights {weights}: they are no part of statistics per layer"
        _refuse(what, "to leave them out, pass unsupported='warn' or 'skip'", unsupported)


def _check_targets(proxies: Sequence[Proxy], targets: Tensor | None, samples: int) -> None:
    needing = [proxy.name for proxy in proxies if proxy.targets]
    if targets is None and needing:
        verb = "needs" if len(needing) == 1 else "need"
        raise UsageError(f"{', '.join(needing)} {verb} labels: pass targets")
    if isinstance(targets, str):
        raise UsageError(f"targets must be a tensor, got the text {targets!r}; name proxies as proxies={targets!r}")
    if targets is not None and (not isinstance(targets, Tensor) or targets.ndim == 0 or len(targets) != samples):
        got = f"shape {tuple(targets.shape)}" if isinstance(targets, Tensor) else type(targets).__name__
        raise UsageError(f"targets must be a tensor of {samples} entries, one per sample, got {got}")


def _check_inputs(batch: Sequence[Tensor]) -> None:
    if torch.is_inference_mode_enabled():
        raise UsageError("scoring needs gradients: call zcpipe.score outside torch.inference_mode()")
    foreign = next((type(tensor).__name__ for tensor in batch if not isinstance(tensor, Tensor)), None)
    if foreign is not None:
        raise UsageError(f"inputs must be torch tensors, got {foreign}")
    if not batch or any(tensor.ndim == 0 or tensor.shape[0] == 0 for tensor in batch):
        raise UsageError("inputs must be one or more tensors with at least one sample in their first dimension")
    if len({tensor.shape[0] for tensor in batch}) > 1:
        raise UsageError(f"inputs must have one first dimension, got {[tensor.shape[0] for tensor in batch]} samples")
    numbers = [tensor for tensor in batch if tensor.is_floating_point() and not tensor.is_meta]
    if not all(bool(torch.isfinite(tensor).all()) for tensor in numbers):
        raise UsageError("inputs hold NaN or infinite values; clean the batch before scoring")


def _block_names(model: nn.Module, blocks: Sequence[str] | None) -> tuple[str, ...]:
    names = getattr(model, "block_names", None) if blocks is None else blocks
    if names is None:
        raise UsageError("these proxies read block maps: pass blocks=[names of modules, in the order they run]")
    if isinstance(names, str):
        raise UsageError(f"blocks must be a sequence of module names, got the text {names!r}")
    if len(names) < 2 or len(set(names)) < len(names):
        raise UsageError(f"blocks must be at least two different module names, got {list(names)}")
    unknown = [name for name in names if name not in dict(model.named_modules())]
    if unknown:
        raise UsageError(f"the model has no module named {unknown[0]!r}; see dict(model.named_modules())")
    return tuple(names)


def _given_probes(blocks: Sequence[str], probes: Mapping[str, Tensor] | Sequence[Tensor]) -> ProbeSource:
    if not isinstance(probes, Mapping):
        if len(probes) != len(blocks) - 1:
            raise UsageError(
                f"probes must be one per block after the first: expected {len(blocks) - 1}, got {len(probes)}"
            )
        probes = dict(zip(blocks[1:], probes, strict=True))

    def probe(block: str, output: Tensor) -> Tensor:
        if block not in probes:
            raise UsageError(f"no probe given for block {block!r}")
        given = probes[block]
        if given.shape != output.shape:
            raise UsageError(
                f"probe of block {block!r}: expected shape {tuple(output.shape)}, got {tuple(given.shape)}"
            )
        return torch.empty_like(output).copy_(given)

    return probe
