"""The zen score of ZenNAS (Lin et al., ICCV 2021), as NASLib and AZ-NAS compute it.

Weights are standard normals and so are two batches x and x'. The score is the logarithm of how far the features before
the global pool move from x to x + x' / 100, which normalisation would hide, put back by the variances it divides by.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zcpipe.errors import UnsupportedError
from zcpipe.proxies.base import CustomStatistic, Network, OnNorm, Proxy, Recipe, only

_STEP = 0.01
_MOMENTUM = 0.1  # torch's default, which the published networks have
_POOLS = tuple(getattr(nn, f"Adaptive{kind}Pool{dimensions}d") for kind in ("Avg", "Max") for dimensions in (1, 2, 3))


@torch.no_grad()
def zen(network: Network) -> list[float]:
    """Return ln(mean over samples of sum abs(f(x + x' / 100) - f(x))) + sum over batch norms of ln sqrt(mean(v)).

    f is what enters the adaptive pool that runs last or, without one, the linear layer that runs last. v is a
    ``BatchNorm2d``'s running variance after both forwards, in this order, from 1 at momentum 0.1: 0.81 + 0.09 v(x) +
    0.1 v(x + x' / 100) with the unbiased variances of the batches. Dead layers' norms count.

    Returns:
        The score; -inf where f does not depend on the input, NaN where the features overflow.

    Raises:
        UnsupportedError: an input is not of floats, or no adaptive pool and no linear layer runs on the whole batch.
    """
    x = _noise(network, "zen:x")
    other = [tensor + _STEP * step for tensor, step in zip(x, _noise(network, "zen:step"), strict=True)]
    variances: dict[nn.BatchNorm2d, Tensor] = {}

    def update(norm: nn.BatchNorm2d, variance: Tensor, count: int) -> None:
        unbiased = variance.double() * (count / (count - 1))
        running = variances[norm] if norm in variances else torch.ones_like(unbiased)
        variances[norm] = running + _MOMENTUM * (unbiased - running)

    before, after = (features(network, inputs, update) for inputs in (x, other))
    moved = float((after - before).flatten(1).abs().sum(1, dtype=torch.float64).mean())
    if not math.isfinite(moved):
        return [math.nan]
    scales = sum(0.5 * math.log(float(variance.mean())) for variance in variances.values())
    return [(math.log(moved) if moved > 0 else -math.inf) + scales]


def features(network: Network, inputs: Sequence[Tensor], on_norm: OnNorm) -> Tensor:  # [N, ...]
    """Run a network and return what entered its last adaptive pool or else its last linear layer.

    Raises:
        UnsupportedError: none of either ran, or it saw a part of the samples only.
    """
    found: dict[bool, Tensor] = {}  # by whether it entered a pool

    def keep(module: nn.Module, arguments: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        entered = (*arguments, *named.values())[0]
        found[isinstance(module, _POOLS)] = entered.clone()  # the network may go on to compute in it

    handles = [
        module.register_forward_pre_hook(keep, with_kwargs=True)
        for module in network.model.modules()
        if isinstance(module, (*_POOLS, nn.Linear))
    ]
    try:
        network.run(inputs, on_norm)
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise UnsupportedError("zen needs an adaptive pool or a linear layer to tell which features come last")
    last = found[True in found]
    if len(last) != len(inputs[0]):
        raise UnsupportedError(f"zen needs the features of all {len(inputs[0])} samples at once, got {len(last)}")
    return last


def _noise(network: Network, purpose: str) -> list[Tensor]:
    """Draw standard normals of the shapes of the network's inputs."""
    if not all(tensor.is_floating_point() for tensor in network.inputs):
        raise UnsupportedError("zen moves the inputs a little, which integers cannot do")
    return [
        network.stream(f"{purpose}:{i}").normal_(torch.empty_like(tensor)) for i, tensor in enumerate(network.inputs)
    ]


PROXIES = (
    Proxy(
        name="zen",
        direction="higher",
        scope="full",
        cost="cheap",
        recipe=Recipe(init="normal", inputs="noise", norm="batch", redraws=True),
        statistics=(CustomStatistic("zen", "", "network", zen),),
        reduce=only("zen"),
        unit="",
        formula="ln mean |f(x + x'/100) - f(x)|_1 + sum of ln sqrt(mean variance) of batch norms, f: pool inputs",
        paper="Lin et al., Zen-NAS: A Zero-Shot NAS for High-Performance Image Recognition, ICCV 2021; as in NASLib",
    ),
)
