"""Weight initialisation by recipe, reproducible for every parameter by name."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from zcpipe.errors import UsageError
from zcpipe.ops.philox import Stream

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm)


def initialise(
    model: nn.Module,
    *,
    seed: int = 0,
    space: str = "",
    scope: str = "",
    repeat: int = 0,
    device: str | torch.device | None = None,
) -> nn.Module:
    """Give a model Kaiming-normal weights (fan-in, gain for ReLU), in place, and return it.

    Convolutions and linear layers get normals of standard deviation sqrt(2 / fan_in), their biases zero; norm layers
    get weight 1 and bias 0, as AZ-NAS does. A model on the meta device receives memory first. Every tensor is a
    function of (seed, space, scope, repeat, parameter name) alone. Parameters of other layers keep their values.

    Args:
        model: the network; changed in place.
        seed: the run's seed.
        space: name of the search space, part of the random key.
        scope: what shares weights: the architecture's key.
        repeat: number of the repetition.
        device: where the model is moved to, or made if it is on the meta device; by default it stays (meta: the CPU).

    Raises:
        UsageError: the model is on the meta device and holds a parameter or buffer that no rule fills.
    """
    on_meta = any(parameter.is_meta for parameter in model.parameters())
    if on_meta:
        require_rules(model)
        _refuse_empty_buffers(model)
        model.to_empty(device=device or "cpu")
    elif device is not None and any(p.device != torch.device(device) for p in model.parameters()):
        model.to(device)
    for name, module in model.named_modules():
        if isinstance(module, (*_CONVOLUTIONS, nn.Linear)):
            stream = Stream.of(seed, space, scope, repeat, f"weight:{name}")
            _kaiming_normal(module.weight, stream)
            _fill(module.bias, 0.0)
        elif isinstance(module, _NORMS):
            _fill(module.weight, 1.0)
            _fill(module.bias, 0.0)
        reset_statistics: Callable[[], None] | None = getattr(module, "reset_running_stats", None)
        if on_meta and reset_statistics is not None:
            reset_statistics()
    return model


def _kaiming_normal(weight: Tensor, stream: Stream) -> None:
    with torch.no_grad():
        stream.normal_(weight)
        weight.mul_(math.sqrt(2.0 / weight[0].numel()))


def _fill(parameter: Tensor | None, value: float) -> None:
    if parameter is not None:
        with torch.no_grad():
            parameter.fill_(value)


def require_rules(model: nn.Module) -> None:
    """Refuse a model with parameters that `initialise` would leave as they are.

    Raises:
        UsageError: it names the first such layer.
    """
    for name, module in model.named_modules():
        known = isinstance(module, (*_CONVOLUTIONS, nn.Linear, *_NORMS))
        if not known and any(True for _ in module.parameters(recurse=False)):
            raise UsageError(
                f"no initialisation rule for layer {name!r} of type {type(module).__name__}; "
                "give the model weights of its own and score it with zcpipe.score"
            )


def _refuse_empty_buffers(model: nn.Module) -> None:
    """A meta buffer would come out as whatever the memory held; only norm layers know how to reset theirs."""
    for name, module in model.named_modules():
        for buffer, content in module.named_buffers(recurse=False):
            if content.is_meta and not hasattr(module, "reset_running_stats"):
                raise UsageError(
                    f"buffer {buffer!r} of layer {name!r} ({type(module).__name__}) has no content on the meta device; "
                    "build the layer on the CPU"
                )
