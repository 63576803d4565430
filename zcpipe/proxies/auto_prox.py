"""Auto-Prox (Wei et al., AAAI 2024), the expression for AutoFormer that one of its authors published in PicoNAS.

For each convolution and linear layer: how far the elements of the loss's gradient at its input are from their mean, on
average, in standard deviations; plus the mean of the square roots of its weights, negative ones counted as 0. The score
is the mean over layers.

The names of its statistics and operations are PicoNAS's (t3g normalised, its l1_norm; t2 sqrt, relu), whose code for
them does not run as it stands. The repository of the paper names another expression for all its spaces (t2 min-max
normalised, its Frobenius norm; t4g sigmoid, square root), and not what t2 and t4g are: that one is not here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zcpipe.errors import UnsupportedError
from zcpipe.proxies.base import CustomStatistic, Network, Proxy, Recipe, Values, tensor_of
from zcpipe.spaces.layers import is_made_anew

_LAYERS = (nn.modules.conv._ConvNd, nn.Linear)


def auto_prox(network: Network) -> list[float]:
    """Return each layer's part, 0 for layers that the output does not depend on.

    Raises:
        UnsupportedError: there is no layer, or one is not computed by its module.
    """
    spreads = _Spreads(network).measure()
    values = []
    for name, weight, live in zip(network.layers, network.layers.values(), network.live, strict=True):
        if live and name not in spreads:
            raise UnsupportedError(f"the input of layer {name!r} cannot be seen: it is not computed by a module")
        roots = weight.detach().double().clamp(min=0).sqrt()
        values.append(spreads[name] + float(roots.mean()) if live else 0.0)
    return values


class _Spreads:
    """The gradients of the loss at the inputs of layers, each reduced as soon as a backward has brought all of it."""

    def __init__(self, network: Network) -> None:
        self._network = network
        names = {id(weight): name for name, weight in network.layers.items()}
        self._layers = {
            module: names[id(module.weight)] for module in network.model.modules() if _is_layer(module, names)
        }
        self._leaves: list[Tensor] = []
        self._calls: dict[str, int] = {}
        self._parts: dict[str, list[Tensor]] = {}
        self._spreads: dict[str, float] = {}

    def measure(self) -> dict[str, float]:
        """Run forward and backward; layers that were not called are missing."""
        if not self._network.layers:
            raise UnsupportedError("the network has no convolution or linear layer")
        handles = [
            module.register_forward_pre_hook(self._hook(name), with_kwargs=True)
            for module, name in self._layers.items()
        ]
        try:
            with torch.enable_grad():
                output = tensor_of(self._network.model(*self._network.inputs))
                torch.autograd.grad(self._network.loss(output, self._network.targets), self._leaves, allow_unused=True)
        finally:
            for handle in handles:
                handle.remove()
            self._leaves.clear()  # whose hooks hold this object: a circle
        for name in list(self._parts):  # of which some calls do nothing for the loss
            self._reduce(name)
        return {name: self._spreads.get(name, 0.0) for name in self._calls}

    def _hook(self, name: str) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
        def on_call(
            _module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            # Other arguments, such as the size of a transposed convolution's output, go on as they are.
            own_name = "" if arguments else next(one for one, value in named.items() if isinstance(value, Tensor))
            x: Tensor = arguments[0] if arguments else named[own_name]
            # Apart from what else reads the same tensor, whose gradient is not this layer's.
            own = x.view_as(x) if x.requires_grad else x.detach().clone().requires_grad_()
            if own.is_leaf:
                self._leaves.append(own)
            self._calls[name] = self._calls.get(name, 0) + 1
            own.register_hook(lambda gradient: self._take(name, gradient))  # type: ignore[no-untyped-call]
            return ((own, *arguments[1:]), named) if arguments else ((), {**named, own_name: own})

        return on_call

    def _take(self, name: str, gradient: Tensor) -> None:
        parts = self._parts.setdefault(name, [])
        parts.append(gradient.flatten())
        if len(parts) == self._calls[name]:
            self._reduce(name)

    def _reduce(self, name: str) -> None:
        self._spreads[name] = _spread(torch.cat(self._parts.pop(name)).double())


def _is_layer(module: nn.Module, names: Mapping[int, str]) -> bool:
    return isinstance(module, _LAYERS) and not is_made_anew(module, "weight") and id(module.weight) in names


def _spread(values: Tensor) -> float:  # [D]
    """Mean distance from the mean in standard deviations, 0 where all are equal."""
    distances = (values - values.mean()).abs()
    deviation = float(values.std()) if len(values) > 1 else 0.0
    return float(distances.mean()) / deviation if deviation != 0 else 0.0


def _mean_of_live(statistics: Mapping[str, Values]) -> float:
    return float(statistics["auto_prox"].sum() / statistics["auto_prox_layers"][0])


PROXIES = (
    Proxy(
        name="auto_prox",
        direction="higher",
        scope="function",
        cost="cheap",
        recipe=Recipe(init="default", inputs="data", norm="batch"),
        statistics=(
            CustomStatistic("auto_prox", "", "layer", auto_prox),
            CustomStatistic("auto_prox_layers", "", "network", lambda network: [float(sum(network.live))]),
        ),
        reduce=_mean_of_live,
        unit="",
        formula="mean over layers of mean |g - mean g| / std g + mean sqrt(max(w, 0)), g the loss's gradient at the "
        "layer's input",
        paper="Wei et al., Auto-Prox: Training-Free Vision Transformer Architecture Search via Automatic Proxy "
        "Discovery, AAAI 2024; the expression: PicoNAS",
        targets=True,
    ),
)
