"""Weight initialisation by recipe, reproducible for every parameter by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zcpipe.errors import UsageError, unknown_name
from zcpipe.ops.philox import Stream

_Streams = Callable[[str], Stream]  # the stream of a layer's parameter, by the parameter's name
_Rule = Callable[[Any, _Streams], None]  # fills a layer's own parameters
_Rules = tuple[tuple[tuple[type[nn.Module], ...], _Rule], ...]  # the first that fits a layer counts
_Layers = Sequence[tuple[str, nn.Module, _Rule | None]]


def initialise(
    model: nn.Module,
    *,
    init: str = "kaiming_normal",
    seed: int = 0,
    space: str = "",
    scope: str = "",
    repeat: int = 0,
    device: str | torch.device | None = None,
    strict: bool = False,
) -> nn.Module:
    """Give a model random weights, in place, and return it.

    A model on the meta device receives memory first. Every tensor is a function of (seed, space, scope, repeat,
    parameter name) and the recipe alone. Parameters of layers that the recipe has no rule for keep their values.

    Args:
        model: the network; changed in place.
        init: the recipe.

            ``kaiming_normal``: convolutions and linear layers get normals of standard deviation sqrt(2 / fan_in), their
            biases 0; norm layers get weight 1 and bias 0, as AZ-NAS does.

            ``normal``: the same with standard deviation 1, as Zen-NAS does.

            ``default``: the distributions of torch's own constructors. Convolutions (transposed ones, too) and linear
            layers get weights and biases uniform between -1 and 1, divided by sqrt(fan_in); norm layers weight 1 and
            bias 0; embeddings standard normals; recurrent layers, attention and PReLU as in torch.
        seed: the run's seed.
        space: name of the search space, part of the random key.
        scope: what shares weights: the architecture's key.
        repeat: number of the repetition.
        device: where the model is moved to, or made if it is on the meta device; by default it stays (meta: the CPU).
        strict: refuse parameters that no rule fills also where they have values.

    Raises:
        UsageError: there is no such recipe; or the model holds a parameter that no rule fills, or on the meta device a
            buffer, and `strict` is set or the model is on the meta device.
    """
    if init not in _RECIPES:
        raise unknown_name("init", init, _RECIPES)
    layers = [(name, layer, _rule(layer, _RECIPES[init])) for name, layer in model.named_modules()]
    parameters = [p for _, layer, _ in layers for p in layer._parameters.values() if p is not None]
    target = None if device is None else torch.device(device)
    on_meta = any(parameter.is_meta for parameter in parameters)
    if strict or on_meta:
        _require_rules(layers)
    if on_meta:
        _refuse_empty_buffers(layers)
        model.to_empty(device=target or "cpu")
    elif target is not None and any(parameter.device != target for parameter in parameters):
        model.to(target)
    # Attention comes last: it has a word in its projection's bias.
    layers.sort(key=lambda named: isinstance(named[1], nn.MultiheadAttention))

    def streams_of(layer: str) -> _Streams:
        return lambda parameter: Stream.of(seed, space, scope, repeat, f"{parameter}:{layer}")

    with torch.no_grad():
        for name, layer, rule in layers:
            if rule is not None:
                rule(layer, streams_of(name))
            if on_meta and hasattr(layer, "reset_running_stats"):
                layer.reset_running_stats()
    return model


def _kaiming_normal(layer: Any, stream: _Streams) -> None:  # noqa: ANN401 - layers have what their type has
    stream("weight").normal_(layer.weight).mul_(math.sqrt(2.0 / _fan_in(layer.weight)))
    _fill(layer.bias, 0.0)


def _standard_normal(layer: Any, stream: _Streams) -> None:  # noqa: ANN401
    stream("weight").normal_(layer.weight)
    _fill(layer.bias, 0.0)


def _torchs_uniform(layer: Any, stream: _Streams) -> None:  # noqa: ANN401
    fan_in = _fan_in(layer.weight)
    _uniform(layer, ("weight", "bias"), 1.0 / math.sqrt(fan_in) if fan_in else 0.0, stream)


def _identity(norm: Any, stream: _Streams) -> None:  # noqa: ANN401
    _fill(norm.weight, 1.0)
    _fill(getattr(norm, "bias", None), 0.0)  # RMSNorm has none


def _embedding(layer: Any, stream: _Streams) -> None:  # noqa: ANN401
    stream("weight").normal_(layer.weight)
    if layer.padding_idx is not None:
        layer.weight[layer.padding_idx] = 0.0


def _recurrent(layer: Any, stream: _Streams) -> None:  # noqa: ANN401
    _uniform(layer, layer._parameters, 1.0 / math.sqrt(layer.hidden_size), stream)


def _attention(layer: Any, stream: _Streams) -> None:  # noqa: ANN401
    for name in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
        if getattr(layer, name) is not None:
            _uniform(layer, (name,), math.sqrt(6.0 / sum(getattr(layer, name).shape)), stream)
    if layer.in_proj_bias is not None:
        _fill(layer.in_proj_bias, 0.0)
        _fill(layer.out_proj.bias, 0.0)
    for name in ("bias_k", "bias_v"):
        if getattr(layer, name) is not None:
            stream(name).normal_(getattr(layer, name)).mul_(1.0 / math.sqrt(layer.embed_dim))


def _prelu(layer: Any, stream: _Streams) -> None:  # noqa: ANN401
    _fill(layer.weight, layer.init)


def _fan_in(weight: Tensor) -> int:
    return math.prod(weight.shape[1:])


def _uniform(layer: nn.Module, names: Iterable[str], bound: float, stream: _Streams) -> None:
    for name in names:
        parameter = layer._parameters[name]
        if parameter is not None:
            stream(name).uniform_(parameter).mul_(bound)


def _fill(parameter: Tensor | None, value: float) -> None:
    if parameter is not None:
        parameter.fill_(value)


_WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm)
_OTHER_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.RMSNorm)
_RECIPES: dict[str, _Rules] = {
    "kaiming_normal": ((_WEIGHTED, _kaiming_normal), (_NORMS, _identity)),
    "normal": ((_WEIGHTED, _standard_normal), (_NORMS, _identity)),
    "default": (
        (_WEIGHTED + _TRANSPOSED, _torchs_uniform),
        (_NORMS + _OTHER_NORMS, _identity),
        ((nn.Embedding, nn.EmbeddingBag), _embedding),
        ((nn.RNNBase, nn.RNNCellBase), _recurrent),
        ((nn.MultiheadAttention,), _attention),
        ((nn.PReLU,), _prelu),
    ),
}


def _rule(layer: nn.Module, rules: _Rules) -> _Rule | None:
    if not layer._parameters:
        return None
    return next((rule for types, rule in rules if isinstance(layer, types)), None)


def _require_rules(layers: _Layers) -> None:
    """Refuse parameters that `initialise` would leave as they are; the first such layer is named."""
    for name, module, rule in layers:
        if rule is None and any(parameter is not None for parameter in module._parameters.values()):
            raise UsageError(
                f"no initialisation rule for layer {name!r} of type {type(module).__name__}; "
                "give the model weights of its own and score it with zcpipe.score"
            )


def _refuse_empty_buffers(layers: _Layers) -> None:
    """A meta buffer would come out as whatever the memory held; only norm layers know how to reset theirs."""
    for name, module, _ in layers:
        for buffer, content in module.named_buffers(recurse=False):
            if content.is_meta and not hasattr(module, "reset_running_stats"):
                raise UsageError(
                    f"buffer {buffer!r} of layer {name!r} ({type(module).__name__}) has no content on the meta device; "
                    "build the layer on the CPU"
                )
