"""Scoring leaves no trace: whatever a pass changes on a model is put back, also when it fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from zcpipe.errors import UsageError

# These write their buffers only while they track running statistics, which a pass switches off.
_STOCK_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put a model in the state of a train-mode pass without parameter gradients, and back.

    Inside, every module is in train mode, in-place activations work out of place, batch norms do not update their
    running statistics, no parameter asks for gradients, and the CPU's global random state (which dropout draws from) is
    the same every time. Afterwards modes, flags, ``requires_grad``, buffers and the random state are what they were.

    Raises:
        UsageError: the model has lazy parameters that no forward has made yet.
    """
    modules = list(model.modules())
    if any(nn.parameter.is_lazy(parameter) for parameter in model.parameters()):
        raise UsageError("the model has lazy layers without parameters yet; run one forward before scoring it")
    modes = [module.training for module in modules]
    flags = [
        (module, name, getattr(module, name))
        for module in modules
        for name in ("inplace", "track_running_stats")
        if isinstance(getattr(module, name, None), bool)
    ]
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    buffers = [
        (buffer, buffer.clone())
        for module in modules
        if type(module) not in _STOCK_NORMS
        for buffer in module.buffers(recurse=False)
    ]
    random_state = torch.get_rng_state()
    try:
        torch.default_generator.manual_seed(0)
        for module in modules:
            module.training = True
        for module, name, _ in flags:
            setattr(module, name, False)
        for parameter, _ in wanted:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        for module, name, value in flags:
            setattr(module, name, value)
        for parameter, value in wanted:
            parameter.requires_grad_(value)
        with torch.no_grad():
            for buffer, saved in buffers:
                if not torch.equal(buffer, saved):
                    buffer.copy_(saved)
        torch.set_rng_state(random_state)
