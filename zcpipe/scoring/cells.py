"""Whole cells as one step of autograd: sums of nodes, and of their gradients, grow where they lie.

Autograd would write every layer's gradient into memory of its own and add them up afterwards. A cell whose layers are
all native operations needs neither: its nodes and their gradients are made in order, each layer adding to what is
there. First derivatives with respect to the cell's input only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from zcpipe.ops._check import use_native
from zcpipe.spaces.layers import Dag

_native = torch.ops.zcpipe


class Layer(Protocol):
    """A layer between two nodes. `own` says that `total` is the cell's to change; otherwise it is left alone."""

    def forward(self, x: Tensor, total: Tensor | None, own: bool) -> tuple[Tensor, Any]:
        """Return the node with this layer added, and what the backward needs."""
        ...

    def backward(self, saved: Any, grad: Tensor, total: Tensor | None, own: bool) -> Tensor:  # noqa: ANN401
        """Return the source's gradient with this layer's added."""
        ...

    #: whether what it returns is memory of its own, given no total to add to
    makes_new: bool


@dataclass(frozen=True)
class Identity:
    """A skip."""

    makes_new = False

    def forward(self, x: Tensor, total: Tensor | None, own: bool) -> tuple[Tensor, None]:
        """Add the node itself."""
        return _sum(total, x, own), None

    def backward(self, saved: None, grad: Tensor, total: Tensor | None, own: bool) -> Tensor:
        """Add the gradient itself."""
        return _sum(total, grad, own)


@dataclass(frozen=True)
class Pool:
    """An average pool 3x3."""

    makes_new = True

    def forward(self, x: Tensor, total: Tensor | None, own: bool) -> tuple[Tensor, None]:
        """Add the means."""
        if total is not None and own:
            _native.avg_pool3x3_onto(x, total)
            return total, None
        y: Tensor = _native.avg_pool3x3(x)
        return y if total is None else y.add_(total), None

    def backward(self, saved: None, grad: Tensor, total: Tensor | None, own: bool) -> Tensor:
        """Add the transposed means."""
        if total is not None and own:
            _native.avg_pool3x3_backward_onto(grad, total)
            return total
        g: Tensor = _native.avg_pool3x3_backward(grad)
        return g if total is None else g.add_(total)


@dataclass(frozen=True)
class Convolution:
    """[ReLU,] convolution, batch norm [, ReLU]."""

    conv: nn.Conv2d
    norm: nn.BatchNorm2d
    stride: int
    padding: int
    relu_input: bool
    relu_output: bool
    makes_new = True

    @property
    def _how(self) -> tuple[int, int, bool, bool]:
        return self.stride, self.padding, self.relu_input, self.relu_output

    def forward(self, x: Tensor, total: Tensor | None, own: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Add the normalised convolution."""
        parameters = (self.conv.weight, self.norm.weight, self.norm.bias)
        if total is not None and own:
            op = _native.conv_batch_norm_train_onto
            z, mean, invstd = op(x, *parameters, total, self.norm.eps, *self._how)
            return total, (x, z, mean, invstd)
        y, z, mean, invstd = _native.conv_batch_norm_train(x, *parameters, total, self.norm.eps, *self._how)
        return y, (x, z, mean, invstd)

    def backward(self, saved: tuple[Tensor, ...], grad: Tensor, total: Tensor | None, own: bool) -> Tensor:
        """Add the input's gradient."""
        x, z, mean, invstd = saved
        arguments = (grad, x, z, self.conv.weight, self.norm.weight, self.norm.bias, mean, invstd)
        if total is not None and own:
            _native.conv_batch_norm_train_backward_onto(*arguments, total, *self._how)
            return total
        g: Tensor = _native.conv_batch_norm_train_backward(*arguments, *self._how)
        return g if total is None else g.add_(total)


_Step = tuple[int, int, Layer]  # source, target, what leads from one to the other


def fast_cell(cell: Dag, layers: Sequence[Layer]) -> Callable[[Tensor], Tensor] | None:
    """Return a forward for a cell whose edges are `layers`; None if its output is not memory of its own.

    Dead edges do not run: nobody watches them where all layers may be replaced.
    It is for float32 images in channels_last on the CPU; others go to the cell itself, and so do derivatives that the
    native operations do not know.
    """
    steps = _useful(cell, layers)
    arriving = [layer for _, target, layer in steps if target == cell.output]
    if len(arriving) < 2 and not any(layer.makes_new for layer in arriving):
        return None
    original: Callable[[Tensor], Tensor] = cell.forward

    def forward(x: Tensor) -> Tensor:
        fits = x.ndim == 4 and x.dtype == torch.float32 and x.is_cpu and x.numel() > 0
        if fits and x.is_contiguous(memory_format=torch.channels_last) and use_native("avg_pool3x3", x):
            return _Cell.apply(x, steps, cell.output)  # type: ignore[no-any-return,no-untyped-call]
        return original(x)

    return forward


def _useful(cell: Dag, layers: Sequence[Layer]) -> list[_Step]:
    """Return the edges that lead to the output, in order."""
    useful, steps = {cell.output}, []
    for (source, target), name, layer in zip(
        reversed(cell.edges), reversed(list(cell.layers)), reversed(layers), strict=True
    ):
        if target in useful and name not in cell.dead:
            useful.add(source)
            steps.append((source, target, layer))
    return steps[::-1]


class _Nodes:
    """Sums under way, and which of them are memory of the cell's own."""

    def __init__(self, first: int, value: Tensor) -> None:
        self.values = {first: value}
        self._own: set[int] = set()

    def so_far(self, node: int) -> tuple[Tensor | None, bool]:
        """Return a node's total, and whether it may be changed."""
        return self.values.get(node), node in self._own

    def put(self, node: int, value: Tensor, own: bool) -> None:
        """Give a node a new total."""
        self.values[node] = value
        if own:
            self._own.add(node)


class _Cell(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, steps: Sequence[_Step], output: int) -> Tensor:  # noqa: ANN401
        nodes = _Nodes(0, x)
        ctx.steps, ctx.output, ctx.kept = steps, output, []
        with torch._C._AutoDispatchBelowAutograd():
            for source, target, layer in steps:
                total, own = nodes.so_far(target)
                value, kept = layer.forward(nodes.values[source], total, own)
                nodes.put(target, value, own or layer.makes_new or total is not None)
                ctx.kept.append(kept)
        return nodes.values[output]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:  # noqa: ANN401
        grads = _Nodes(ctx.output, grad.contiguous(memory_format=torch.channels_last))
        with torch._C._AutoDispatchBelowAutograd():
            for (source, target, layer), kept in zip(reversed(ctx.steps), reversed(ctx.kept), strict=True):
                total, own = grads.so_far(source)
                value = layer.backward(kept, grads.values[target], total, own)
                grads.put(source, value, own or layer.makes_new or total is not None)
        return grads.values.get(0), None, None


def _sum(total: Tensor | None, value: Tensor, own: bool) -> Tensor:
    if total is None:
        return value
    return total.add_(value) if own else total + value
