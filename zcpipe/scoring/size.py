"""Parameters and multiply-accumulates of any module, counted without computing anything."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from zcpipe.scoring.guard import untouched
from zcpipe.spaces.base import Size


def count(model: nn.Module, inputs: Sequence[Tensor]) -> Size:
    """Count a model's parameters and the multiply-accumulates of one input; see `count_params` and `count_macs`."""
    return Size(count_params(model), count_macs(model, inputs))


def count_params(model: nn.Module) -> int:
    """Count a model's parameters; those that are used more than once count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, inputs: Sequence[Tensor]) -> int:
    """Count the multiply-accumulates of one input in eval mode.

    The forward runs on the meta device, so neither memory nor time grows with the network.

    Args:
        model: any module; left as it is, and so is the global random state.
        inputs: positional arguments of its forward, first dimension N.

    What the forward raises on the meta device is raised as it is.
    """
    state = {name: tensor.to("meta") for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    modules = dict(model.named_modules())
    counter = FlopCounterMode(display=False)
    with untouched(modules, training=False), counter, torch.no_grad():
        torch.func.functional_call(model, state, tuple(tensor.to("meta") for tensor in inputs))
    return counter.get_total_flops() // 2 // inputs[0].shape[0]
