"""What counts as a layer: the weights that saliencies are taken of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn

from zcpipe.spaces.layers import is_made_anew

# Names of the weights of module types whose layers are no modules of their own.
_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
LAYERS = (nn.modules.conv._ConvNd, nn.Linear)
_NO_LAYERS = (nn.Embedding, nn.EmbeddingBag, nn.PReLU, nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)


def weights_of(modules: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Return the weights of all layers by name, in the order of ``modules()``.

    Layers are convolutions and linear layers, named as their modules; further the matrices inside
    ``nn.MultiheadAttention`` and recurrent modules, named as their parameters. Biases, norm layers and embeddings are
    none. A weight that several layers share counts once, under the first name.

    Args:
        modules: the model and all that is in it, as ``dict(model.named_modules())``.
    """
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for name, module in modules.items():
        for weight_name, weight in _weights(name, module):
            found.setdefault(id(weight), (weight_name, weight))
    return dict(found.values())


def unknown_layers(modules: Mapping[str, nn.Module]) -> list[str]:
    """Name the weights of two or more dimensions which no rule knows, with the module that holds them and its type."""
    unknown = []
    for name, module in modules.items():
        if isinstance(module, _NO_LAYERS):
            continue
        known = {id(weight) for _, weight in _weights(name, module)}
        own = {own: p for own, p in module._parameters.items() if p is not None and p.ndim > 1}
        strange = [own_name for own_name, parameter in own.items() if id(parameter) not in known]
        if strange:
            unknown.append(f"{', '.join(strange)} of {name or 'the model itself'} ({type(module).__name__})")
    return unknown


def _weights(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    if isinstance(module, LAYERS):
        if not is_made_anew(module, "weight") and isinstance(module.weight, nn.Parameter):
            yield name, module.weight
    elif isinstance(module, nn.MultiheadAttention):
        yield from _named(name, module, _ATTENTION)
    elif isinstance(module, nn.RNNBase):
        weights = [own for own in module._parameters if own.startswith("weight_")]
        yield from _named(name, module, tuple(weights))


def _named(name: str, module: nn.Module, names: tuple[str, ...]) -> Iterator[tuple[str, nn.Parameter]]:
    prefix = f"{name}." if name else ""
    for own in names:
        weight = module._parameters.get(own)
        if weight is not None:
            yield prefix + own, weight
