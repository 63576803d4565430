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

from zcpipe.errors import UnsupportedError, UsageError, unknown_name
from zcpipe.ops import product_sums
from zcpipe.proxies.base import (
    ActivationStatistic,
    GradientStatistic,
    InputGradient,
    InputGradientStatistic,
    JacobianStatistic,
    LayerOutputs,
    MapStatistic,
    OutputStatistic,
    Statistic,
    positions_of,
)
from zcpipe.scoring.blocks import BlockResult, ProbeSource, local_gradient
from zcpipe.scoring.network import ScoredNetwork, gradients_of, tensor_of, wanting_gradients
from zcpipe.scoring.rewrite import fast_operations


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
    sweeps = _Sweeps(network, blocks, statistics, probe, copies=False)
    try:
        return sweeps.run()
    except _OverwrittenError:
        sweeps.forget()
        # Somebody computes in place on what was captured: again, with copies.
        sweeps = _Sweeps(network, blocks, statistics, probe, copies=True)
        return sweeps.run()
    finally:
        sweeps.forget()


class _OverwrittenError(Exception):
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


class _Sweeps:
    """State of one pass. It is also what fused layers report to: see `zcpipe.scoring.cells.Taps`."""

    def __init__(
        self,
        network: ScoredNetwork,
        blocks: Sequence[str],
        statistics: Sequence[Statistic],
        probe: ProbeSource,
        copies: bool,
    ) -> None:
        self._network = network
        self._probe = probe
        self._copies = copies
        self._statistics = statistics
        self._maps = [s for s in statistics if isinstance(s, MapStatistic)]
        self._jacobians = [s for s in statistics if isinstance(s, JacobianStatistic)]
        self._gradients = [s for s in statistics if isinstance(s, GradientStatistic)]
        self._outputs = [s for s in statistics if isinstance(s, OutputStatistic)]
        self._inputs = [s for s in statistics if isinstance(s, InputGradientStatistic)]
        self._relus = [s for s in statistics if isinstance(s, ActivationStatistic)]
        self._blocks = blocks if self._maps or self._jacobians else ()
        self._features: list[_Captured] = []
        self._map_moments: dict[str, list[Tensor]] = {s.name: [] for s in self._maps}
        self._output_moments: dict[str, dict[str, list[Tensor]]] = {s.name: {} for s in self._outputs}
        self._totals: dict[str, Tensor | None] = {s.name: None for s in self._relus}
        self._called: set[str] = set()
        self._values: dict[str, Any] = {}
        self._errors: dict[str, Exception] = {}
        self._overwritten = False
        self._names = {module: name for name, module in network.modules.items()}
        self.active = False
        self.outputs = bool(self._outputs)
        self.relus = bool(self._relus)
        self.norms = False

    def run(self) -> BlockResult:
        weights = list(self._network.layers.values()) if self._gradients or self._outputs else []
        inputs = [self._as_leaf(tensor) for tensor in self._network.inputs]
        modules = self._network.modules
        with wanting_gradients(weights), fast_operations(modules, self._blocks, self), torch.enable_grad():
            output = tensor_of(self._forward(inputs))
            self._sweep_loss(output, weights)
            self._sweep_inputs(output, inputs)
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
        handles = []
        try:
            for name in self._blocks:
                if name not in modules:
                    raise unknown_name("block", name, modules)
                handles.append(modules[name].register_forward_hook(self._on_block(name)))
            if self._outputs:
                layers = [name for name in self._network.layers if name in modules]
                handles += [modules[name].register_forward_hook(self._on_output(name)) for name in layers]
            if self._relus:
                for module in modules.values():
                    if isinstance(module, nn.ReLU):
                        handles.append(module.register_forward_pre_hook(self._on_relu))
            output = self._network.model(*inputs)
        finally:
            for handle in handles:
                handle.remove()
        if len(self._features) < len(self._blocks):
            raise UsageError(f"block {self._blocks[len(self._features)]!r} did not run in the forward pass")
        return output

    def _on_block(self, name: str) -> Callable[..., Tensor]:
        def hook(_module: nn.Module, _arguments: Any, output: Any) -> Tensor:  # noqa: ANN401
            if not isinstance(output, Tensor):
                raise UsageError(f"block {name!r} must return one tensor, got {type(output).__name__}")
            done = len(self._features)
            expected = self._blocks[done] if done < len(self._blocks) else "no further block"
            if name != expected:
                raise UsageError(f"blocks must run once each in the order given: expected {expected!r}, got {name!r}")
            if self._jacobians and not output.requires_grad:  # nothing before it asks for gradients
                output = output.detach().requires_grad_()
            self._features.append(_Captured(output))
            feature = positions_of(output.detach())
            for statistic in self._maps:
                with self._costing(statistic):
                    self._map_moments[statistic.name].append(statistic.moments(feature))
            passed: Tensor = output.clone() if self._copies else output
            return passed

        return hook

    def _on_output(self, name: str) -> Callable[..., Tensor]:
        def hook(module: nn.Module, _arguments: Any, output: Any) -> Any:  # noqa: ANN401
            self._called.add(name)
            if not isinstance(output, Tensor) or not output.requires_grad:
                return output
            kept = _Captured(output.detach())

            def on_gradient(gradient: Tensor) -> None:
                try:
                    z = kept.value
                except _OverwrittenError:  # autograd would show a traceback of its own; said after the sweep
                    self._overwritten = True
                    return
                self._take_products(name, product_sums(*_channels_second(z, gradient, module)))

            output.register_hook(on_gradient)  # type: ignore[no-untyped-call]
            return output.clone() if self._copies else output

        return hook

    def output(self, conv: nn.Conv2d, products: Tensor) -> None:  # [N, C] float64
        """Take what a fused convolution reports."""
        self._called.add(self._names[conv])
        self._take_products(self._names[conv], products)

    def _take_products(self, name: str, products: Tensor) -> None:  # [N, C] float64
        for statistic in self._outputs:
            with self._costing(statistic):
                moments = statistic.moments(products)
                self._output_moments[statistic.name].setdefault(name, []).append(moments)

    def norm(self, norm: nn.BatchNorm2d, variance: Tensor, count: int) -> None:
        """Take nothing: no statistic reads norms here."""

    def _on_relu(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        self.relu(module, arguments[0].detach())

    def relu(self, _relu: nn.Module, x: Tensor) -> None:
        """Take what enters a ReLU."""
        samples = len(self._network.inputs[0])
        if len(x) != samples:
            error = UnsupportedError(f"a ReLU sees {len(x)} samples, the batch has {samples}")
            self._errors |= {statistic.name: error for statistic in self._relus}
            return
        for statistic in self._relus:
            with self._costing(statistic):
                self._totals[statistic.name] = statistic.moments(x, self._totals[statistic.name])

    def _sweep_loss(self, output: Tensor, weights: Sequence[nn.Parameter]) -> None:
        if not weights:
            if self._gradients or self._outputs:
                raise UnsupportedError("the network has no convolution or linear layer")
            return
        loss = self._network.batch_loss(output)
        more = bool(self._inputs or self._jacobians)
        self.active = True
        found = torch.autograd.grad(loss, weights, retain_graph=more, allow_unused=True)
        self.active = False
        if self._overwritten:
            raise _OverwrittenError
        self._network.gradients = gradients_of(weights, found)
        for statistic in self._gradients:
            with self._costing(statistic):
                self._set(statistic, statistic.of(self._network.gradients))
        used = [name for name, g in zip(self._network.layers, found, strict=True) if g is not None]
        for outputs in self._outputs:
            with self._costing(outputs):
                self._set(outputs, self._of_outputs(outputs, used))

    def _of_outputs(self, statistic: OutputStatistic, used: Sequence[str]) -> list[float]:
        unseen = [name for name in used if name not in self._called]
        if unseen:
            raise UnsupportedError(f"the output of layer {unseen[0]!r} cannot be seen: it is not computed by a module")
        moments = self._output_moments[statistic.name]
        layers = self._network.layers
        samples = len(self._network.inputs[0])
        return [statistic.finish(LayerOutputs(moments.get(n, []), layers[n].detach(), samples)) for n in layers]

    def _sweep_inputs(self, output: Tensor, inputs: Sequence[Tensor]) -> None:
        if not self._inputs:
            return
        leaves = [tensor for tensor in inputs if tensor.requires_grad]
        try:
            rows = self._input_rows(output, leaves)
        except UnsupportedError as error:
            self._errors |= {statistic.name: error for statistic in self._inputs}
            return
        gradient = InputGradient(rows, self._network.targets, output.shape[-1] if output.ndim > 1 else 1)
        for statistic in self._inputs:
            with self._costing(statistic):
                self._set(statistic, [statistic.of(gradient)])

    def _input_rows(self, output: Tensor, leaves: Sequence[Tensor]) -> Tensor:  # [N, D]
        if not leaves:
            raise UnsupportedError("the network's inputs are integers, which have no gradient")
        if not output.requires_grad:
            return torch.cat([torch.zeros_like(leaf).flatten(1) for leaf in leaves], 1)
        more = bool(self._jacobians)
        found = torch.autograd.grad(output.sum(), leaves, retain_graph=more, allow_unused=True)
        whole = [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)]
        return torch.cat([gradient.flatten(1) for gradient in whole], 1)

    def _sweep_blocks(self) -> None:
        if not self._jacobians:
            return
        moments: dict[str, list[Tensor | None]] = {s.name: [] for s in self._jacobians}
        for done in reversed(range(1, len(self._features))):
            output, before = self._features[done].value, self._features[done - 1].value
            g_out = self._probe(self._blocks[done], output)
            g_in = local_gradient(output, before, g_out)
            for statistic in self._jacobians:
                with self._costing(statistic):
                    moments[statistic.name].append(statistic.moments(g_in, g_out))
        for statistic in self._jacobians:
            with self._costing(statistic):
                self._set(statistic, statistic.finish(moments[statistic.name][::-1]))

    def _finish(self) -> None:
        for statistic in self._maps:
            with self._costing(statistic):
                self._set(statistic, statistic.finish(self._map_moments[statistic.name]))
        for activation in self._relus:
            with self._costing(activation):
                self._set(activation, [activation.finish(self._total(activation))])

    def _total(self, statistic: ActivationStatistic) -> Tensor:
        total = self._totals[statistic.name]
        if total is None:
            raise UnsupportedError("the network has no ReLU modules")
        return total

    def _set(self, statistic: Statistic, values: Sequence[float] | np.ndarray[Any, Any]) -> None:
        self._values[statistic.name] = np.asarray(values, dtype=np.float64)

    def _array(self, statistic: Statistic) -> np.ndarray[Any, np.dtype[np.float64]]:
        found: np.ndarray[Any, np.dtype[np.float64]] = self._values.get(statistic.name, np.array([np.nan]))
        return found

    @contextmanager
    def _costing(self, statistic: Statistic) -> Iterator[None]:
        """A failure inside costs the proxies that read the statistic, not the whole pass; the first one is kept."""
        try:
            yield
        except _OverwrittenError:
            raise
        except Exception as error:
            self._errors.setdefault(statistic.name, error)


def _channels_second(z: Tensor, dz: Tensor, layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Lay a layer's output and gradient out as `product_sums` reads them: images, rows, tokens with channels last."""
    if isinstance(layer, nn.Linear):
        return (z, dz) if z.ndim in (2, 3) else (z.flatten(1, -2), dz.flatten(1, -2))
    return (z, dz) if z.ndim == 4 else (z.flatten(2).unsqueeze(3), dz.flatten(2).unsqueeze(3))
