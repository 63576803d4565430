"""What the proxies of per-sample gradients share: outputs, parts of a batch, gradients for a while."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from zcpipe.errors import UnsupportedError, UsageError
from zcpipe.proxies.base import Network


def output_of(network: Network, inputs: Sequence[Tensor]) -> Tensor:  # [N, ...]
    """Run the network and return its output, or the first of several.

    Raises:
        UsageError: that is no tensor of floats.
    """
    output: object = network.model(*inputs)
    first = output[0] if isinstance(output, (tuple, list)) and output else output
    if not isinstance(first, Tensor) or not first.is_floating_point():
        got = str(first.dtype) if isinstance(first, Tensor) else type(first).__name__
        raise UsageError(f"the model must return a tensor of floats (or several, the first counts), got {got}")
    return first


def loss_of(network: Network, samples: slice) -> Tensor:
    """Run the network on a part of its batch and return the loss of that part.

    Raises:
        UsageError: there are no targets, or the output is no tensor of floats.
        UnsupportedError: autograd knows of nothing that output or loss depend on.
    """
    targets = None if network.targets is None else network.targets[samples]
    output = output_of(network, part(network.inputs, samples))
    require_gradient(output, "output")
    loss = network.loss(output, targets)
    require_gradient(loss, "loss")
    return loss


def require_gradient(value: Tensor, what: str) -> None:
    """Refuse a network whose forward autograd could not follow.

    Raises:
        UnsupportedError: what the network returned, or the loss of it, has no gradient.
    """
    if not value.requires_grad:
        raise UnsupportedError(f"the {what} does not depend on the weights")


def part(inputs: Sequence[Tensor], samples: slice) -> list[Tensor]:
    """Return some samples of a batch."""
    return [tensor[samples] for tensor in inputs]


def weights_of(network: Network) -> list[Tensor]:
    """Return the weights of all layers.

    Raises:
        UnsupportedError: there are none.
    """
    weights = list(network.layers.values())
    if not weights:
        raise UnsupportedError("the network has no convolution or linear layer")
    return weights


@contextmanager
def asking(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Inside, autograd records and these parameters ask for gradients; afterwards they do as before."""
    before = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_()
        with torch.enable_grad():
            yield
    finally:
        for parameter, wanted in zip(parameters, before, strict=True):
            parameter.requires_grad_(wanted)


def gradients_of(value: Tensor, parameters: Sequence[Tensor], keep_graph: bool = False) -> list[Tensor]:
    """Return the gradient of a scalar for each parameter, zeros where it does not depend on one."""
    if not value.requires_grad:
        return [torch.zeros_like(parameter, requires_grad=False) for parameter in parameters]
    return list(
        torch.autograd.grad(value, list(parameters), retain_graph=keep_graph, allow_unused=True, materialize_grads=True)
    )
