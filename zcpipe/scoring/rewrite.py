"""Swap a network's modules for the native operations that compute the same, for the length of a pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import TypeGuard

import torch
from torch import Tensor, nn

from zcpipe.ops import avg_pool3x3, batch_norm_train, conv_batch_norm_train
from zcpipe.scoring.cells import Convolution, Identity, Layer, Pool, fast_cell
from zcpipe.spaces.layers import Dag, Op

_FLOATS = (torch.float32, torch.float64)

# A module's output added to a sum, or by itself for None.
_Onto = Callable[[Tensor, Tensor | None], Tensor]
# The fused operation of each module that has one.
_Chains = Mapping[nn.Module, Convolution]


@contextmanager
def fast_operations(modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Inside, modules that a native operation can stand in for call it; afterwards they are as before.

    Single pools and batch norms are swapped, and chains of [ReLU,] convolution, batch norm [, ReLU] that make a whole
    ``nn.Sequential``. Each also gets a method ``forward_onto(x, total)``, which adds its output to a sum in one go (see
    `zcpipe.spaces.layers.add_to`). Cells that are a `Dag` of such layers become one step of autograd each.

    Meant for a model already in the state of its pass: what counts is whether a module is in train mode inside.
    Modules with hooks of their own stay as they are.

    Args:
        modules: the model and all that is in it, as ``dict(model.named_modules())``.
    """
    swapped = []
    chains = {module: chain for module in modules.values() if (chain := _fused_chain(module)) is not None}
    frozen = not any(p.requires_grad for m in modules.values() for p in m._parameters.values() if p is not None)
    try:
        for module in modules.values():
            if "forward" in vars(module):
                continue
            # Not through nn.Module's own slow attributes: these are no parameters, buffers or modules.
            if (onto := _replacement(module, chains)) is not None:
                vars(module).update(forward=_alone(onto), forward_onto=onto)
                swapped.append(module)
            elif frozen and isinstance(module, Dag) and (cell := _replace_cell(module, chains)) is not None:
                vars(module)["forward"] = cell
                swapped.append(module)
        yield
    finally:
        for module in swapped:
            del vars(module)["forward"]
            vars(module).pop("forward_onto", None)


def _alone(onto: _Onto) -> Callable[[Tensor], Tensor]:
    return lambda x: onto(x, None)


def _replacement(module: nn.Module, chains: _Chains) -> _Onto | None:
    """Return what a native operation gives this module, None if none fits."""
    if module in chains:
        return _for_images(module, _run_chain(chains[module]))
    if _is_avg_pool3x3(module):
        return _for_images(module, lambda x, total: _added(total, avg_pool3x3(x)))
    if _is_batch_norm(module):
        norm = module
        return _for_images(norm, lambda x, total: batch_norm_train(x, norm.weight, norm.bias, norm.eps, total=total))
    return None


def _run_chain(chain: Convolution) -> _Onto:
    conv, norm = chain.conv, chain.norm

    def onto(x: Tensor, total: Tensor | None) -> Tensor:
        return conv_batch_norm_train(
            x,
            conv.weight,
            norm.weight,
            norm.bias,
            norm.eps,
            stride=chain.stride,
            padding=chain.padding,
            relu_input=chain.relu_input,
            relu_output=chain.relu_output,
            total=total,
        )

    return onto


def _fused_chain(chain: nn.Module) -> Convolution | None:
    """Return a whole chain of [ReLU,] convolution, batch norm [, ReLU], None for any other."""
    if type(chain) is not nn.Sequential:
        return None
    parts = list(chain)
    middle = [part for part in parts if type(part) is not nn.ReLU]
    if len(middle) != 2 or any(map(_has_hooks, parts)):
        return None
    conv, norm = middle
    at = parts.index(conv)
    relu_input, relu_output = at == 1, len(parts) - at == 3
    if parts[at : at + 2] != middle or len(parts) != 2 + relu_input + relu_output:
        return None
    if not (_is_plain_convolution(conv) and _is_batch_norm(norm)):
        return None
    return Convolution(conv, norm, conv.stride[0], int(conv.padding[0]), relu_input, relu_output)


def _replace_cell(cell: Dag, chains: _Chains) -> Callable[[Tensor], Tensor] | None:
    """Return the fast forward of a cell, None if one of its layers has none."""
    if type(cell).forward is not Dag.forward:
        return None
    layers = [_cell_layer(layer, chains) for layer in cell.layers.values()]
    known = [layer for layer in layers if layer is not None]
    return fast_cell(cell, known) if len(known) == len(layers) else None


def _cell_layer(layer: nn.Module, chains: _Chains) -> Layer | None:
    inner = layer.op if _is_op(layer) else layer
    if _has_hooks(layer) or _has_hooks(inner):
        return None
    if type(inner) is nn.Identity:
        return Identity()
    if _is_avg_pool3x3(inner):
        return Pool()
    chain = chains.get(inner)
    return chain if chain is not None and chain.stride in (1, 2) else None


def _for_images(module: nn.Module, onto: _Onto) -> _Onto:
    """Use an operation for float images and the module itself for whatever else comes."""
    original: Callable[[Tensor], Tensor] = module.forward

    def checked(x: Tensor, total: Tensor | None) -> Tensor:
        if x.ndim == 4 and x.dtype in _FLOATS:
            return onto(x, total)
        return _added(total, original(x))

    return checked


def _added(total: Tensor | None, y: Tensor) -> Tensor:
    return y if total is None else total + y


def _is_batch_norm(module: nn.Module) -> TypeGuard[nn.BatchNorm2d]:
    return type(module) is nn.BatchNorm2d and module.training and not module.track_running_stats


def _is_plain_convolution(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a module is a square, bias-free convolution without dilation and groups, padded with zeros."""
    return (
        isinstance(module, nn.Conv2d)
        and type(module).forward is nn.Conv2d.forward
        and module.bias is None
        and module.groups == 1
        and module.dilation == (1, 1)
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
        and all(a == b for pair in (module.kernel_size, module.stride, module.padding) for a, b in pairwise(pair))
    )


def _is_op(module: nn.Module) -> TypeGuard[Op]:
    kind = type(module)
    return issubclass(kind, Op) and kind.forward is Op.forward and kind.forward_onto is Op.forward_onto


def _is_avg_pool3x3(module: nn.Module) -> bool:
    """Whether a module is the pool of cell spaces: 3x3, stride 1, padding 1, padding not counted."""
    return (
        type(module) is nn.AvgPool2d
        and (module.kernel_size, module.stride, module.padding) == (3, 1, 1)
        and not module.count_include_pad
        and not module.ceil_mode
        and module.divisor_override is None
    )


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )
