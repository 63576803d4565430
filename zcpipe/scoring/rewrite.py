"""Swap a network's modules for the native operations that compute the same, for the length of a pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TypeGuard

import torch
from torch import Tensor, nn

from zcpipe.ops import avg_pool3x3, batch_norm_train, conv_batch_norm_train

_FLOATS = (torch.float32, torch.float64)

# A module's output added to a sum, or by itself for None.
_Onto = Callable[[Tensor, Tensor | None], Tensor]


@contextmanager
def fast_operations(model: nn.Module) -> Iterator[None]:
    """Inside, modules that a native operation can stand in for call it; afterwards they are as before.

    Single pools and batch norms are swapped, and chains of [ReLU,] convolution, batch norm [, ReLU] that make a whole
    ``nn.Sequential``. Each also gets a method ``forward_onto(x, total)``, which adds its output to a sum in one go (see
    `zcpipe.spaces.layers.add_to`). Meant for a model already in the state of its pass: what counts is whether a module
    is in train mode inside. Modules with hooks of their own stay as they are.
    """
    swapped = []
    try:
        for module in model.modules():
            onto = None if "forward" in vars(module) else _replacement(module)
            if onto is not None:
                # Not through nn.Module's own slow attributes: these are no parameters, buffers or modules.
                vars(module).update(forward=_alone(onto), forward_onto=onto)
                swapped.append(module)
        yield
    finally:
        for module in swapped:
            del vars(module)["forward"], vars(module)["forward_onto"]


def _alone(onto: _Onto) -> Callable[[Tensor], Tensor]:
    return lambda x: onto(x, None)


def _replacement(module: nn.Module) -> _Onto | None:
    """Return what a native operation gives this module, None if none fits."""
    if type(module) is nn.Sequential:
        return _replace_chain(module, list(module))
    if _is_avg_pool3x3(module):
        return _for_images(module, lambda x, total: _added(total, avg_pool3x3(x)))
    if _is_batch_norm(module):
        norm = module
        return _for_images(norm, lambda x, total: batch_norm_train(x, norm.weight, norm.bias, norm.eps, total=total))
    return None


def _replace_chain(chain: nn.Module, parts: Sequence[nn.Module]) -> _Onto | None:
    """Fuse a whole chain of [ReLU,] convolution, batch norm [, ReLU]."""
    middle = [part for part in parts if type(part) is not nn.ReLU]
    if len(middle) != 2 or any(map(_has_hooks, parts)):
        return None
    conv, norm = middle
    at = list(parts).index(conv)
    relu_input, relu_output = at == 1, len(parts) - at == 3
    if list(parts[at : at + 2]) != middle or len(parts) != 2 + relu_input + relu_output:
        return None
    if not (_is_plain_convolution(conv) and _is_batch_norm(norm)):
        return None
    stride, padding = int(conv.stride[0]), int(conv.padding[0])

    def onto(x: Tensor, total: Tensor | None) -> Tensor:
        return conv_batch_norm_train(
            x,
            conv.weight,
            norm.weight,
            norm.bias,
            norm.eps,
            stride=stride,
            padding=padding,
            relu_input=relu_input,
            relu_output=relu_output,
            total=total,
        )

    return _for_images(chain, onto)


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
