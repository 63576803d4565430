"""Layers for builders: ordinary torch layers that neither draw weights nor touch the global random state.

Their weights are zero until a recipe fills them (`zcpipe.initialise`). torch's own constructors would spend more time
on default weights that nobody uses than the network's passes take at small batches; for the same reason a layer that
occurs many times is constructed once and copied (`replica`, `made`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeGuard, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

M = TypeVar("M", bound=nn.Module)

# The attributes in which every module keeps its tensors, children and hooks.
_CONTAINERS = tuple(name for name, part in vars(nn.Module()).items() if isinstance(part, (dict, set)))


@dataclass(frozen=True)
class Shared:
    """A random tensor that all networks of a run share, each as far as its parameter reaches.

    A parameter is the first part of it in every dimension. A module whose parameters are such parts says so by an
    attribute ``shared``: name of the parameter -> this, or the number that fills it. `zcpipe.initialise` heeds it
    wherever a recipe leaves the weights to the network.

    Attributes:
        shape: the whole tensor's.
        distribution: "normal", or "uniform" from -1 to 1; both times ``scale``.
        scale: the standard deviation, or the bound.
    """

    shape: tuple[int, ...]
    distribution: Literal["normal", "uniform"]
    scale: float


class Conv2d(nn.Conv2d):
    """A convolution whose weights are zero until they are initialised."""

    shared: Mapping[str, Shared | float]

    def reset_parameters(self) -> None:
        """Fill with zeros."""
        self.weight.data.zero_()
        if self.bias is not None:
            self.bias.data.zero_()


class Linear(nn.Linear):
    """A linear layer whose weights are zero until they are initialised."""

    shared: Mapping[str, Shared | float]

    def reset_parameters(self) -> None:
        """Fill with zeros."""
        self.weight.data.zero_()
        if self.bias is not None:
            self.bias.data.zero_()


class Embedding(nn.Embedding):
    """A table of vectors that are zero until they are initialised."""

    shared: Mapping[str, Shared | float]

    def reset_parameters(self) -> None:
        """Fill with zeros."""
        self.weight.data.zero_()


def replica(module: M) -> M:
    """Return a copy of a module with parameters, buffers and children of its own.

    What `copy.deepcopy` does in ten times the time, for modules as a builder has just made them: every module and
    tensor appears in them once. What a class adds to nn.Module's own attributes is shared.
    """
    twin = type(module).__new__(type(module))
    own = vars(twin)
    own.update(vars(module))
    for name in _CONTAINERS:
        own[name] = own[name].copy()
    for name, parameter in module._parameters.items():
        if parameter is not None:
            own["_parameters"][name] = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
    for name, buffer in module._buffers.items():
        own["_buffers"][name] = None if buffer is None else buffer.clone()
    for name, child in module._modules.items():
        own["_modules"][name] = None if child is None else replica(child)
    return twin


def made(kind: Callable[..., M], *arguments: Hashable) -> M:
    """Return the layer that ``kind(*arguments)`` makes: a replica of the first that was made so.

    The process keeps the originals of the last 64 kinds, so this is for small layers of few kinds.
    """
    if torch._C._len_torch_dispatch_stack():  # what such a mode makes is its own, such as tensors without memory
        return kind(*arguments)
    device = torch.get_default_device()
    circumstances = (device, torch.get_default_dtype(), torch.is_inference_mode_enabled())
    original: M = _original(kind, arguments, circumstances)
    if any(parameter.device.type != device.type for parameter in original.parameters()):
        return kind(*arguments)  # somebody has patched torch, as libraries do that put off giving a model memory
    return replica(original)


@lru_cache(maxsize=64, typed=True)
def _original(kind: Callable[..., M], arguments: tuple[Hashable, ...], circumstances: tuple[Hashable, ...]) -> M:
    return kind(*arguments)


def has_hooks(module: nn.Module) -> bool:
    """Whether calling a module does more than running its ``forward``."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def add_to(total: Tensor | None, layer: nn.Module, x: Tensor) -> Tensor:
    """Return ``total + layer(x)``, or ``layer(x)`` for None.

    A layer may know how to do both in one go: the scoring's fast passes give layers an attribute
    ``forward_onto(x, total)`` for a while. Layers with hooks are called as always.
    """
    onto = vars(layer).get("forward_onto")
    if onto is not None and not has_hooks(layer):
        result: Tensor = onto(x, total)
        return result
    y: Tensor = layer(x)
    return y if total is None else total + y


class Op(nn.Module):
    """A chain of layers under the name ``op``, as published search spaces name it."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.op = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:  # [N, C, H, W]
        """Run the chain."""
        result: Tensor = self.op(x)
        return result


class Dag(nn.Module):
    """A cell whose nodes are sums of layers of earlier nodes; node 0 is its input.

    Dead layers are those on no path from input to output. They run after the others, outside autograd, for whoever
    watches their modules; the output does not depend on them, nor on whether they are there.

    Attributes:
        edges: (source, target) of each layer, ordered by target, so that a node is whole before anything reads it.
        layers: the layers of the edges, in their order.
        output: the node that the cell returns; `zeros` if no edge leads to it.
        dead: names of the dead layers.
    """

    def __init__(
        self,
        edges: Sequence[tuple[int, int]],
        layers: Mapping[str, nn.Module],
        output: int,
        dead: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.edges = tuple(edges)
        self.layers = nn.ModuleDict(layers)
        self.output = output
        self.dead = frozenset(dead)

    def forward(self, x: Tensor) -> Tensor:  # [N, C, H, W]
        """Return the output node."""
        nodes = {0: x}
        for (source, target), (name, layer) in zip(self.edges, self.layers.items(), strict=True):
            if name not in self.dead:
                nodes[target] = add_to(nodes.get(target), layer, nodes[source])
        if self.dead:
            self._run_dead({node: value.detach() for node, value in nodes.items()})
        return nodes[self.output] if self.output in nodes else self.zeros(x)

    def zeros(self, x: Tensor) -> Tensor:  # [N, C, H, W]
        """Return a node to which no edge leads: zeros of the input's shape, unless a cell's nodes have another."""
        return torch.zeros_like(x)

    @torch.no_grad()
    def _run_dead(self, live: Mapping[int, Tensor]) -> None:
        """Run the dead layers. A node that has no live layer is the sum of its dead ones, zeros where it has none."""
        nodes = dict(live)
        for (source, target), (name, layer) in zip(self.edges, self.layers.items(), strict=True):
            if name in self.dead:
                if source not in nodes:
                    nodes[source] = self.zeros(nodes[0])
                total = add_to(None if target in live else nodes.get(target), layer, nodes[source])
                if target not in live:
                    nodes[target] = total


def computes_as(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether a module computes what one of torch's classes does: neither its own class nor itself overrides that.

    A convolution's forward calls another method, which overrides what it computes as well.
    """
    own, kind = vars(module), type(module)
    if "forward" in own or "_conv_forward" in own:
        return False
    inner = getattr(kind, "_conv_forward", None)
    for stock in kinds:
        if isinstance(module, stock) and kind.forward is stock.forward:
            return inner is getattr(stock, "_conv_forward", None)
    return False


def is_made_anew(module: nn.Module, name: str) -> bool:
    """Whether a parametrisation makes a module's tensor whenever it is read; spectral norm's next one is another."""
    return "parametrizations" in module._modules and parametrize.is_parametrized(module, name)


def is_batch_norm(module: nn.Module) -> TypeGuard[nn.BatchNorm2d]:
    """Whether a module normalises images by the statistics of the batch and keeps none."""
    return type(module) is nn.BatchNorm2d and module.training and not module.track_running_stats


@contextmanager
def recurrent_weights_kept(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, recurrent modules may run with others in the place of their weights; afterwards they hold their own.

    Such a forward lists what it finds, for itself and for forwards to come.
    """
    held = [(one, one._flat_weights, one._flat_weight_refs) for one in modules if isinstance(one, nn.RNNBase)]
    try:
        yield
    finally:
        for one, weights, references in held:
            one._flat_weights, one._flat_weight_refs = weights, references


@contextmanager
def recurrent_gradients(modules: Iterable[nn.Module], device: torch.device) -> Iterator[None]:
    """Inside, recurrent modules on a GPU have the gradients that cuDNN's have not: in eval mode, and of second order.

    torch's own kernels run then, in all modules of a network that has recurrent ones; nothing changes for others. Not
    for two threads at a time: this is a setting of the process.
    """
    if device.type != "cuda" or not any(isinstance(module, nn.RNNBase) for module in modules):
        yield
        return
    # Not through ``torch.backends``, which would set all else of cuDNN, too.
    enabled = torch._C._get_cudnn_enabled()
    try:
        torch._C._set_cudnn_enabled(False)
        yield
    finally:
        torch._C._set_cudnn_enabled(enabled)


def is_avg_pool3x3(module: nn.Module) -> bool:
    """Whether a module is the pool of cell spaces: 3x3, stride 1, padding 1, padding not counted."""
    return (
        type(module) is nn.AvgPool2d
        and (module.kernel_size, module.stride, module.padding) == (3, 1, 1)
        and not module.count_include_pad
        and not module.ceil_mode
        and module.divisor_override is None
    )
