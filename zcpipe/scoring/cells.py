"""Whole cells as one step of autograd: sums of nodes, and of their gradients, grow where they lie.

Autograd would write every layer's gradient into memory of its own and add them up afterwards. A cell whose layers are
all native operations needs neither: its nodes and their gradients are made in order, each layer adding to what is
there. First derivatives only: with respect to the cell's input and, where a pass wants them (`Taps`), to parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from zcpipe.ops._check import use_native
from zcpipe.ops.layout import image_format
from zcpipe.scoring.inplace import FusedOverwrittenError, version_of
from zcpipe.spaces.layers import Dag

_native = torch.ops.zcpipe
_LAST_KERNEL = "conv_batch_norm_train_onto"  # a library that has it on a device has all that cells need there

T = TypeVar("T")


class Taps(Protocol):
    """What a pass wants to see of layers that are fused, where hooks on their modules would see nothing.

    Parameters that ask for gradients get them through autograd, as they would from the modules. Modules that could not
    be fused are called as always: whatever hangs on them is called, and no tap for them.
    """

    #: whether a backward sweep is one to parameters; the input's gradients alone are cheaper
    active: bool
    #: whether `output` is called in such sweeps
    outputs: bool
    #: whether `relu` is called; set before the forward
    relus: bool
    #: whether `norm` is called; set before the forward
    norms: bool

    def output(self, conv: nn.Conv2d, products: Tensor) -> None:  # [N, D] float64
        """Take the sums over pixels of a convolution's output times its gradient, once the sweep is there."""
        ...

    def relu(self, relu: nn.ReLU, x: Tensor) -> None:  # [N, C, H, W]
        """Take what enters a ReLU, at its place in the forward; it is the pass's own, to be read and left alone."""
        ...

    def norm(self, norm: nn.BatchNorm2d, variance: Tensor, count: int) -> None:  # [D] float64
        """Take the variances of a batch norm's channels over the batch, and over how many values they were taken."""
        ...


class NoTaps:
    """Taps that ask for nothing; a pass overrides what it wants."""

    active = outputs = relus = norms = False

    def output(self, conv: nn.Conv2d, products: Tensor) -> None:
        """Not asked for."""

    def relu(self, relu: nn.Module, x: Tensor) -> None:
        """Not asked for."""

    def norm(self, norm: nn.BatchNorm2d, variance: Tensor, count: int) -> None:
        """Not asked for."""


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

    @property
    def keeps_zero(self) -> bool:
        """Whether zeros become zeros."""
        ...

    def show_zeros(self, like: Tensor) -> None:
        """Show taps what a forward of zeros of the shape of `like` would show them."""
        ...


class _WeightFree:
    """What skips and pools have in common: zeros stay zeros, and nobody watches."""

    keeps_zero = True

    def show_zeros(self, like: Tensor) -> None:
        """Show nothing."""


@dataclass(frozen=True)
class Identity(_WeightFree):
    """A skip."""

    makes_new = False

    def forward(self, x: Tensor, total: Tensor | None, own: bool) -> tuple[Tensor, None]:
        """Add the node itself."""
        return _sum(total, x, own), None

    def backward(self, saved: None, grad: Tensor, total: Tensor | None, own: bool) -> Tensor:
        """Add the gradient itself."""
        return _sum(total, grad, own)


@dataclass(frozen=True)
class Pool(_WeightFree):
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
    relu_input: nn.ReLU | None
    relu_output: bool
    taps: Taps | None = None
    makes_new = True

    @property
    def parameters(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The kernels, and the norm's scales and shifts."""
        return self.conv.weight, self.norm.weight, self.norm.bias

    @property
    def _how(self) -> tuple[int, int, bool, bool]:
        return self.stride, self.padding, self.relu_input is not None, self.relu_output

    def forward(self, x: Tensor, total: Tensor | None, own: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Add the normalised convolution."""
        if self.taps is not None and self.taps.relus and self.relu_input is not None:
            self.taps.relu(self.relu_input, x)
        if total is not None and own:
            op = _native.conv_batch_norm_train_onto
            z, mean, invstd = op(x, *self.parameters, total, self.norm.eps, *self._how)
            y = total
        else:
            y, z, mean, invstd = _native.conv_batch_norm_train(x, *self.parameters, total, self.norm.eps, *self._how)
        if self.taps is not None and self.taps.norms:
            self.taps.norm(self.norm, invstd.pow(-2) - self.norm.eps, z.numel() // z.shape[1])
        return y, (x, z, mean, invstd)

    def backward(self, saved: tuple[Tensor, ...], grad: Tensor, total: Tensor | None, own: bool) -> Tensor:
        """Add the input's gradient."""
        arguments = self._arguments(saved, grad)
        if total is not None and own:
            _native.conv_batch_norm_train_backward_onto(*arguments, total, *self._how)
            return total
        g: Tensor = _native.conv_batch_norm_train_backward(*arguments, *self._how)
        return g if total is None else g.add_(total)

    def backward_to_all(
        self, saved: tuple[Tensor, ...], grad: Tensor, total: Tensor | None, own: bool, to_input: bool
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Add the input's gradient, unless nobody wants it, and return the parameters' too."""
        arguments = self._arguments(saved, grad)
        outputs = self.taps is not None and self.taps.outputs
        if to_input and total is not None and own:
            found = _native.conv_batch_norm_train_gradients_onto(*arguments, total, *self._how, outputs)
        else:
            g, *found = _native.conv_batch_norm_train_gradients(*arguments, *self._how, to_input, outputs)
            if to_input:
                total = g if total is None else g.add_(total)
        *parameters, products = found
        if self.taps is not None and outputs:
            self.taps.output(self.conv, products)
        return total, parameters

    def reads(self, saved: tuple[Tensor, ...], x: Tensor, to_all: bool) -> bool:
        """Whether a backward, to parameters also or not, reads this tensor, as what entered the layer."""
        return saved[0] is x and (to_all or self.relu_input is not None)

    @property
    def keeps_zero(self) -> bool:
        """Whether the norm shifts nothing."""
        return self.norm.bias is None or not bool(self.norm.bias.any())

    def show_zeros(self, like: Tensor) -> None:
        """Show the ReLU zeros, and no variance."""
        if self.taps is None:
            return
        if self.taps.relus and self.relu_input is not None:
            self.taps.relu(self.relu_input, torch.zeros_like(like))
        if self.taps.norms:
            kernel = self.conv.weight.shape[2]
            height, width = ((size + 2 * self.padding - kernel) // self.stride + 1 for size in like.shape[2:])
            variance = torch.zeros(len(self.conv.weight), dtype=torch.float64, device=like.device)
            self.taps.norm(self.norm, variance, len(like) * height * width)

    def _arguments(self, saved: tuple[Tensor, ...], grad: Tensor) -> tuple[Tensor | None, ...]:
        x, z, mean, invstd = saved
        return grad, x, z, *self.parameters, mean, invstd


Step = tuple[int, int, Layer]  # source, target, what leads from one to the other
RunDead = Callable[[Mapping[int, Tensor]], None]  # shows taps the dead layers, given the live nodes


def fast_chain(chain: Convolution, original: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return a forward for a chain that taps listen to: a cell of one layer."""
    return _forward([(0, 1, chain)], 1, original, chain.taps)


def fast_cell(cell: Dag, layers: Sequence[Layer], taps: Taps | None = None) -> Callable[[Tensor], Tensor] | None:
    """Return a forward for a cell whose edges are `layers`; None if its output is not memory of its own.

    Dead edges do not run: nobody watches them where all layers may be replaced, but through taps.
    It is for float32 images in the layout in which their device scores; others go to the cell itself, and so do
    derivatives that the native operations do not know.
    """
    steps, others = useful_steps(cell, layers)
    if not makes_output(steps, cell.output):
        return None
    dead = None
    if others and taps is not None and (taps.relus or taps.norms):
        dead = partial(_run_dead, steps=others, taps=taps, zeros=cell.zeros)
    return _forward(steps, cell.output, cell.forward, taps, dead)


def _forward(
    steps: Sequence[Step],
    output: int,
    original: Callable[[Tensor], Tensor],
    taps: Taps | None,
    dead: RunDead | None = None,
) -> Callable[[Tensor], Tensor]:
    chains = [layer for _, _, layer in steps if isinstance(layer, Convolution)] if taps is not None else []

    def forward(x: Tensor) -> Tensor:
        fits = x.ndim == 4 and x.dtype == torch.float32 and (x.is_cpu or x.is_cuda) and x.numel() > 0
        if fits and x.is_contiguous(memory_format=image_format(x.device)) and use_native(_LAST_KERNEL, x):
            parameters = [parameter for chain in chains for parameter in chain.parameters]
            return _Cell.apply(x, steps, output, taps, dead, *parameters)  # type: ignore[no-any-return,no-untyped-call]
        return original(x)

    return forward


def useful_steps(cell: Dag, layers: Sequence[Layer]) -> tuple[list[Step], list[Step]]:
    """Return the edges that lead to the output, and the others, both in order."""
    useful = {cell.output}
    steps: list[Step] = []
    others: list[Step] = []
    edges = list(zip(cell.edges, cell.layers, layers, strict=True))
    for (source, target), name, layer in reversed(edges):
        leads = target in useful and name not in cell.dead
        if leads:
            useful.add(source)
        (steps if leads else others).append((source, target, layer))
    return steps[::-1], others[::-1]


def makes_output(steps: Sequence[tuple[int, int, Any]], output: int) -> bool:
    """Whether a cell's output is memory of its own."""
    arriving = [layer for _, target, layer in steps if target == output]
    return len(arriving) > 1 or any(layer.makes_new for layer in arriving)


def _run_dead(
    live: Mapping[int, Tensor], *, steps: Sequence[Step], taps: Taps, zeros: Callable[[Tensor], Tensor]
) -> None:
    """Show dead layers to taps. Where these ask for no norms, only layers run that others of them need; see `Dag`."""
    nodes = dict(live)
    read = {source for source, _, _ in steps}
    for source, target, layer in steps:
        if source not in nodes:  # nothing arrives there
            if layer.keeps_zero:
                layer.show_zeros(zeros(nodes[0]))
                continue
            nodes[source] = zeros(nodes[0])
        x = nodes[source]
        if target in read and target not in live:
            nodes[target], _ = layer.forward(x, nodes.get(target), own=False)
        elif taps.norms:
            layer.forward(x, None, own=False)
        elif isinstance(layer, Convolution) and layer.relu_input is not None:
            taps.relu(layer.relu_input, x)


class Nodes(Generic[T]):
    """Sums under way, and which of them are memory of the cell's own."""

    def __init__(self, first: int, value: T) -> None:
        self.values = {first: value}
        self._own: set[int] = set()

    def so_far(self, node: int) -> tuple[T | None, bool]:
        """Return a node's total, and whether it may be changed."""
        return self.values.get(node), node in self._own

    def put(self, node: int, value: T, own: bool) -> None:
        """Give a node a new total."""
        self.values[node] = value
        if own:
            self._own.add(node)


class _Cell(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        steps: Sequence[Step],
        output: int,
        taps: Taps | None,
        dead: RunDead | None,
        *parameters: Tensor | None,  # of the convolutions, in order, where taps are given
    ) -> Tensor:
        x = x.detach()  # an alias: x itself would be in a circle with this step, were its output added to x in place
        nodes = Nodes(0, x)
        ctx.steps, ctx.output, ctx.taps, ctx.kept = steps, output, taps, []
        ctx.x, ctx.version = x, version_of(x)
        with torch._C._AutoDispatchBelowAutograd():
            for source, target, layer in steps:
                total, own = nodes.so_far(target)
                value, kept = layer.forward(nodes.values[source], total, own)
                nodes.put(target, value, own or layer.makes_new or total is not None)
                ctx.kept.append(kept)
            if dead is not None:
                dead(nodes.values)
        return nodes.values[output]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        to_input, *to_parameters = ctx.needs_input_grad[:1] + ctx.needs_input_grad[5:]
        to_all = ctx.taps is not None and ctx.taps.active
        if version_of(ctx.x) != ctx.version and any(
            isinstance(layer, Convolution) and layer.reads(kept, ctx.x, to_all)
            for (_, _, layer), kept in zip(ctx.steps, ctx.kept, strict=True)
        ):
            raise FusedOverwrittenError
        grads = Nodes(ctx.output, grad.contiguous(memory_format=image_format(grad.device)))
        found: list[Tensor | None] = []  # of the parameters, from the last to the first
        with torch._C._AutoDispatchBelowAutograd():
            for (source, target, layer), kept in zip(reversed(ctx.steps), reversed(ctx.kept), strict=True):
                total, own = grads.so_far(source)
                of_parameters: Sequence[Tensor | None] = (None, None, None)
                value: Tensor | None = None
                if target in grads.values:
                    wanted = to_input or source != 0
                    if to_all and isinstance(layer, Convolution):
                        value, of_parameters = layer.backward_to_all(kept, grads.values[target], total, own, wanted)
                    elif wanted:
                        value = layer.backward(kept, grads.values[target], total, own)
                if value is not None:
                    grads.put(source, value, own or layer.makes_new or total is not None)
                if isinstance(layer, Convolution):
                    found.extend(reversed(of_parameters))
        asked = (
            g if wanted else None for g, wanted in zip(reversed(found), to_parameters, strict=ctx.taps is not None)
        )
        return grads.values.get(0), None, None, None, None, *asked


def _sum(total: Tensor | None, value: Tensor, own: bool) -> Tensor:
    if total is None:
        return value
    return total.add_(value) if own else total + value
