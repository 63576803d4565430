"""Scoring leaves no trace: whatever a pass changes on a model is put back, also when it fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def untouched(model: nn.Module, *, train: bool = True, gradients: bool = False) -> Iterator[None]:
    """Put a model in the state a pass needs, and back.

    Inside, every module is in train (or eval) mode, in-place activations work out of place, batch norms do not update
    their running statistics, and parameters ask for gradients only where ``gradients``. Afterwards modes, flags,
    ``requires_grad``, buffers and the global random state of the CPU are what they were.
    """
    modules = list(model.modules())
    modes = [module.training for module in modules]
    flags = [
        (module, name, getattr(module, name))
        for module in modules
        for name in ("inplace", "track_running_stats")
        if isinstance(getattr(module, name, None), bool)
    ]
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    quiet = {id(module) for module, name, _ in flags if name == "track_running_stats"}  # these will not write theirs
    buffers = [
        (buffer, buffer.clone())
        for module in modules
        if id(module) not in quiet
        for buffer in module.buffers(recurse=False)
    ]
    random_state = torch.get_rng_state()
    try:
        for module in modules:
            module.training = train
        for module, name, _ in flags:
            setattr(module, name, False)
        for parameter, _ in wanted:
            parameter.requires_grad_(gradients and parameter.is_floating_point())
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
