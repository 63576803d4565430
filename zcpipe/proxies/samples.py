"""What the proxies of per-sample gradients share: losses of parts of a batch, and gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zcpipe.errors import UnsupportedError
from zcpipe.proxies.base import Network, tensor_of


def loss_of(network: Network, samples: slice) -> Tensor:
    """Run the network on a part of its batch and return the loss of that part.

    Raises:
        UsageError: there are no targets, or the output is no tensor of floats.
        UnsupportedError: autograd knows of nothing that output or loss depend on.
    """
    targets = None if network.targets is None else network.targets[samples]
    output = tensor_of(network.model(*part(network.inputs, samples)))
    require_gradient(output)
    return network.loss(output, targets)


def require_gradient(output: Tensor) -> None:
    """Refuse a network whose forward autograd could not follow.

    Raises:
        UnsupportedError: what it returned has no gradient.
    """
    if not output.requires_grad:
        raise UnsupportedError("the output does not depend on the weights")


def require_real(parameters: Sequence[Tensor]) -> None:
    """Refuse complex parameters, of which definitions by real derivatives do not speak.

    Raises:
        UnsupportedError: there is one.
    """
    complex_one = next((parameter for parameter in parameters if parameter.is_complex()), None)
    if complex_one is not None:
        raise UnsupportedError(f"a parameter of shape {tuple(complex_one.shape)} is complex; this is of real ones")


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


def gradients_of(value: Tensor, parameters: Sequence[Tensor], keep_graph: bool = False) -> list[Tensor]:
    """Return the gradient of a scalar for each parameter, zeros where it does not depend on one."""
    if not value.requires_grad:
        return [torch.zeros_like(parameter, requires_grad=False) for parameter in parameters]
    return list(
        torch.autograd.grad(value, list(parameters), retain_graph=keep_graph, allow_unused=True, materialize_grads=True)
    )
