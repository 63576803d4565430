"""Scoring leaves no trace: whatever a pass changes on a model is put back, also when it fails."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import is_
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter

from zcpipe.errors import UsageError
from zcpipe.ops import generators

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_HOOKS = frozenset(name for name in vars(nn.Module()) if "_hooks" in name)
_ONE_PASS = RLock()  # random states and the arithmetic are the process's: threads that score take turns


def _begin_anew() -> None:
    """Give a forked process a lock of its own: the thread that had it is not there."""
    global _ONE_PASS
    _ONE_PASS = RLock()


os.register_at_fork(after_in_child=_begin_anew)


@contextmanager
def untouched(modules: Mapping[str, nn.Module], training: bool = True) -> Iterator[None]:
    """Put a model in the state of a pass without parameter gradients, and back.

    Inside, every module is in train mode, in-place activations work out of place, batch norms do not update their
    running statistics, no parameter asks for gradients, and torch's global random states (which dropout draws from) are
    the same every time. Afterwards modes, flags and other attributes, ``requires_grad``, buffers, weights that forwards
    renormalise, and random states are what they were. Another thread waits for that.

    Args:
        modules: the model and all that is in it, as ``dict(model.named_modules())``.
        training: False for eval mode, in which batch norms use the running statistics that they have.

    Raises:
        UsageError: the model has lazy parameters that no forward has made yet, or is TorchScript.
    """
    parts = modules.values()
    if any(issubclass(kind, torch.jit.ScriptModule) for kind in set(map(type, parts))):
        raise UsageError("the model is TorchScript, which cannot be looked into; score what it was made from")
    attributes = list(map(vars, parts))
    parameters = [p for own in attributes for p in own["_parameters"].values() if p is not None]
    if any(issubclass(kind, nn.parameter.UninitializedParameter) for kind in set(map(type, parameters))):
        raise UsageError("the model has lazy layers without parameters yet; run one forward before scoring it")
    with _ONE_PASS:
        properties = [(m, m.training) for m, own in zip(parts, attributes, strict=True) if "training" not in own]
        switched = _switched(parts, ("inplace", "track_running_stats") if training else ("inplace",))
        wanted = [(parameter, parameter.requires_grad) for parameter in parameters]
        written = [own["_buffers"] for own in attributes]
        written += [own["_parameters"] for own in attributes if own.get("max_norm") is not None]  # embeddings' forwards
        contents = _Contents([one for held in written for one in held.values() if one is not None])
        random_states = generators.states()
        try:
            with attributes_kept(parts):
                generators.restart()
                # nn.Module is slow to set what is no parameter, buffer or module.
                for own in attributes:
                    own["training"] = training
                for own, flag in switched:
                    own[flag] = False
                for module, _ in properties:
                    module.training = training
                for parameter in parameters:
                    parameter.requires_grad_(False)
                yield
        finally:
            generators.put_back(random_states)
            for module, mode in properties:
                module.training = mode
            for parameter, value in wanted:
                parameter.requires_grad_(value)
            contents.put_back()


@contextmanager
def attributes_kept(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Put back which attributes and buffers modules have.

    Forwards put others in their place, and keep tables that they make when they first run: masks, positions, weights
    that hooks compute. Those of a pass have its dtype and device, which another pass, or the user, cannot use.
    """
    attributes = list(map(vars, modules))
    had = [own.copy() for own in attributes]
    buffers = [own["_buffers"] for own in attributes]
    held = [own.copy() if own else None for own in buffers]
    try:
        yield
    finally:
        for own, before in zip(attributes, had, strict=True):
            own.update(before)
            if len(own) > len(before):  # not cleared before: Python would read its attributes more slowly for good
                for name in own.keys() - before.keys():
                    del own[name]
        for own, content in zip(buffers, held, strict=True):
            if own or content:
                own.clear()
                own.update(content or {})


@contextmanager
def left_as_it_was(modules: Mapping[str, nn.Module], who: str) -> Iterator[None]:
    """Hold whoever is given a model in the state of a pass to undo what is done to its weights, modules and hooks.

    Args:
        modules: the model and all that is in it.
        who: is given it, for the message.

    Raises:
        ValueError: weights, modules or hooks are not what they were. They are again then.
    """
    parameters = {id(p): p for module in modules.values() for p in module._parameters.values() if p is not None}
    weights = [(p, p.detach().clone()) for p in parameters.values() if not p.is_meta]
    # Not the buffers: forwards may put others in their place.
    places = [(module._parameters, module._parameters.copy()) for module in modules.values()]
    parts = [(module._modules, module._modules.copy()) for module in modules.values()]
    held = [own[name] for own in map(vars, modules.values()) for name in _HOOKS]
    hooks = {id(one): one.copy() for one in held if one}
    done = False
    try:
        yield
        done = True
    finally:
        replaced = _put_back(places)
        found = {
            "weights": _restored(weights) or replaced,
            "modules": _put_back(parts),
            "hooks": _unhooked(held, hooks),
        }
        changed = [part for part, restored in found.items() if restored]
        if changed and done:
            raise ValueError(f"{who} left {' and '.join(changed)} of the network changed; undo what is done to it")


def _put_back(containers: Iterable[tuple[dict[str, Any], dict[str, Any]]]) -> bool:
    """Put back what was in containers of modules, and say whether any held something else."""
    changed = [(own, held) for own, held in containers if not _hold_the_same(own, held)]
    for own, held in changed:
        own.clear()
        own.update(held)
    return bool(changed)


def _hold_the_same(own: Mapping[str, object], held: Mapping[str, object]) -> bool:
    return list(own) == list(held) and all(map(is_, own.values(), held.values()))


@torch.no_grad()
def _restored(weights: Sequence[tuple[Tensor, Tensor]]) -> bool:
    """Put weights back, and say whether any had to be."""
    swapped = [(weight, was) for weight, was in weights if not _are_alike(weight, was)]
    for weight, was in swapped:
        weight.data = was
    changed = [pair for pair, differs in zip(weights, _differences(weights), strict=True) if differs]
    for weight, was in changed:
        weight.copy_(was)
    return bool(swapped or changed)


def _are_alike(a: Tensor, b: Tensor) -> bool:
    return (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)


def _differences(pairs: Sequence[tuple[Tensor, Tensor]]) -> list[bool]:
    """Whether tensors differ in any bit, asked of each GPU once: it is waited for."""
    # Bits, because what is not a number equals nothing.
    bits = [(_bits(a), _bits(b)) for a, b in pairs]
    found = [not (a.is_cuda or torch.equal(a, b)) for a, b in bits]
    places: dict[torch.device, list[int]] = {}
    for i, (a, _) in enumerate(bits):
        if a.is_cuda:
            places.setdefault(a.device, []).append(i)
    for members in places.values():
        differ = torch.stack([(bits[i][0] != bits[i][1]).any() for i in members]).tolist()
        for i, differs in zip(members, differ, strict=True):
            found[i] = differs
    return found


def _bits(tensor: Tensor) -> Tensor:
    """Return a tensor as integers of its size; 16 bytes have none."""
    return tensor.view(_INTEGERS.get(tensor.element_size(), tensor.dtype))


def _unhooked(held: Iterable[dict[int, object]], hooks: Mapping[int, dict[int, object]]) -> bool:
    """Put hooks back, and say whether any had to be; `hooks` has what was in those that were not empty."""
    changed = [one for one in held if (one or id(one) in hooks) and one.keys() != hooks.get(id(one), {}).keys()]
    for one in changed:
        one.clear()
        one.update(hooks.get(id(one), {}))
    return bool(changed)


class _Contents:
    """What tensors hold, to be put back where it has changed.

    A network has a few small buffers for each batch norm; vectors, and scalars, are copied and compared as one. Their
    versions would not tell: batch norm writes to its running statistics without counting that. Those of sparse tensors
    do, which cannot be compared.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._sparse = [(one, one.clone(), _version(one)) for one in tensors if one.layout != torch.strided]
        kinds: dict[tuple[int, torch.dtype, torch.device, bool], list[Tensor]] = {}
        for tensor in tensors:
            if tensor.layout != torch.strided:
                continue
            kinds.setdefault((tensor.ndim, tensor.dtype, tensor.device, _rather_written(tensor)), []).append(tensor)
        self._saved = [
            (part, _joined(part), written)
            for (ndim, _, device, written), alike in kinds.items()
            if device.type != "meta"  # which holds nothing
            for part in ([alike] if ndim <= 1 else [[tensor] for tensor in alike])
        ]

    @torch.no_grad()
    def put_back(self) -> None:
        """Write what was there to the tensors that hold something else."""
        for tensor, held, version in self._sparse:
            if _version(tensor) != version:
                tensor.copy_(held)
        for tensors, saved, written in self._saved:
            if not written and torch.equal(_joined(tensors), saved):
                continue
            parts = torch.split(saved, [_rows(t) for t in tensors])
            contents = [part.view_as(tensor) for tensor, part in zip(tensors, parts, strict=True)]
            if written:
                with _unsafe_preserve_version_counter(tuple(tensors)):
                    torch._foreach_copy_(tensors, contents)
                continue
            for tensor, content in zip(tensors, contents, strict=True):
                if not torch.equal(tensor, content):
                    tensor.copy_(content)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version  # those of inference mode have none


def _rather_written(tensor: Tensor) -> bool:
    """Whether a tensor is written to without a look whether it has changed, for which the host waits for a GPU.

    What has not changed does not count as changed then. Not every tensor can be written to.
    """
    if not tensor.is_cuda or tensor.is_inference():
        return False
    return all(step or size == 1 for size, step in zip(tensor.shape, tensor.stride(), strict=True))


@torch.no_grad()
def _joined(tensors: list[Tensor]) -> Tensor:
    """Return a copy of some vectors or scalars in one, or of a single tensor."""
    return torch.cat(tensors) if tensors[0].ndim else torch.stack(tensors)


def _rows(tensor: Tensor) -> int:
    return len(tensor) if tensor.ndim else 1


def _switched(modules: Collection[nn.Module], flags: Collection[str]) -> list[tuple[dict[str, Any], str]]:
    """Return where a pass switches flags off: wherever a module or its class has one; properties are left alone."""
    found: list[tuple[dict[str, Any], str]] = []
    attributes, kinds = list(map(vars, modules)), set(map(type, modules))
    for flag in flags:
        found += [(own, flag) for own in attributes if own.get(flag) is True]
        # Asking nn.Module for an attribute that it lacks is slow; few classes have one of these of their own.
        classes = {kind for kind in kinds if isinstance(getattr(kind, flag, None), bool)}
        if classes:
            found += [(vars(module), flag) for module in modules if type(module) in classes]
    return found
