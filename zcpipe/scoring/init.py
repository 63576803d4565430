"""Weight initialisation by recipe, reproducible for every parameter by name."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zcpipe.errors import UsageError
from zcpipe.ops.philox import Stream

_WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm)
_Layers = Sequence[tuple[str, nn.Module]]


def initialise(
    model: nn.Module,
    *,
    seed: int = 0,
    space: str = "",
    scope: str = "",
    repeat: int = 0,
    device: str | torch.device | None = None,
    strict: bool = False,
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
        strict: refuse parameters that no rule fills also where they have values.

    Raises:
        UsageError: the model holds a parameter that no rule fills, or on the meta device a buffer, and `strict` is
            set or the model is on the meta device.
    """
    layers = list(model.named_modules())
    parameters = [p for _, layer in layers for p in layer._parameters.values() if p is not None]
    target = None if device is None else torch.device(device)
    on_meta = any(parameter.is_meta for parameter in parameters)
    if strict or on_meta:
        _require_rules(layers)
    if on_meta:
        _refuse_empty_buffers(layers)
        model.to_empty(device=target or "cpu")
    elif target is not None and any(parameter.device != target for parameter in parameters):
        model.to(target)
    with torch.no_grad():
        for name, layer in layers:
            if isinstance(layer, _WEIGHTED):
                _kaiming_normal(layer.weight, Stream.of(seed, space, scope, repeat, f"weight:{name}"))
                _fill(layer.bias, 0.0)
            elif isinstance(layer, _NORMS):
                _fill(layer.weight, 1.0)
                _fill(layer.bias, 0.0)
            if on_meta and hasattr(layer, "reset_running_stats"):
                layer.reset_running_stats()
    return model


def _kaiming_normal(weight: Tensor, stream: Stream) -> None:
    stream.normal_(weight).mul_(math.sqrt(2.0 / math.prod(weight.shape[1:])))


def _fill(parameter: Tensor | None, value: float) -> None:
    if parameter is not None:
        parameter.fill_(value)


def _require_rules(layers: _Layers) -> None:
    """Refuse parameters that `initialise` would leave as they are; the first such layer is named."""
    for name, module in layers:
        known = not module._parameters or isinstance(module, (*_WEIGHTED, *_NORMS))
        if not known and any(parameter is not None for parameter in module._parameters.values()):
            raise UsageError(
                f"no initialisation rule for layer {name!r} of type {type(module).__name__}; "
                "give the model weights of its own and score it with zcpipe.score"
            )


def _refuse_empty_buffers(layers: _Layers) -> None:
    """A meta buffer would come out as whatever the memory held; only norm layers know how to reset theirs."""
    for name, module in layers:
        for buffer, content in module.named_buffers(recurse=False):
            if content.is_meta and not hasattr(module, "reset_running_stats"):
                raise UsageError(
                    f"buffer {buffer!r} of layer {name!r} ({type(module).__name__}) has no content on the meta device; "
                    "build the layer on the CPU"
                )
