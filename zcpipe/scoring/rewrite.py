"""Swap a network's modules for the native operations that compute the same, for the length of a pass."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from types import NoneType
from typing import TypeGuard, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from zcpipe.errors import UsageError
from zcpipe.ops import avg_pool3x3, batch_norm_train, conv_batch_norm_train
from zcpipe.ops.layout import in_contiguous_images
from zcpipe.scoring.cells import (
    Convolution,
    Identity,
    Layer,
    Pool,
    Step,
    Taps,
    fast_cell,
    fast_chain,
    makes_output,
    useful_steps,
)
from zcpipe.scoring.inplace import is_of_saved
from zcpipe.spaces.layers import Dag, Op, computes_as, has_hooks, is_avg_pool3x3, is_batch_norm

_FLOATS = (torch.float32, torch.float64)
_MAY_BE_SWAPPED = (nn.Sequential, Op, Dag, nn.AvgPool2d, nn.BatchNorm2d)  # about half of all modules are

R = TypeVar("R")

# A module's output added to a sum, or by itself for None.
_Onto = Callable[[Tensor, Tensor | None], Tensor]


@contextmanager
def fast_operations(
    modules: Mapping[str, nn.Module], called: Collection[str] = (), taps: Taps | None = None
) -> Iterator[None]:
    """Inside, modules that a native operation can stand in for call it; afterwards they are as before.

    Single pools and batch norms are swapped, and chains of [ReLU,] convolution, batch norm [, ReLU] that make a whole
    ``nn.Sequential`` or `Op`. Each also gets an attribute ``forward_onto(x, total)``, which adds its output to a sum in
    one go (see `zcpipe.spaces.layers.add_to`). Cells that are a `Dag` of such layers become one step of autograd each.

    Meant for a model already in the state of its pass: what counts is whether a module is in train mode inside. Modules
    with hooks or a ``forward`` of their own stay as they are, and under hooks on all modules nothing is swapped; nor is
    it in `zcpipe.ops.layout.contiguous_images`, since native convolutions return other ones. Do not copy modules
    inside: a copy would keep what the original got.

    Args:
        modules: the model and all that is in it, as ``dict(model.named_modules())``.
        called: names of modules that must be called as modules, because somebody will hook them.
        taps: what a pass wants to see of chains and cells, which are steps of autograd then also where parameters ask
            for gradients, first derivatives alone. Chains in which it could not be seen stay as they are; hooks that
            are put on modules inside are called there, and nowhere else.
    """
    swapped = []
    try:
        if _may_swap():
            rewriter = _Rewriter(modules, called, taps)
            for module in modules.values():
                if not isinstance(module, _MAY_BE_SWAPPED) or "forward" in vars(module):
                    continue
                if attributes := rewriter.attributes(module):
                    # Not through nn.Module's own slow attributes: these are no parameters, buffers or modules.
                    vars(module).update(attributes)
                    swapped.append(module)
        yield
    finally:
        for module in swapped:
            del vars(module)["forward"]
            vars(module).pop("forward_onto", None)


def run_fast(
    run: Callable[[], R], modules: Mapping[str, nn.Module], called: Collection[str] = (), taps: Taps | None = None
) -> R:
    """Return what ``run`` returns inside `fast_operations`; outside, from the start, where that cannot go back.

    That is where the network computes in place on what entered a chain. Its layers by themselves may not need it: a
    ReLU keeps what it returned.
    """
    try:
        with fast_operations(modules, called, taps):
            return run()
    except RuntimeError as error:
        if not is_of_saved(error):
            raise
    return run()


def fused_layers(modules: Mapping[str, nn.Module]) -> dict[nn.Module, tuple[list[Step], int]]:
    """Return the chains and cells that `fast_operations` would fuse: their layers, and the node that they return.

    Node 0 is the input. Dead edges of cells are left out, and so are cells whose output is not memory of their own.
    """
    if not _may_swap():
        return {}
    rewriter = _Rewriter(modules, (), None)
    found = {module: rewriter.steps(module) for module in modules.values() if "forward" not in vars(module)}
    return {module: steps for module, steps in found.items() if steps is not None}


def _may_swap() -> bool:
    hooked: bool = torch_module._has_any_global_hook()  # type: ignore[no-untyped-call]
    return not (hooked or in_contiguous_images())


class _Rewriter:
    """What the modules of one network are swapped for."""

    def __init__(self, modules: Mapping[str, nn.Module], called: Collection[str], taps: Taps | None) -> None:
        self._called = {modules[name] for name in called if name in modules}
        self._taps = taps
        self._one_step = taps is not None or not any(
            p.requires_grad for m in modules.values() for p in m._parameters.values() if p is not None
        )
        self._chains: dict[nn.Module, Convolution] = {}
        for module in modules.values():
            if type(module) is nn.Sequential and (chain := self._fused_chain(module)) is not None:
                self._chains[module] = chain

    def attributes(self, module: nn.Module) -> dict[str, Callable[..., Tensor]]:
        """Return the attributes that a module gets, ``forward`` among them; none where nothing fits."""
        onto = self._onto(module)
        if onto is not None:
            return {"forward": _alone(onto), "forward_onto": onto}
        cell = self._cell(module) if self._one_step and isinstance(module, Dag) else None
        return {} if cell is None else {"forward": cell}

    def steps(self, module: nn.Module) -> tuple[list[Step], int] | None:
        """Return the layers of a chain or cell and the node that it returns; None for any other module."""
        inner = module.op if self._is_bare_op(module) else module
        if inner in self._chains:
            return [(0, 1, self._chains[inner])], 1
        if not isinstance(module, Dag) or (layers := self._cell_layers(module)) is None:
            return None
        steps, _ = useful_steps(module, layers)
        return (steps, module.output) if makes_output(steps, module.output) else None

    def _onto(self, module: nn.Module) -> _Onto | None:
        inner = module.op if self._is_bare_op(module) else module
        if inner in self._chains:
            chain = self._chains[inner]
            if chain.taps is not None:
                run = fast_chain(chain, module.forward)
                return lambda x, total: _added(total, run(x))
            return _for_images(module, _run_chain(chain), _fits_chain)
        if is_avg_pool3x3(module):
            return _for_images(module, lambda x, total: _added(total, avg_pool3x3(x)))
        if is_batch_norm(module) and not (self._taps is not None and self._taps.norms):
            norm = module
            return _for_images(
                norm, lambda x, total: batch_norm_train(x, norm.weight, norm.bias, norm.eps, total=total)
            )
        return None

    def _fused_chain(self, chain: nn.Sequential) -> Convolution | None:
        """Return a whole chain of [ReLU,] convolution, batch norm [, ReLU], None for any other."""
        parts = list(chain._modules.values())
        if not 2 <= len(parts) <= 4:
            return None
        relu_input, relu_output = type(parts[0]) is nn.ReLU, type(parts[-1]) is nn.ReLU
        middle = parts[relu_input : len(parts) - relu_output]
        if len(middle) != 2 or not all(map(self._is_plain, parts)):
            return None
        conv, norm = middle
        if relu_output and self._taps is not None and self._taps.relus:
            return None  # what enters that ReLU is never written
        if not (_is_plain_convolution(conv) and is_batch_norm(norm) and _holds(norm, "weight", "bias")):
            return None
        relu = parts[0] if isinstance(parts[0], nn.ReLU) else None
        return Convolution(conv, norm, conv.stride[0], int(conv.padding[0]), relu, relu_output, self._taps)

    def _cell(self, cell: Dag) -> Callable[[Tensor], Tensor] | None:
        """Return the fast forward of a cell, None if one of its layers has none."""
        layers = self._cell_layers(cell)
        return None if layers is None else fast_cell(cell, layers, self._taps)

    def _cell_layers(self, cell: Dag) -> list[Layer] | None:
        if type(cell).forward is not Dag.forward:
            return None
        layers = [self._cell_layer(layer) for layer in cell.layers.values()]
        known = [layer for layer in layers if layer is not None]
        return known if len(known) == len(layers) else None

    def _cell_layer(self, layer: nn.Module) -> Layer | None:
        inner = layer.op if self._is_bare_op(layer) else layer
        if not (self._is_plain(layer) and self._is_plain(inner)):
            return None
        if type(inner) is nn.Identity:
            return Identity()
        if is_avg_pool3x3(inner):
            return Pool()
        chain = self._chains.get(inner)
        return chain if chain is not None and chain.stride in (1, 2) else None

    def _is_plain(self, module: nn.Module) -> bool:
        """Whether calling a module runs the forward of its class and nothing else."""
        return not (has_hooks(module) or "forward" in vars(module) or module in self._called)

    def _is_bare_op(self, module: nn.Module) -> TypeGuard[Op]:
        return isinstance(module, Op) and type(module).forward is Op.forward and self._is_plain(module.op)


def _alone(onto: _Onto) -> Callable[..., Tensor]:
    def forward(*given: Tensor, **named: Tensor) -> Tensor:
        (x,) = given or named.values()  # for callers by keyword: ``input`` to torch, ``x`` to an `Op`
        return onto(x, None)

    return forward


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
            relu_input=chain.relu_input is not None,
            relu_output=chain.relu_output,
            total=total,
        )

    return onto


def _for_images(module: nn.Module, onto: _Onto, fits: Callable[[Tensor], bool] = lambda x: True) -> _Onto:
    """Use an operation for float images that fit, and the module itself for whatever else comes."""
    original: Callable[[Tensor], Tensor] = module.forward

    def checked(x: Tensor, total: Tensor | None) -> Tensor:
        if x.ndim == 4 and x.dtype in _FLOATS and fits(x):
            try:
                return onto(x, total)
            except UsageError:  # an image that does not fit the layer: it says so in its own words
                pass
        return _added(total, original(x))

    return checked


def _fits_chain(x: Tensor) -> bool:
    """Whether the fused operation's output lies as the convolution's would: the CPU's is always channels_last."""
    return x.is_cuda or x.is_contiguous(memory_format=torch.channels_last)


def _added(total: Tensor | None, y: Tensor) -> Tensor:
    return y if total is None else total + y


def _is_plain_convolution(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a module is a square, bias-free convolution without dilation and groups, padded with zeros."""
    return (
        isinstance(module, nn.Conv2d)
        and computes_as(module, nn.Conv2d)
        and _holds(module, "weight", "bias")
        and module.bias is None
        and module.groups == 1
        and module.dilation == (1, 1)
        and module.padding_mode == "zeros"
        and all(
            isinstance(pair, tuple) and len(pair) == 2 and pair[0] == pair[1]
            for pair in (module.kernel_size, module.stride, module.padding)
        )
    )


def _holds(module: nn.Module, *names: str) -> bool:
    """Whether parameters (or None) are what a module reads under these names: others may be made at each reading."""
    held = module._parameters
    return all(name in held and isinstance(held[name], (nn.Parameter, NoneType)) for name in names)
