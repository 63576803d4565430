"""The block pass: one forward, and one backward that never crosses a block.

Each block's output is measured as soon as it exists, its local Jacobian probed, and the graph behind it freed: the
network goes on from a detached leaf. Memory therefore holds one block's graph at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.graph import _engine_run_backward

from zcpipe.errors import PrecisionError, UnsupportedError, UsageError, trace, unknown_name
from zcpipe.ops import generators
from zcpipe.proxies.base import JacobianStatistic, MapStatistic, Statistic, positions_of
from zcpipe.scoring.axes import Axes
from zcpipe.scoring.inplace import is_of_leaf
from zcpipe.scoring.values import WrittenError, moments_of, values_of

# Given the name and the output map of a block, fills a +-1 probe of the map's shape and layout.
ProbeSource = Callable[[str, Tensor], Tensor]


@dataclass(frozen=True)
class BlockResult:
    """What a block pass measured; a statistic in ``errors`` failed and holds NaN."""

    statistics: dict[str, NDArray[np.float64]]
    errors: dict[str, BaseException]  # why each such statistic failed


def block_statistics(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    inputs: Sequence[Tensor],  # first dimension N
    blocks: Sequence[str],
    statistics: Sequence[Statistic],
    probe: ProbeSource,
) -> BlockResult:
    """Run the block pass.

    Args:
        model: the network, already in the state the recipe asks for.
        modules: all that is in it, as ``dict(model.named_modules())``.
        inputs: positional arguments of its forward.
        blocks: names of the modules whose outputs are the maps, in the order in which they run.
        statistics: what to measure.
        probe: source of the probe cotangents.

    Returns:
        Statistic name -> values: one per block for map statistics, one per block after the first for Jacobian ones.

    Raises:
        UsageError: a block does not exist, does not return one map, or the blocks do not run once each in order.
    """
    try:
        return _walk(model, modules, inputs, blocks, _Walk(modules, blocks, statistics, probe, copies=False))
    except RuntimeError as error:
        if not is_of_leaf(error):
            raise
        # The network goes on in place on what a block returned: again, with copies of it.
        return _walk(model, modules, inputs, blocks, _Walk(modules, blocks, statistics, probe, copies=True))


def _walk(
    model: nn.Module, modules: Mapping[str, nn.Module], inputs: Sequence[Tensor], blocks: Sequence[str], walk: _Walk
) -> BlockResult:
    generators.restart()  # what a forward draws is the same in all of them
    handles = walk.axes.watch()
    try:
        for name in blocks:
            if name not in modules:
                raise unknown_name("block", name, modules)
            handles.append(modules[name].register_forward_hook(walk.hook(name)))
        with torch.enable_grad():
            model(*(tensor.clone() for tensor in inputs))  # a forward may write to them
    finally:
        for handle in handles:
            handle.remove()
    return walk.finish()


class _Walk:
    """State of one block pass: the moments taken so far and the leaf the next block starts from."""

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        blocks: Sequence[str],
        statistics: Sequence[Statistic],
        probe: ProbeSource,
        copies: bool,
    ) -> None:
        self.axes = Axes(modules)
        self._blocks = blocks
        self._copies = copies
        self._statistics = [s for s in statistics if isinstance(s, MapStatistic | JacobianStatistic)]
        self._map_statistics = [s for s in statistics if isinstance(s, MapStatistic)]
        self._jacobian_statistics = [s for s in statistics if isinstance(s, JacobianStatistic)]
        self._probe = probe
        self._moments: dict[str, list[Any]] = {s.name: [] for s in statistics}
        self._errors: dict[str, BaseException] = {}
        self._done = 0
        self._leaf: Tensor | None = None
        self._recording = Recording()

    def hook(self, name: str) -> Callable[[nn.Module, Any, Any], Tensor]:
        """Return the forward hook of block ``name``."""

        def on_output(module: nn.Module, _arguments: Any, output: Any) -> Tensor:  # noqa: ANN401
            feature = block_map(name, module, output, self._blocks, self._done, self.axes)
            self._measure(name, feature)
            self._done += 1
            self._leaf = feature.detach().requires_grad_()
            return self._leaf.clone() if self._copies else self._leaf

        return on_output

    def _measure(self, name: str, output: Tensor) -> None:
        lacking = self._recording.lacking(name, output)
        if self._leaf is not None and lacking is not None:
            for jacobian in self._jacobian_statistics:
                self._errors.setdefault(jacobian.name, lacking)
        elif self._leaf is not None and self._jacobian_statistics:
            g_out = self._probe(name, output)
            g_in = local_gradient(output, self._leaf, g_out)
            for jacobian in self._jacobian_statistics:
                self._keep(jacobian, g_in, g_out)
        feature = positions_of(output.detach())
        for statistic in self._map_statistics:
            self._keep(statistic, feature)

    def _keep(self, statistic: MapStatistic | JacobianStatistic, *tensors: Tensor) -> None:
        """Take one block's moments; a failure costs the proxies that read the statistic, not the whole pass."""
        if statistic.name in self._errors:
            return
        try:
            self._moments[statistic.name].append(moments_of(statistic, *tensors))
        except (PrecisionError, WrittenError, KeyboardInterrupt):
            raise  # the first two are the network's, whatever reads its maps
        except BaseException as error:
            trace(error)
            self._errors[statistic.name] = error

    def finish(self) -> BlockResult:
        """Turn the moments into values once every block has run."""
        if self._done < len(self._blocks):
            raise UsageError(f"block {self._blocks[self._done]!r} did not run in the forward pass")
        values = {}
        for statistic in self._statistics:
            moments = self._moments[statistic.name]
            nodes = self._done - isinstance(statistic, JacobianStatistic)
            values[statistic.name] = np.full(nodes, np.nan)
            if statistic.name not in self._errors:
                try:
                    values[statistic.name] = values_of(statistic, statistic.finish(moments), nodes)
                except KeyboardInterrupt:
                    raise
                except BaseException as error:
                    trace(error)
                    self._errors[statistic.name] = error
        return BlockResult(values, self._errors)


class Recording:
    """Follows which blocks run without autograd: their Jacobians are not zero, but unknown."""

    def __init__(self) -> None:
        self._before: str | None = None  # the block before, if it ran so

    def lacking(self, name: str, output: Tensor) -> UnsupportedError | None:
        """Say why the Jacobian is unknown of the block that has just run, if it is; asked of each block, in order."""
        own = None if torch.is_grad_enabled() else name
        # Of a block that a reentrant checkpoint runs, what follows knows no more than the block itself.
        blamed, self._before = own or self._before, own
        if blamed is None or output.requires_grad:
            return None
        return not_recorded(blamed)


def not_recorded(block: str) -> UnsupportedError:
    """Say of a block that it runs without autograd, which leaves a Jacobian unknown."""
    return UnsupportedError(f"block {block!r} runs without autograd, in torch.no_grad() or a reentrant checkpoint")


def block_map(name: str, module: nn.Module, output: object, blocks: Sequence[str], done: int, axes: Axes) -> Tensor:
    """Return the map that a block gave, after checking that it is one and that it is this block's turn.

    Args:
        name: of the block.
        module: the block.
        output: what it returned.
        blocks: names of all blocks, in order.
        done: how many have run.
        axes: where channels lie, by the layers that have run.

    Raises:
        UsageError: it is no map, or another block was to run.
    """
    if not isinstance(output, Tensor):
        raise UsageError(f"block {name!r} must return one tensor, got {type(output).__name__}")
    axes.check(name, module, output)
    expected = blocks[done] if done < len(blocks) else "no further block"
    if name != expected:
        raise UsageError(f"blocks must run once each in the order given: expected {expected!r}, got {name!r}")
    return output


def local_gradient(output: Tensor, leaf: Tensor, g_out: Tensor) -> Tensor:
    """Vector-Jacobian product of a block; zeros if its output does not depend on the previous map."""
    if not output.requires_grad:
        return torch.zeros_like(leaf)
    # What torch.autograd.grad calls, which first imports a computer algebra system to compare two shapes.
    gradient: Tensor | None
    (gradient,) = _engine_run_backward((output,), (g_out,), False, False, (leaf,), True, accumulate_grad=False)
    return torch.zeros_like(leaf) if gradient is None else gradient
