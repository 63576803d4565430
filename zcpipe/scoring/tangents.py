"""Chains and whole cells for values and tangents at once: the fast passes of second derivatives.

As `zcpipe.scoring.cells`, for pairs: every node is a value and its derivative along a line in the layers' weights, and
so are the gradients that come back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from zcpipe.ops._check import use_native
from zcpipe.proxies.base import PairForward
from zcpipe.scoring.cells import Convolution, Layer, Nodes
from zcpipe.scoring.inplace import FusedOverwrittenError, version_of
from zcpipe.scoring.rewrite import fused_layers

_native = torch.ops.zcpipe

_Pair = tuple[Tensor, Tensor | None]  # a value, and its tangent: None for zeros


def pair_forwards(
    modules: Mapping[str, nn.Module],
    directions: Mapping[Tensor, Tensor],
    products: Mapping[Tensor, list[Tensor]],
    anchor: Tensor,
) -> dict[nn.Module, PairForward]:
    """Return forwards for values and tangents; see `zcpipe.proxies.base.Network.pair_forwards`."""
    found: dict[nn.Module, PairForward] = {}
    for module, (steps, output) in fused_layers(modules).items():
        convolutions = [layer for _, _, layer in steps if isinstance(layer, Convolution)]
        if all(chain.conv.weight in directions for chain in convolutions):
            pairs: list[_Step] = []
            for source, target, layer in steps:
                pair = _pair_layer(layer, directions, products)
                if isinstance(layer, Convolution) and layer.relu_output:  # a node of its own before that ReLU
                    between = -1 - len(pairs)
                    pairs += [(source, between, pair), (between, target, _Relu())]
                else:
                    pairs.append((source, target, pair))
            found[module] = _forward(pairs, output, anchor)
    return found


def _pair_layer(
    layer: Layer, directions: Mapping[Tensor, Tensor], products: Mapping[Tensor, list[Tensor]]
) -> _PairLayer:
    if not isinstance(layer, Convolution):
        return _Both(layer)
    weight = layer.conv.weight
    return _Convolution(layer, weight.detach(), directions[weight], products[weight])


@dataclass(frozen=True)
class _Both:
    """A layer without weights, which does to tangents what it does to values."""

    layer: Layer

    @property
    def makes_new(self) -> bool:
        return self.layer.makes_new

    def forward(self, pair: _Pair, total: _Pair | None, own: bool) -> tuple[_Pair, None]:
        return _of_both(lambda x, so_far: self.layer.forward(x, so_far, own)[0], pair, total), None

    def backward(self, saved: None, grad: _Pair, total: _Pair | None, own: bool) -> _Pair:
        return _of_both(lambda g, so_far: self.layer.backward(saved, g, so_far, own), grad, total)


def _of_both(f: Callable[[Tensor, Tensor | None], Tensor], pair: _Pair, total: _Pair | None) -> _Pair:
    value, tangent = (None, None) if total is None else total
    return f(pair[0], value), f(_known(pair[1]), tangent)


def _known(tangent: Tensor | None) -> Tensor:
    if tangent is None:
        raise AssertionError("only first convolutions take zeros")
    return tangent


@dataclass(frozen=True)
class _Convolution:
    """[ReLU,] convolution, batch norm, along a direction of the kernels."""

    chain: Convolution
    weight: Tensor
    direction: Tensor  # as the kernels
    products: list[Tensor]  # receives the sum of the kernels times their gradient
    makes_new = True

    @property
    def _how(self) -> tuple[float, int, int, bool]:
        chain = self.chain
        return chain.norm.eps, chain.stride, chain.padding, chain.relu_input is not None

    def forward(self, pair: _Pair, total: _Pair | None, own: bool) -> tuple[_Pair, tuple[Tensor | None, ...]]:
        _, *norm = self.chain.parameters
        arguments = (*pair, self.weight, self.direction, *norm, *((None, None) if total is None else total), *self._how)
        if total is not None and own:
            return total, (*pair, *_native.conv_batch_norm_tangent_onto(*arguments))
        y, y_dot, *saved = _native.conv_batch_norm_tangent(*arguments)
        return (y, y_dot), (*pair, *saved)

    def backward(self, saved: tuple[Tensor, ...], grad: _Pair, total: _Pair | None, own: bool) -> _Pair:
        *kept, statistics = saved
        arguments = (*grad, *kept, self.weight, self.direction, self.chain.norm.weight, statistics)
        if total is not None and own:
            self.products.append(_native.conv_batch_norm_tangent_backward_onto(*arguments, *total, *self._how))
            return total
        g, g_dot, product = _native.conv_batch_norm_tangent_backward(*arguments, *self._how)
        self.products.append(product)
        return (g, g_dot) if total is None else (g.add_(total[0]), g_dot.add_(_known(total[1])))


class _Relu:
    """A ReLU behind a convolution, whose memory it takes."""

    makes_new = True

    def forward(self, pair: _Pair, total: _Pair | None, own: bool) -> tuple[_Pair, Tensor]:
        y, y_dot = pair[0], _known(pair[1])
        mask = y > 0
        new = y.clamp_(min=0), y_dot.mul_(mask)
        return new if total is None else (new[0].add_(total[0]), new[1].add_(_known(total[1]))), mask

    def backward(self, saved: Tensor, grad: _Pair, total: _Pair | None, own: bool) -> _Pair:
        return grad[0] * saved, _known(grad[1]) * saved  # nothing else reads the convolution


_PairLayer = _Both | _Convolution | _Relu
_Step = tuple[int, int, _PairLayer]  # source, target, what leads from one to the other


def _forward(steps: Sequence[_Step], output: int, anchor: Tensor) -> PairForward:
    first = [layer for source, _, layer in steps if source == 0]
    takes_zeros = len(first) == 1 and isinstance(first[0], _Convolution)

    def forward(x: Tensor, x_dot: Tensor | None) -> tuple[Tensor, Tensor] | None:
        fits = x.ndim == 4 and x.dtype == torch.float32 and x.is_cpu and x.numel() > 0
        fits = fits and x.is_contiguous(memory_format=torch.channels_last) and (takes_zeros or x_dot is not None)
        if not (fits and use_native("conv_batch_norm_tangent", x, x_dot)):
            return None
        y, y_dot = _Steps.apply(x, x_dot, anchor, steps, output)  # type: ignore[no-untyped-call]
        return y, y_dot

    return forward


class _Steps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        x_dot: Tensor | None,
        anchor: Tensor,
        steps: Sequence[_Step],
        output: int,
    ) -> _Pair:
        x = x.detach()  # aliases, as in `zcpipe.scoring.cells`
        if x_dot is not None:
            x_dot = x_dot.detach().contiguous(memory_format=torch.channels_last)
        ctx.x, ctx.version = x, version_of(x)  # nobody changes x_dot alone
        nodes: Nodes[_Pair] = Nodes(0, (x, x_dot))
        ctx.steps, ctx.output, ctx.kept, ctx.to_input = steps, output, [], x_dot is not None
        with torch._C._AutoDispatchBelowAutograd():
            for source, target, layer in steps:
                total, own = nodes.so_far(target)
                pair, kept = layer.forward(nodes.values[source], total, own)
                nodes.put(target, pair, own or layer.makes_new or total is not None)
                ctx.kept.append(kept)
        return nodes.values[output]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        grad, grad_dot = (g.contiguous(memory_format=torch.channels_last) for g in gradients)
        grads: Nodes[_Pair] = Nodes(ctx.output, (grad, grad_dot))
        if version_of(ctx.x) != ctx.version and any(
            isinstance(layer, _Convolution) and kept[0] is ctx.x
            for (_, _, layer), kept in zip(ctx.steps, ctx.kept, strict=True)
        ):
            raise FusedOverwrittenError
        with torch._C._AutoDispatchBelowAutograd():
            for source, target, layer in reversed(ctx.steps):
                kept = ctx.kept.pop()  # what the next layers' gradients are written to
                if target in grads.values:
                    total, own = grads.so_far(source)
                    pair = layer.backward(kept, grads.values[target], total, own)
                    grads.put(source, pair, own or layer.makes_new or total is not None)
        grad_x, grad_x_dot = grads.values.get(0, (None, None)) if ctx.to_input else (None, None)
        return grad_x, grad_x_dot, None, None, None
