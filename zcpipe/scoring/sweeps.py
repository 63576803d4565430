"""One forward of the whole network, and one backward sweep for each cotangent that statistics ask for.

The sweeps are: the loss, to all weights; the sum of the outputs, to the input; a probe of each block, to the block
before. Whatever can be reduced when it appears is reduced then: outputs with their gradients, inputs of ReLUs, block
maps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zcpipe.errors import UnsupportedError, UsageError, trace, unknown_name
from zcpipe.ops import generators, product_sums
from zcpipe.proxies.base import (
    ActivationStatistic,
    Gradients,
    GradientStatistic,
    InputGradient,
    InputGradientStatistic,
    JacobianStatistic,
    LayerOutputs,
    MapStatistic,
    OutputStatistic,
    Statistic,
    asking,
    positions_of,
    tensor_of,
)
from zcpipe.scoring.axes import Axes
from zcpipe.scoring.blocks import BlockResult, ProbeSource, Recording, block_map, local_gradient, not_recorded
from zcpipe.scoring.cells import NoTaps
from zcpipe.scoring.inplace import FusedOverwrittenError, is_of_leaf
from zcpipe.scoring.layers import LAYERS
from zcpipe.scoring.network import ScoredNetwork
from zcpipe.scoring.rewrite import fast_operations
from zcpipe.scoring.values import WrittenError, moments_of, values_of


def sweep(
    network: ScoredNetwork, blocks: Sequence[str], statistics: Sequence[Statistic], probe: ProbeSource
) -> BlockResult:
    """Run the pass.

    Args:
        network: the network in the state that its recipe asks for.
        blocks: names of the modules whose outputs are the block maps, in the order in which they run.
        statistics: what to measure; no two of one name.
        probe: source of the probe cotangents.

    Returns:
        Statistic name -> values over its nodes.

    Raises:
        UsageError: a block does not exist or the blocks do not run once each in order, or the loss cannot be taken.
    """
    copies, fast = False, True
    while True:
        sweeps = _Sweeps(network, blocks, statistics, probe, copies, fast)
        try:
            return sweeps.run()
        except RuntimeError as error:
            again = _again(error, copies, fast)
            if again == (copies, fast):
                raise
            copies, fast = again
        finally:
            sweeps.forget()


def _again(error: RuntimeError, copies: bool, fast: bool) -> tuple[bool, bool]:
    """Return how to run the pass again, where somebody computes in place on what it needs."""
    if isinstance(error, FusedOverwrittenError):
        return copies, False
    return copies or isinstance(error, _OverwrittenError) or is_of_leaf(error), fast


class _OverwrittenError(RuntimeError):
    """A captured tensor was changed in place before it was used."""


class _Captured:
    """A tensor of the forward, and whether it is still what it was."""

    def __init__(self, value: Tensor) -> None:
        self._value = value
        self._version = value._version

    @property
    def value(self) -> Tensor:
        if self._value._version != self._version:
            raise _OverwrittenError
        return self._value


class _Sweeps(NoTaps):
    """State of one pass. It is also what fused layers report to: see `zcpipe.scoring.cells.Taps`."""

    def __init__(
        self,
        network: ScoredNetwork,
        blocks: Sequence[str],
        statistics: Sequence[Statistic],
        probe: ProbeSource,
        copies: bool,
        fast: bool,
    ) -> None:
        self._network = network
        self._probe = probe
        self._copies = copies
        self._fast = fast
        self._statistics = statistics
        self._maps = [s for s in statistics if isinstance(s, MapStatistic)]
        self._jacobians = [s for s in statistics if isinstance(s, JacobianStatistic)]
        self._gradients = [s for s in statistics if isinstance(s, GradientStatistic)]
        self._outputs = [s for s in statistics if isinstance(s, OutputStatistic)]
        self._inputs = [s for s in statistics if isinstance(s, InputGradientStatistic)]
        self._relus = [s for s in statistics if isinstance(s, ActivationStatistic)]
        self._blocks = blocks if self._maps or self._jacobians else ()
        self._axes = Axes(network.modules)
        self._recording = Recording()
        self._features: list[_Captured] = []
        self._map_moments: dict[str, list[Tensor]] = {s.name: [] for s in self._maps}
        self._output_moments: dict[str, dict[str, list[Tensor]]] = {s.name: {} for s in self._outputs}
        self._totals: dict[str, Tensor | None] = {s.name: None for s in self._relus}
        self._called: set[str] = set()
        self._values: dict[str, Any] = {}
        self._errors: dict[str, BaseException] = {}
        self._overwritten = False
        self._layers = _modules_of_layers(network)
        self.outputs = bool(self._outputs)
        self.relus = bool(self._relus)

    def run(self) -> BlockResult:
        weights = list(self._network.layers.values()) if self._gradients or self._outputs else []
        generators.restart()  # what a forward draws is the same in all of them
        inputs = [self._as_leaf(tensor) for tensor in self._network.inputs]
        swapped = self._network.modules if self._fast else {}
        with asking(weights), fast_operations(swapped, self._blocks, self):
            output = tensor_of(self._forward(inputs))
            with self._costing(*self._gradients, *self._outputs):
                self._sweep_loss(output, weights)
            with self._costing(*self._inputs):
                self._sweep_inputs(output, inputs)
            with self._costing(*self._jacobians):
                self._sweep_blocks()
        self._finish()
        return BlockResult({s.name: self._array(s) for s in self._statistics}, self._errors)

    def forget(self) -> None:
        """Let go of the graph, which reports to this object: a circle that only the garbage collector would undo."""
        self._features.clear()

    def _as_leaf(self, tensor: Tensor) -> Tensor:
        asked = bool(self._inputs) and tensor.is_floating_point()
        return tensor.detach().requires_grad_() if asked else tensor

    def _forward(self, inputs: Sequence[Tensor]) -> object:
        modules = self._network.modules
        handles = self._axes.watch() if self._blocks else []
        try:
            for name in self._blocks:
                if name not in modules:
                    raise unknown_name("block", name, modules)
                handles.append(modules[name].register_forward_hook(self._on_block(name)))
            if self._outputs:
                for module, name in self._layers.items():
                    handles.append(module.register_forward_hook(self._on_output(name)))
            if self._relus:
                for module in modules.values():
                    if isinstance(module, nn.ReLU):
                        handles.append(module.register_forward_pre_hook(self._on_relu, with_kwargs=True))
            # In place on a leaf that asks for gradients nobody may compute; on a copy of it, everybody.
            output = self._network.model(*(tensor.clone() if tensor.requires_grad else tensor for tensor in inputs))
        finally:
            for handle in handles:
                handle.remove()
        if len(self._features) < len(self._blocks):
            raise UsageError(f"block {self._blocks[len(self._features)]!r} did not run in the forward pass")
        return output

    def _on_block(self, name: str) -> Callable[..., Tensor]:
        def hook(module: nn.Module, _arguments: Any, given: Any) -> Tensor:  # noqa: ANN401
            output = block_map(name, module, given, self._blocks, len(self._features), self._axes)
            lacking = self._recording.lacking(name, output)
            if lacking is not None and self._features:  # the first has no block before it
                for jacobian in self._jacobians:
                    self._errors.setdefault(jacobian.name, lacking)
            if self._jacobians and not output.requires_grad:  # nothing before it asks for gradients
                output = output.detach().requires_grad_()
            self._features.append(_Captured(output))
            feature = positions_of(output.detach())
            for statistic in self._maps:
                with self._costing(statistic):
                    self._map_moments[statistic.name].append(moments_of(statistic, feature))
            return output.clone() if self._copies else output

        return hook

    def _on_output(self, name: str) -> Callable[..., Tensor]:
        def hook(module: nn.Module, _arguments: Any, output: Any) -> Any:  # noqa: ANN401
            self._called.add(name)
            if not isinstance(output, Tensor) or not output.requires_grad:
                return output
            if output.ndim < 2 or len(output) != self._network.samples:
                self._fail(self._outputs, f"layer {name!r} sees other samples than the batch's, one by one or in rows")
                return output
            kept = _Captured(output.detach())

            def on_gradient(gradient: Tensor) -> None:
                if not self.active:
                    return
                try:
                    z = kept.value
                except _OverwrittenError:  # autograd would show a traceback of its own; said after the sweep
                    self._overwritten = True
                    return
                with self._costing(*self._outputs):
                    self._take_products(name, product_sums(*_channels_second(z, gradient, module)))

            output.register_hook(on_gradient)  # type: ignore[no-untyped-call]
            return output.clone() if self._copies else output

        return hook

    def output(self, conv: nn.Conv2d, products: Tensor) -> None:  # [N, C] float64
        """Take what a fused convolution reports."""
        self._called.add(self._layers[conv])
        self._take_products(self._layers[conv], products)

    def _take_products(self, name: str, products: Tensor) -> None:  # [N, C] float64
        for statistic in self._outputs:
            with self._costing(statistic):
                moments = statistic.moments(products)
                self._output_moments[statistic.name].setdefault(name, []).append(moments)

    def _on_relu(self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        self.relu(module, (*arguments, *named.values())[0].detach())

    def relu(self, relu: nn.Module, x: Tensor) -> None:
        """Take what enters a ReLU."""
        samples = self._network.samples
        if x.ndim < 2 or len(x) != samples:
            self._fail(self._relus, f"a ReLU sees {len(x) if x.ndim else 'no'} samples, the batch has {samples}")
            return
        for statistic in self._relus:
            with self._costing(statistic):
                total = self._totals[statistic.name]
                self._totals[statistic.name] = moments_of(statistic, x, total=(total,))

    def _sweep_loss(self, output: Tensor, weights: Sequence[nn.Parameter]) -> None:
        if not weights:
            if self._gradients or self._outputs:
                raise UnsupportedError("the network has no convolution or linear layer")
            return
        loss = self._network.batch_loss(output)
        more = bool(self._inputs or self._jacobians)
        self.active = True
        try:
            found = torch.autograd.grad(loss, weights, retain_graph=more, allow_unused=True)
        finally:
            self.active = False
        if self._overwritten:
            raise _OverwrittenError
        if all(gradient is None for gradient in found):  # it does on the inputs or on a block that was cut off
            raise UnsupportedError("the loss does not depend on the weights")
        known = [torch.zeros_like(w) if g is None else g for w, g in zip(weights, found, strict=True)]
        self._network.gradients = Gradients([weight.detach() for weight in weights], known)
        for statistic in self._gradients:
            with self._costing(statistic):
                self._set(statistic, statistic.of(self._network.gradients), len(weights))
        used = [name for name, g in zip(self._network.layers, found, strict=True) if g is not None]
        for outputs in self._outputs:
            with self._costing(outputs):
                self._set(outputs, self._of_outputs(outputs, used), len(weights))

    def _of_outputs(self, statistic: OutputStatistic, used: Sequence[str]) -> list[float]:
        unseen = [name for name in used if name not in self._called]
        if unseen:
            raise UnsupportedError(f"the output of layer {unseen[0]!r} cannot be seen: it is not computed by a module")
        moments = self._output_moments[statistic.name]
        layers = self._network.layers
        samples = self._network.samples
        return [statistic.finish(LayerOutputs(moments.get(n, []), layers[n].detach(), samples)) for n in layers]

    def _sweep_inputs(self, output: Tensor, inputs: Sequence[Tensor]) -> None:
        if not self._inputs:
            return
        rows = self._input_rows(output, [tensor for tensor in inputs if tensor.requires_grad])
        gradient = InputGradient(rows, self._network.targets, output.shape[1] if output.ndim > 1 else 1)
        for statistic in self._inputs:
            with self._costing(statistic):
                self._set(statistic, [statistic.of(gradient)], 1)

    def _input_rows(self, output: Tensor, leaves: Sequence[Tensor]) -> Tensor:  # [N, D]
        if not leaves:
            raise UnsupportedError("the network's inputs are integers, which have no gradient")
        if not output.requires_grad:
            return torch.cat([torch.zeros_like(leaf).reshape(len(leaf), -1) for leaf in leaves], 1)
        more = bool(self._jacobians)
        found = torch.autograd.grad(output.sum(), leaves, retain_graph=more, allow_unused=True)
        whole = [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)]
        return torch.cat([gradient.reshape(len(gradient), -1) for gradient in whole], 1)

    def _sweep_blocks(self) -> None:
        if not self._jacobians:
            return
        moments: dict[str, list[Any]] = {s.name: [] for s in self._jacobians}
        for done in reversed(range(1, len(self._features))):
            output, before = self._features[done].value, self._features[done - 1].value
            if not before.requires_grad:  # it did: a reentrant checkpoint forgets that
                raise not_recorded(self._blocks[done - 1])
            g_out = self._probe(self._blocks[done], output)
            g_in = local_gradient(output, before, g_out)
            for statistic in self._jacobians:
                with self._costing(statistic):
                    moments[statistic.name].append(moments_of(statistic, g_in, g_out))
        for statistic in self._jacobians:
            with self._costing(statistic):
                given = moments[statistic.name][::-1]
                self._set(statistic, statistic.finish(given), len(self._features) - 1)

    def _finish(self) -> None:
        for statistic in self._maps:
            with self._costing(statistic):
                self._set(statistic, statistic.finish(self._map_moments[statistic.name]), len(self._features))
        for activation in self._relus:
            with self._costing(activation):
                self._set(activation, [activation.finish(self._total(activation))], 1)

    def _total(self, statistic: ActivationStatistic) -> Tensor:
        total = self._totals[statistic.name]
        if total is None:
            raise UnsupportedError("the network has no ReLU modules")
        return total

    def _set(self, statistic: Statistic, found: object, nodes: int) -> None:
        self._values[statistic.name] = values_of(statistic, found, nodes)

    def _array(self, statistic: Statistic) -> np.ndarray[Any, np.dtype[np.float64]]:
        found: np.ndarray[Any, np.dtype[np.float64]] = self._values.get(statistic.name, np.array([np.nan]))
        return found

    @contextmanager
    def _costing(self, *statistics: Statistic) -> Iterator[None]:
        """A failure inside costs the proxies that read the statistics, not the whole pass; the first one is kept.

        What the caller got wrong is the caller's to hear.
        """
        try:
            yield
        except (_OverwrittenError, FusedOverwrittenError, UsageError, WrittenError, KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:
            if any(statistic.name not in self._errors for statistic in statistics):  # each block may fail likewise
                trace(error)
            for statistic in statistics:
                self._errors.setdefault(statistic.name, error)

    def _fail(self, statistics: Sequence[Statistic], why: str) -> None:
        for statistic in statistics:
            self._errors.setdefault(statistic.name, UnsupportedError(why))


def _modules_of_layers(network: ScoredNetwork) -> dict[nn.Module, str]:
    """Name for each module that computes with a layer's weight the layer: several, where they share it."""
    names = {id(weight): name for name, weight in network.layers.items()}
    found: dict[nn.Module, str] = {}
    for module in network.modules.values():
        weight = module._parameters.get("weight")
        if id(weight) in names and isinstance(module, LAYERS):
            found[module] = names[id(weight)]
    return found


def _channels_second(z: Tensor, dz: Tensor, layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Lay a layer's output and gradient out as `product_sums` reads them: images, rows, tokens with channels last."""
    if isinstance(layer, nn.Linear):
        return (z, dz) if z.ndim in (2, 3) else (z.flatten(1, -2), dz.flatten(1, -2))
    return (z, dz) if z.ndim == 4 else (z.flatten(2).unsqueeze(3), dz.flatten(2).unsqueeze(3))
