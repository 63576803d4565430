"""The zen score of ZenNAS (Lin et al., ICCV 2021), as NASLib and AZ-NAS compute it.

Weights are standard normals and so are two batches x and x'. The score is the logarithm of how far the features before
the global pool move from x to x + x' / 100, which normalisation would hide, put back by the variances it divides by.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zcpipe.errors import UnsupportedError
from zcpipe.proxies.base import CustomStatistic, Network, Proxy, Recipe, only

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
        UnsupportedError: an input is not of floats, or neither an adaptive pool nor a linear layer runs.
    """
    x = _noise(network, "zen:x")
    other = [tensor + _STEP * step for tensor, step in zip(x, _noise(network, "zen:step"), strict=True)]
    with _running_variances(network.model) as variances:
        before, after = (features(network.model, inputs) for inputs in (x, other))
    moved = float((after - before).flatten(1).abs().sum(1, dtype=torch.float64).mean())
    if not math.isfinite(moved):
        return [math.nan]
    scales = sum(0.5 * math.log(float(variance.mean(dtype=torch.float64))) for variance in variances)
    return [(math.log(moved) if moved > 0 else -math.inf) + scales]


def features(model: nn.Module, inputs: Sequence[Tensor]) -> Tensor:  # [N, ...]
    """Run a model and return what entered its last adaptive pool or else its last linear layer.

    Raises:
        UnsupportedError: none of either ran, or it saw a part of the samples only.
    """
    found: dict[bool, Tensor] = {}  # by whether it entered a pool
    handles = [
        module.register_forward_pre_hook(lambda m, arguments: found.update({isinstance(m, _POOLS): arguments[0]}))
        for module in model.modules()
        if isinstance(module, (*_POOLS, nn.Linear))
    ]
    try:
        model(*inputs)
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


@contextmanager
def _running_variances(model: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, forwards keep running variances, from 1, of every ``BatchNorm2d``: in the list, not in the modules."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        if type(norm).forward is not nn.BatchNorm2d.forward or "forward" in vars(norm):
            raise UnsupportedError(f"zen cannot see the variances of {type(norm).__name__}, which has its own forward")
    device = next(model.parameters()).device
    variances = [torch.ones(norm.num_features, device=device) for norm in norms]
    try:
        for norm, variance in zip(norms, variances, strict=True):
            vars(norm)["forward"] = _normalisation(norm, variance)
        yield variances
    finally:
        for norm in norms:
            vars(norm).pop("forward", None)


def _normalisation(norm: nn.BatchNorm2d, variance: Tensor) -> Callable[[Tensor], Tensor]:
    mean = torch.zeros_like(variance)

    def forward(x: Tensor) -> Tensor:
        return F.batch_norm(x, mean, variance, norm.weight, norm.bias, True, _MOMENTUM, norm.eps)

    return forward


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
