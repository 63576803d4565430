"""Weight initialisation by recipe, reproducible for every parameter by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, nn

from zcpipe.errors import UsageError, unknown_name
from zcpipe.ops._check import check_float
from zcpipe.ops.philox import Distribution, Stream, fill_all
from zcpipe.spaces.layers import Shared


class _Drawn(NamedTuple):
    """A parameter of independent random numbers."""

    distribution: Distribution
    scale: Callable[[Tensor], float]  # of the parameter


_Filler = Callable[[Stream, Tensor], object]  # fills a parameter from a stream of its own
_Fillers = Mapping[str, _Drawn | _Filler | Shared | float]  # by the parameter's name; or the number that fills it
_Rule = Callable[[Any], _Fillers]  # of a layer
_Rules = tuple[tuple[tuple[type[nn.Module], ...], _Rule], ...]  # the first that fits a layer counts
_Random = tuple[Tensor, Stream, _Drawn | _Filler | Shared]  # a parameter and what fills it from which stream
_Layers = Sequence[tuple[str, nn.Module, _Fillers]]


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

    A model on the meta device receives memory first; what its modules share they share afterwards. Every tensor is a
    function of (seed, space, scope, repeat, parameter name) and the recipe alone. Parameters that the recipe has no
    rule for keep their values: those of other layers, and what a layer's weight is computed from where it is no
    parameter (weight norm, spectral norm).

    Args:
        model: the network; changed in place.
        init: the recipe.

            ``kaiming_normal``: convolutions and linear layers get normals of standard deviation sqrt(2 / fan_in), their
            biases 0; norm layers get weight 1 and bias 0, as AZ-NAS does.

            ``normal``: the same with standard deviation 1, as Zen-NAS does, and so for transposed convolutions.

            ``default``: the distributions of torch's own constructors. Convolutions (transposed ones, too) and linear
            layers get weights and biases uniform between -1 and 1, divided by sqrt(fan_in); norm layers weight 1 and
            bias 0; embeddings standard normals; recurrent layers, attention and PReLU as in torch.

            Modules with an attribute ``shared`` (`zcpipe.spaces.layers.Shared`) decide for themselves, but under
            ``normal``: their parameters are parts of tensors that do not depend on ``scope``.
        seed: the run's seed.
        space: name of the search space, part of the random key.
        scope: what shares weights: the architecture's key.
        repeat: number of the repetition.
        device: where the model is moved to, or made if it is on the meta device; by default it stays (meta: the CPU).
            Vectors and scalars that nothing draws share one piece of memory for each dtype there.
        strict: refuse floating-point parameters that no rule fills also where they have values.

    Raises:
        UsageError: it is no module; there is no such recipe; the model was made in ``torch.inference_mode``; or it
            holds a parameter that no rule fills, or on the meta device a buffer, and `strict` is set or it is on the
            meta device. Nothing has changed then.
    """
    require_module(model)
    if init not in _RECIPES:
        raise unknown_name("init", init, _RECIPES)
    layers = _with_fillers(model, init)
    parameters = [p for _, layer, _ in layers for p in layer._parameters.values() if p is not None]
    if not torch.is_inference_mode_enabled() and any(map(is_of_inference_mode, parameters)):
        raise UsageError("parameters made in torch.inference_mode() cannot be drawn anew; make the model outside it")
    target = None if device is None else torch.empty(0, device=device).device  # with its number
    on_meta = any(parameter.is_meta for parameter in parameters)
    if strict or on_meta:
        _require_rules(layers)
    if on_meta:
        _refuse_empty_buffers(layers)
        shared = _shared(layers)
        model.to_empty(device=target or "cpu")
        for (first, own), *others in shared:  # of which each module got a tensor of its own
            for layer, name in others:
                setattr(layer, name, getattr(first, own))
    with torch.no_grad():
        for layer in model.modules() if on_meta else ():
            if (reset := getattr(layer, "reset_running_stats", None)) is not None:
                reset()
        for _, layer, fillers in layers:
            for own, fill in fillers.items():
                if isinstance(fill, float) and (parameter := layer._parameters.get(own)) is not None:
                    parameter.fill_(fill)
        if not on_meta and target is not None and any(parameter.device != target for parameter in parameters):
            _move(model, layers, target)
        _draw(layers, lambda shared, name: Stream.of(seed, space, "" if shared else scope, repeat, name))
    return model


def require_module(model: object) -> None:
    """Refuse what is no network.

    Raises:
        UsageError: it is none.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"the model must be a torch.nn.Module, got {type(model).__name__}")


def _shared(layers: _Layers) -> list[list[tuple[nn.Module, str]]]:
    """Return where modules hold one parameter or buffer under several names, such as an output layer's weight."""
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for _, layer, _ in layers:
        for name, tensor in (*layer._parameters.items(), *layer._buffers.items()):
            if tensor is not None:
                places.setdefault(id(tensor), []).append((layer, name))
    return [same for same in places.values() if len(same) > 1]


def _draw(layers: _Layers, stream_of: Callable[[bool, str], Stream]) -> None:
    """Fill what is random: all together, but where memory is shared one after the other, so that the last counts."""
    random: list[_Random] = []
    for name, layer, fillers in layers:
        for own, fill in fillers.items():
            parameter = layer._parameters.get(own)
            if parameter is not None and not isinstance(fill, float):
                check_float(f"{name}.{own}" if name else own, parameter)
                random.append((parameter, stream_of(isinstance(fill, Shared), f"{own}:{name}"), fill))
    storages = [parameter.untyped_storage()._cdata for parameter, _, _ in random]
    for part in [random] if len(set(storages)) == len(storages) else [[one] for one in random]:
        _draw_together(part)


def _draw_together(random: Sequence[_Random]) -> None:
    for parameter, stream, fill in random:
        if isinstance(fill, Shared):
            _fill_part(stream, fill, parameter)
        elif not isinstance(fill, _Drawn):
            fill(stream, parameter)
    for distribution in get_args(Distribution):
        drawn = [
            (parameter, stream, fill.scale(parameter))
            for parameter, stream, fill in random
            if isinstance(fill, _Drawn) and fill.distribution == distribution
        ]
        fill_all(drawn, distribution)


def _move(model: nn.Module, layers: _Layers, target: torch.device) -> None:
    """Move a model to a device: only what will not be drawn is copied, and nobody waits for it.

    A wait costs as long as all that others have sent to a shared GPU, and a copy as much as a small layer's kernel:
    what is small goes in one.
    """
    drawn = {
        id(layer._parameters.get(own))
        for _, layer, fillers in layers
        for own, fill in fillers.items()
        if not isinstance(fill, float)
    }
    tensors = {
        id(t): t for _, layer, _ in layers for held in (layer._parameters, layer._buffers) for t in held.values()
    }
    small = [t for key, t in tensors.items() if t is not None and key not in drawn and _is_small(t)]
    there = dict(zip(map(id, small), _moved_together(small, target), strict=True))

    def moved(tensor: Tensor) -> Tensor:
        if tensor.device == target:
            return tensor
        if id(tensor) in drawn:
            return torch.empty_like(tensor, device=target)
        if id(tensor) in there:
            return there[id(tensor)]
        return tensor.to(target, non_blocking=target.type == "cuda")  # the CPU would read what has not arrived

    model._apply(moved)  # type: ignore[no-untyped-call]


def _is_small(tensor: Tensor) -> bool:
    """Whether a tensor is a vector or a scalar of the CPU as constants and running statistics are."""
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided and not tensor.is_quantized
    return plain and tensor.is_cpu and tensor.ndim <= 1 and tensor.is_contiguous()


def _moved_together(tensors: Sequence[Tensor], target: torch.device) -> list[Tensor]:
    """Copy tensors of at most one dimension to a device in one copy for each dtype; they share their memory there."""
    kinds: dict[torch.dtype, list[int]] = {}
    for i, tensor in enumerate(tensors):
        kinds.setdefault(tensor.dtype, []).append(i)
    found: dict[int, Tensor] = {}
    for members in kinds.values():
        parts = [tensors[i].view(-1) for i in members]
        whole = torch.cat(parts).to(target, non_blocking=target.type == "cuda")
        for i, part in zip(members, torch.split(whole, list(map(len, parts))), strict=True):
            # .data, so that each counts its own changes: autograd must not take one's for another's.
            found[i] = part.data if tensors[i].ndim else part.view(()).data
    return [found[i] for i in range(len(tensors))]


def _fill_part(stream: Stream, shared: Shared, parameter: Tensor) -> None:
    """Fill a parameter with its part of a shared tensor."""
    # A number depends on its place in the whole, so the rows behind the part's need not be drawn.
    rows = parameter.new_empty((parameter.shape[0], *shared.shape[1:]))
    (stream.normal_ if shared.distribution == "normal" else stream.uniform_)(rows).mul_(shared.scale)
    parameter.copy_(rows[tuple(slice(size) for size in parameter.shape)])


def is_of_inference_mode(parameter: Tensor) -> bool:
    """Whether a parameter was made in ``torch.inference_mode``, so that autograd does not count its changes."""
    try:
        _ = parameter._version  # what `is_inference` says changes with the parameter's data, this does not
    except RuntimeError:
        return True
    return False


def _uniform(bound: float) -> _Drawn:
    return _Drawn("uniform", lambda _: bound)


_STANDARD_NORMAL = _Drawn("normal", lambda _: 1.0)
_BY_FAN_IN = _Drawn("normal", lambda weight: math.sqrt(2.0 / max(math.prod(weight.shape[1:]), 1)))


def _kaiming_normal(_: Any) -> _Fillers:  # noqa: ANN401 - layers have what their type has
    return {"weight": _BY_FAN_IN, "bias": 0.0}


def _normal(_: Any) -> _Fillers:  # noqa: ANN401
    return {"weight": _STANDARD_NORMAL, "bias": 0.0}


def _torchs_uniform(layer: Any) -> _Fillers:  # noqa: ANN401
    fan_in = math.prod(layer.weight.shape[1:])
    fill = _uniform(1.0 / math.sqrt(fan_in) if fan_in else 0.0)
    return {"weight": fill, "bias": fill}


def _attentions_output(layer: Any) -> _Fillers:  # noqa: ANN401
    return {**_torchs_uniform(layer), "bias": 0.0}


def _identity(_: Any) -> _Fillers:  # noqa: ANN401
    return {"weight": 1.0, "bias": 0.0}


def _embedding(layer: Any) -> _Fillers:  # noqa: ANN401
    def fill(stream: Stream, weight: Tensor) -> None:
        stream.normal_(weight)
        if layer.padding_idx is not None:
            weight[layer.padding_idx] = 0.0

    return {"weight": fill}


def _recurrent(layer: Any) -> _Fillers:  # noqa: ANN401
    cell = isinstance(layer, nn.RNNCellBase)
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh") if cell else layer._flat_weights_names
    return dict.fromkeys(names, _uniform(1.0 / math.sqrt(layer.hidden_size)))


def _attention(layer: Any) -> _Fillers:  # noqa: ANN401
    by_both_fans = _Drawn("uniform", lambda weight: math.sqrt(6.0 / sum(weight.shape)))
    bias = _Drawn("normal", lambda _: 1.0 / math.sqrt(layer.embed_dim))
    weights = dict.fromkeys(("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"), by_both_fans)
    return {**weights, "in_proj_bias": 0.0, "bias_k": bias, "bias_v": bias}


def _prelu(layer: Any) -> _Fillers:  # noqa: ANN401
    return {"weight": float(layer.init)}


_WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)
# Papers score networks with these, and those of a weight-sharing space with the weights of its super-network instead;
# standard normals are part of a definition.
_LEFT_TO_NETWORKS = ("kaiming_normal", "default")
_RECIPES: dict[str, _Rules] = {
    # None for transposed convolutions: how many inputs meet in an output depends on the stride.
    "kaiming_normal": ((_WEIGHTED, _kaiming_normal), (_NORMS, _identity)),
    "normal": ((_WEIGHTED + _TRANSPOSED, _normal), (_NORMS, _identity)),
    "default": (
        ((nn.modules.linear.NonDynamicallyQuantizableLinear,), _attentions_output),
        (_WEIGHTED + _TRANSPOSED, _torchs_uniform),
        (_NORMS, _identity),
        ((nn.Embedding, nn.EmbeddingBag), _embedding),
        ((nn.RNNBase, nn.RNNCellBase), _recurrent),
        ((nn.MultiheadAttention,), _attention),
        ((nn.PReLU,), _prelu),
    ),
}


def _with_fillers(model: nn.Module, init: str) -> _Layers:
    """Return the modules that hold tensors, with their names and what fills their parameters."""
    holding = ((name, layer) for name, layer in model.named_modules() if layer._parameters or layer._buffers)
    return [(name, layer, _fillers(layer, init)) for name, layer in holding]


def _fillers(layer: nn.Module, init: str) -> _Fillers:
    if not layer._parameters:
        return {}
    own: _Fillers | None = vars(layer).get("shared")
    if own is not None and init in _LEFT_TO_NETWORKS:
        return own
    rule = next((rule for types, rule in _RECIPES[init] if isinstance(layer, types)), None)
    return {} if rule is None else rule(layer)


def without_rule(model: nn.Module, init: str) -> str | None:
    """Name the first floating-point parameter that a recipe cannot draw, or say None: it draws all of them."""
    return _without_rule(_with_fillers(model, init))


def _require_rules(layers: _Layers) -> None:
    """Refuse parameters that `initialise` would leave as they are."""
    parameter = _without_rule(layers)
    if parameter is not None:
        raise UsageError(
            f"no initialisation rule for {parameter}; give the model weights of its own and score it with zcpipe.score"
        )


def _without_rule(layers: _Layers) -> str | None:
    filled = {id(layer._parameters.get(own)) for _, layer, fillers in layers for own in fillers}
    for name, layer, _ in layers:
        for own, parameter in layer._parameters.items():
            if parameter is None or id(parameter) in filled:
                continue
            if parameter.is_floating_point() or parameter.is_complex() or parameter.is_meta:
                where = f"layer {name!r} of type" if name else "the model itself, a"
                return f"parameter {own!r} of {where} {type(layer).__name__}"
    return None


def _refuse_empty_buffers(layers: _Layers) -> None:
    """A meta buffer would come out as whatever the memory held; only norm layers know how to reset theirs."""
    for name, module, _ in layers:
        for buffer, content in module.named_buffers(recurse=False):
            if content.is_meta and not hasattr(module, "reset_running_stats"):
                raise UsageError(
                    f"buffer {buffer!r} of layer {name!r} ({type(module).__name__}) has no content on the meta device; "
                    "build the layer on the CPU"
                )
