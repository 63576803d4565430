"""A network in the state of its pass, as passes and custom statistics see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zcpipe.errors import UnsupportedError, UsageError
from zcpipe.ops import generators
from zcpipe.ops.layout import as_images, in_contiguous_images
from zcpipe.ops.philox import Stream
from zcpipe.proxies.base import Gradients, OnNorm, PairForward, asking, tensor_of
from zcpipe.proxies.samples import require_gradient
from zcpipe.scoring.absolute import absolute_gradients
from zcpipe.scoring.arithmetic import plain_arithmetic
from zcpipe.scoring.cells import NoTaps
from zcpipe.scoring.guard import untouched
from zcpipe.scoring.layers import weights_of
from zcpipe.scoring.rewrite import fast_operations, run_fast
from zcpipe.scoring.tangents import pair_forwards
from zcpipe.spaces.layers import recurrent_gradients

Loss = Callable[[Tensor, Tensor], Tensor]


class ScoredNetwork:
    """A model, its batch and all that passes read off them; implements `zcpipe.proxies.base.Network`.

    Attributes:
        model: the network.
        modules: all that is in it, as ``dict(model.named_modules())``.
        samples: size of the batch.
        targets: labels, or None.

    ``may_be_dead`` says that there may be layers that the output does not depend on, so that ``parameters`` and
    ``live`` have to find out.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Sequence[Tensor],
        targets: Tensor | None,
        loss: Loss | None,
        stream: Callable[[str], Stream],
        may_be_dead: bool = False,
    ) -> None:
        self.model = model
        self.modules: Mapping[str, nn.Module] = dict(model.named_modules())
        self.samples = len(inputs[0]) if inputs else 0
        self._inputs = inputs
        self.targets = targets
        self.stream = stream
        self._loss = loss
        self._may_be_dead = may_be_dead

    @property
    def inputs(self) -> list[Tensor]:
        """Positional arguments of the forward, first dimension N: a copy, since a forward may write to them.

        They lie as they are kept, but for `zcpipe.ops.layout.contiguous_images`.
        """
        copies = [tensor.clone() for tensor in self._inputs]
        return [as_images(tensor) for tensor in copies] if in_contiguous_images() else copies

    @cached_property
    def layers(self) -> dict[str, nn.Parameter]:
        """Weights of all layers by name; see `zcpipe.scoring.layers.weights_of`."""
        return weights_of(self.modules)

    @cached_property
    def parameters(self) -> list[nn.Parameter]:
        """Parameters of a network without dead layers; see `zcpipe.proxies.base.Network.parameters`.

        Autograd knows them, from one forward and backward in eval mode, in which no layer is left out by chance.
        """
        everything = list(self.model.parameters())
        if not self._may_be_dead or not everything:
            return everything
        asked = [parameter for parameter in everything if parameter.is_floating_point() or parameter.is_complex()]
        plain = plain_arithmetic(asked[0].device) if asked else nullcontext()
        recurrent = recurrent_gradients(self.modules.values(), everything[0].device)
        with untouched(self.modules, training=False), plain, recurrent, asking(asked):
            output = tensor_of(self.model(*self.inputs))
            require_gradient(output)
            found = torch.autograd.grad(output.sum(), asked, allow_unused=True)
        return [parameter for parameter, gradient in zip(asked, found, strict=True) if gradient is not None]

    @cached_property
    def live(self) -> list[bool]:
        """Of each layer, whether the output depends on it."""
        reached = set(map(id, self.parameters)) if self.layers else set()
        return [id(weight) in reached for weight in self.layers.values()]

    @cached_property
    def gradients(self) -> Gradients:
        """Gradients of the loss for ``layers``; a pass that has them puts them here."""
        weights = [weight.detach() for weight in self.layers.values()]
        return Gradients(weights, self.loss_gradients(list(self.layers.values()), self.inputs, self.targets))

    def loss_gradients(
        self, parameters: Sequence[Tensor], inputs: Sequence[Tensor], targets: Tensor | None
    ) -> list[Tensor]:
        """Return the gradients of the loss of a batch; see `zcpipe.proxies.base.Network.loss_gradients`."""

        def run() -> list[Tensor]:
            generators.restart()  # what a forward draws is the same in all of them
            output = tensor_of(self.model(*(tensor.clone() for tensor in inputs)))  # a forward may write to them
            loss = self.loss(output, targets)
            return list(torch.autograd.grad(loss, list(parameters), allow_unused=True, materialize_grads=True))

        with asking(parameters):
            return run_fast(run, self.modules, taps=_GradientTaps())

    def absolute_gradients(self, norm: Literal["drop", "batch"]) -> Gradients:
        """Return the synflow family's gradients; see `zcpipe.proxies.base.Network.absolute_gradients`."""
        return absolute_gradients(self.model, self.modules, self.inputs, norm)

    @torch.no_grad()
    def run(self, inputs: Sequence[Tensor], on_norm: OnNorm | None = None) -> object:
        """Run the model forward with the native operations; see `zcpipe.proxies.base.Network.run`."""
        generators.restart()  # what a forward draws is the same in all of them
        if on_norm is None:
            with fast_operations(self.modules):
                return self.model(*inputs)
        taps = _NormTaps(on_norm)
        handles = []
        try:
            with fast_operations(self.modules, taps=taps):
                for module in self.modules.values():
                    if isinstance(module, nn.BatchNorm2d):
                        handles.append(module.register_forward_pre_hook(taps.hook, with_kwargs=True))
                return self.model(*inputs)
        finally:
            for handle in handles:
                handle.remove()

    def pair_forwards(
        self, directions: Mapping[Tensor, Tensor], products: Mapping[Tensor, list[Tensor]], anchor: Tensor
    ) -> dict[nn.Module, PairForward]:
        """Return forwards for values and tangents; see `zcpipe.proxies.base.Network.pair_forwards`."""
        return pair_forwards(self.modules, directions, products, anchor)

    def batch_loss(self, output: object) -> Tensor:
        """Return the loss of the whole batch."""
        return self.loss(tensor_of(output), self.targets)

    def loss(self, output: Tensor, targets: Tensor | None) -> Tensor:
        """Return the scalar loss of an output.

        Raises:
            UsageError: there are no targets, they do not fit the output, or the loss is no scalar.
            UnsupportedError: the loss does not depend on any weight.
        """
        if targets is None:
            raise UsageError("these proxies need the loss of labelled samples: pass targets")
        value = _cross_entropy(output, targets) if self._loss is None else self._loss(output, targets)
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise UsageError(f"loss must return one number as a tensor, got {got}")
        if torch.is_grad_enabled() and not value.requires_grad:
            raise UnsupportedError("the loss does not depend on the weights")
        return value.reshape(())


class _GradientTaps(NoTaps):
    """Lets sweeps go to parameters."""

    active = True


class _NormTaps(NoTaps):
    """Hands on the variances of batch norms, fused or not."""

    norms = True

    def __init__(self, on_norm: OnNorm) -> None:
        self._on_norm = on_norm

    def norm(self, norm: nn.BatchNorm2d, variance: Tensor, count: int) -> None:
        """Hand on what a fused layer reports."""
        self._on_norm(norm, variance, count)

    def hook(self, module: nn.Module, arguments: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        """Take the variances of what enters a norm that is not fused."""
        if module.training and isinstance(module, nn.BatchNorm2d):
            x = (*arguments, *named.values())[0]
            variance = x.var((0, 2, 3), unbiased=False)
            self._on_norm(module, variance.double(), x.numel() // x.shape[1])


def _cross_entropy(output: Tensor, targets: Tensor) -> Tensor:  # [N, classes, ...], [N, ...]
    if output.ndim < 2 or targets.shape != (output.shape[0], *output.shape[2:]):
        raise UsageError(
            f"targets must be class numbers of shape {(output.shape[0], *output.shape[2:])} for an output of shape "
            f"{tuple(output.shape)}, got shape {tuple(targets.shape)}; pass a loss for other tasks"
        )
    if targets.dtype not in (torch.int64, torch.int32, torch.uint8):
        raise UsageError(f"targets must be integer class numbers, got {targets.dtype}; pass a loss for other tasks")
    if targets.numel() and not 0 <= int(targets.min()) <= int(targets.max()) < output.shape[1]:
        low, high = int(targets.min()), int(targets.max())
        raise UsageError(f"targets must lie in 0 .. {output.shape[1] - 1}, got {low} .. {high}")
    return F.cross_entropy(output, targets.long())
