"""Parameters and multiply-accumulates of any module, counted without computing anything."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from zcpipe.spaces.base import Size


def count(model: nn.Module, inputs: Sequence[Tensor]) -> Size:
    """Count a model's parameters and the multiply-accumulates of one input.

    The forward runs on the meta device, so neither memory nor time grows with the network. Parameters that are used
    more than once count once.

    Args:
        model: any module; left as it is.
        inputs: positional arguments of its forward, first dimension N.
    """
    state = {name: tensor.to("meta") for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        torch.func.functional_call(model, state, tuple(tensor.to("meta") for tensor in inputs))
    params = sum(parameter.numel() for parameter in model.parameters())
    return Size(params, counter.get_total_flops() // 2 // inputs[0].shape[0])
