"""Swap a network's modules for the native operations that compute the same, for the length of a pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from zcpipe.ops.batchnorm import batch_norm_train
from zcpipe.ops.pool import avg_pool3x3

_Forward = Callable[[Tensor], Tensor]


@contextmanager
def fast_operations(model: nn.Module) -> Iterator[None]:
    """Inside, modules that a native operation can stand in for call it; afterwards they are as before.

    Meant for a model already in the state of its pass: what counts is whether a module is in train mode inside.
    """
    swaps = [(module, _replacement(module)) for module in model.modules() if "forward" not in vars(module)]
    try:
        for module, forward in swaps:
            if forward is not None:
                module.forward = forward
        yield
    finally:
        for module, forward in swaps:
            if forward is not None:
                del module.forward


def _replacement(module: nn.Module) -> _Forward | None:
    """Return the forward that a native operation gives this module, None if none fits."""
    if type(module) is nn.AvgPool2d and _is_avg_pool3x3(module):
        return _for_images(module, avg_pool3x3)
    if type(module) is nn.BatchNorm2d and module.training and not module.track_running_stats:
        return _for_images(module, lambda x: batch_norm_train(x, module.weight, module.bias, module.eps))
    return None


def _for_images(module: nn.Module, operation: _Forward) -> _Forward:
    """Use an operation for float images and the module itself for whatever else comes."""
    original: _Forward = module.forward

    def forward(x: Tensor) -> Tensor:
        fits = x.ndim == 4 and x.dtype in (torch.float32, torch.float64)
        return operation(x) if fits else original(x)

    return forward


def _is_avg_pool3x3(module: nn.AvgPool2d) -> bool:
    """Whether a pool is the 3x3 one of cell spaces: stride 1, padding 1, padding not counted."""
    return (
        (module.kernel_size, module.stride, module.padding) == (3, 1, 1)
        and not module.count_include_pad
        and not module.ceil_mode
        and module.divisor_override is None
    )
