"""Scoring leaves no trace: whatever a pass changes on a model is put back, also when it fails."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from zcpipe.errors import UsageError

# These write their buffers only while they track running statistics, which a pass switches off.
_STOCK_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_INHERITED = object()  # stands for a flag that the module's class has and the module has not
_Attribute = tuple[nn.Module, str, object]


@contextmanager
def untouched(modules: Mapping[str, nn.Module], training: bool = True) -> Iterator[None]:
    """Put a model in the state of a pass without parameter gradients, and back.

    Inside, every module is in train mode, in-place activations work out of place, batch norms do not update their
    running statistics, no parameter asks for gradients, and the CPU's global random state (which dropout draws from) is
    the same every time. Afterwards modes, flags, ``requires_grad``, buffers and the random state are what they were.

    Args:
        modules: the model and all that is in it, as ``dict(model.named_modules())``.
        training: False for eval mode, in which batch norms use the running statistics that they have.

    Raises:
        UsageError: the model has lazy parameters that no forward has made yet.
    """
    parts = modules.values()
    parameters = [p for module in parts for p in module._parameters.values() if p is not None]
    if any(nn.parameter.is_lazy(parameter) for parameter in parameters):
        raise UsageError("the model has lazy layers without parameters yet; run one forward before scoring it")
    modes = [(module, "training", module.training) for module in parts]
    flags = _flags(parts, ("inplace", "track_running_stats") if training else ("inplace",))
    wanted = [(parameter, parameter.requires_grad) for parameter in parameters]
    # Forwards write to buffers, and put others in their place.
    holders = [module for module in parts if module._buffers and type(module) not in _STOCK_NORMS]
    buffers = [(module, dict(module._buffers)) for module in holders]
    contents = [(b, b.clone()) for _, held in buffers for b in held.values() if b is not None]
    random_state = torch.get_rng_state()
    try:
        torch.default_generator.manual_seed(0)
        _set((module, name, training) for module, name, _ in modes)
        _set((module, name, False) for module, name, _ in flags)
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        _set(modes)
        _set(flags)
        for parameter, value in wanted:
            parameter.requires_grad_(value)
        for module, held in buffers:
            module._buffers.clear()
            module._buffers.update(held)
        with torch.no_grad():
            for buffer, saved in contents:
                if not torch.equal(buffer, saved):
                    buffer.copy_(saved)
        torch.set_rng_state(random_state)


def _flags(modules: Collection[nn.Module], names: Collection[str]) -> list[_Attribute]:
    """Return the flags that a pass switches off, wherever a module or its class has one; properties are left alone."""
    flags: list[_Attribute] = []
    for name in names:
        # Asking nn.Module for an attribute that it lacks is slow; few classes have one of these of their own.
        classes = {kind for kind in set(map(type, modules)) if isinstance(getattr(kind, name, None), bool)}
        for module in modules:
            value = vars(module).get(name, _INHERITED if type(module) in classes else None)
            if isinstance(value, bool) or value is _INHERITED:
                flags.append((module, name, value))
    return flags


def _set(attributes: Iterable[_Attribute]) -> None:
    for module, name, value in attributes:
        if value is _INHERITED:
            vars(module).pop(name, None)
        elif getattr(module, name) is not value:  # most are right already, and nn.Module is slow to set them
            setattr(module, name, value)
