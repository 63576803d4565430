"""The signs of per-sample gradients from one forward and one backward of a whole batch.

With every batch norm told to normalise each sample by its own statistics, the samples of a batch do not touch each
other, and a layer's input and output gradient hold every sample's gradient of its weight. Whatever does not fit is
found out and left to the caller, who sends the samples through one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from zcpipe.proxies.base import Network, asking, tensor_of
from zcpipe.proxies.samples import part, require_gradient, weights_of
from zcpipe.spaces.layers import computes_as

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


class NotSeparableError(Exception):
    """The whole batch does not give what each sample gives alone, or it is not known to."""


def signs_of_batch(network: Network) -> list[Tensor]:  # of each weight's shape
    """Return for each layer the sum over samples of sign(g), g the gradient of one sample's loss.

    The network must be in train mode.

    Raises:
        NotSeparableError: samples touch each other (the first one's output is another one alone), a layer is of a type
            that is not known, runs more than once or shares its weight, or a gradient may not be finite.
        UsageError: there are no targets, or the output is no tensor of floats.
        UnsupportedError: the network has no layers, or its output or loss does not depend on them.
    """
    weights = weights_of(network)
    samples = network.inputs[0].shape[0]
    # A lone sample has nothing to gain, and no dimension that tells it from a layer's channels.
    _require(samples > 1)
    layers = _layers(network)
    norms = [module for module in network.model.modules() if isinstance(module, _NORMS)]
    alone = {norm: _normalised_alone(norm) for norm in norms if _is_batch_norm(norm)}
    with asking(weights), _forwards(alone | {layer.module: layer for layer in layers}):
        with torch.no_grad():
            first = tensor_of(network.model(*part(network.inputs, slice(1))))
        for layer in layers:
            layer.expect(samples)
        output = tensor_of(network.model(*network.inputs))
        _require(output.shape[0] == samples and _equal(output[:1].detach(), first))
        _sweep_back(network, output, layers, weights)
    return [layer.signs for layer in layers]


def _sweep_back(network: Network, output: Tensor, layers: Sequence[_Layer], weights: Sequence[Tensor]) -> None:
    targets = network.targets
    require_gradient(output)
    parts = [slice(i, i + 1) for i in range(output.shape[0])]
    losses = [network.loss(output[one], None if targets is None else targets[one]) for one in parts]
    total = torch.stack(losses).sum()
    anchors = [layer.anchor for layer in layers]
    found = torch.autograd.grad(total, [*anchors, *weights], allow_unused=True)
    # A layer keeps its weight's gradient to itself; what arrives all the same comes from another use of it.
    _require(all(gradient is None for gradient in found[len(anchors) :]))


def _require(holds: bool) -> None:
    if not holds:
        raise NotSeparableError


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether two results of one computation are the same but for the order of its sums."""
    size = float(b.abs().max()) if b.numel() else 0.0
    return a.shape == b.shape and bool(((a - b).abs() <= torch.finfo(a.dtype).eps ** 0.5 * size).all())


def _layers(network: Network) -> list[_Layer]:
    modules = dict(network.model.named_modules())
    layers = []
    for name, weight in network.layers.items():
        module = modules.get(name)
        if module is None or module._parameters.get("weight") is not weight or not _is_known(module):
            raise NotSeparableError
        layers.append(_Layer(module, weight))
    return layers


def _is_known(module: nn.Module) -> bool:
    """Whether a module is a layer that computes what its class says."""
    if isinstance(module, _CONVOLUTIONS):
        stock = computes_as(module, *_CONVOLUTIONS)
        return stock and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return computes_as(module, nn.Linear)


def _is_batch_norm(norm: _Norm) -> bool:
    return norm.training and computes_as(norm, *_NORMS)


class _Layer:
    """A layer's forward, whose backward adds up the signs of its weight's per-sample gradients."""

    def __init__(self, module: nn.Module, weight: Tensor) -> None:
        self.module: Any = module  # a convolution or linear layer
        self.forward = module.forward
        self.weight = weight.detach()
        self.signs = torch.zeros_like(self.weight)
        # What makes autograd come by, also where neither input nor weight ask for gradients.
        self.anchor = self.weight.new_zeros((), requires_grad=True)
        self.expect(1)

    def expect(self, samples: int) -> None:
        """Get ready for one call with this many samples."""
        self._samples, self._called = samples, False

    def __call__(self, input: Tensor) -> Tensor:  # [N, ...], as torch calls it, for callers by keyword
        _require(input.shape[0] == self._samples and not self._called)
        self._called = True
        result: Tensor = _Recorded.apply(input, self.anchor, self)  # type: ignore[no-untyped-call]
        return result

    def collect(self, x: Tensor, grad: Tensor) -> None:
        """Add the signs of all samples' gradients."""
        # No gradient is larger than the product of these norms.
        bound = x.norm().double() * grad.norm().double()
        _require(bool(bound <= torch.finfo(x.dtype).max))
        if isinstance(self.module, nn.Linear) and x.ndim == 2:
            self.signs += grad.sign().T @ x.sign()
            return
        for one, its_grad in zip(torch.split(x, 1), torch.split(grad, 1), strict=True):
            self.signs += self._weight_gradient(one, its_grad).sign_()

    def _weight_gradient(self, x: Tensor, grad: Tensor) -> Tensor:
        if isinstance(self.module, nn.Linear):
            return grad.flatten(0, -2).T @ x.flatten(0, -2)
        return self._backward(x, grad, [False, True, False])[1]

    def input_gradient(self, x: Tensor, grad: Tensor) -> Tensor:
        """Return the gradient of the layer's input."""
        if isinstance(self.module, nn.Linear):
            return grad @ self.weight
        return self._backward(x, grad, [True, False, False])[0]

    def _backward(self, x: Tensor, grad: Tensor, wanted: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
        conv = self.module
        how = (conv.stride, conv.padding, conv.dilation, False, [0] * len(conv.stride), conv.groups)
        found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
            grad, x, self.weight, None, *how, wanted
        )
        return found


class _Recorded(torch.autograd.Function):
    """A layer that keeps the gradient of its weight to itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, layer: _Layer) -> Tensor:  # noqa: ANN401
        ctx.layer = layer
        ctx.save_for_backward(x)
        result: Tensor = layer.forward(x)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:  # noqa: ANN401
        (x,) = ctx.saved_tensors
        ctx.layer.collect(x, grad)
        return ctx.layer.input_gradient(x, grad) if ctx.needs_input_grad[0] else None, None, None


def _normalised_alone(norm: _Norm) -> Callable[[Tensor], Tensor]:
    """Return the forward of a train-mode batch norm for samples that are batches of one each."""

    def forward(input: Tensor) -> Tensor:  # [N, C, ...], as torch calls it, for callers by keyword
        _require(input.ndim > 2 and input[0, 0].numel() > 1)  # torch refuses what remains, in its own words
        shape = (1, -1, *(1 for _ in input.shape[2:]))
        scale, shift = (p if p is None else p.view(shape) for p in (norm.weight, norm.bias))
        result: Tensor = _Alone.apply(input, scale, shift, norm.eps)  # type: ignore[no-untyped-call]
        return result

    return forward


class _Alone(torch.autograd.Function):
    """Batch norm of each sample by itself. torch's instance norm takes twice the time in channels_last."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor | None, shift: Tensor | None, eps: float) -> Tensor:  # noqa: ANN401
        positions = tuple(range(2, x.ndim))
        centred = x - x.mean(positions, keepdim=True)
        invstd = (centred.square().mean(positions, keepdim=True) + eps).rsqrt()
        gain = invstd if scale is None else invstd * scale
        ctx.save_for_backward(centred, invstd, gain)
        return centred * gain if shift is None else torch.addcmul(shift, centred, gain)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # noqa: ANN401
        centred, invstd, gain = ctx.saved_tensors
        positions = tuple(range(2, grad.ndim))
        mean = grad.mean(positions, keepdim=True)
        slope = (grad * centred).mean(positions, keepdim=True) * invstd.square()
        return torch.addcmul(-gain * mean, grad, gain).addcmul_(centred, -gain * slope), None, None, None


@contextmanager
def _forwards(replaced: Mapping[nn.Module, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Inside, modules run another ``forward``; afterwards they run their own."""
    try:
        for module, forward in replaced.items():
            # Not through nn.Module's own slow attributes: a forward is no parameter, buffer or module.
            vars(module)["forward"] = forward
        yield
    finally:
        for module in replaced:
            vars(module).pop("forward", None)
