"""Linear layers whose weights are normal distributions, and what can be asked of a network that has some."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zcpipe.errors import UsageError

RHO = -5.0  # a standard deviation of 0.0067


class BayesianLinear(nn.Module):
    """A linear layer whose every weight is drawn from a normal distribution of its own.

    W = mean + sigma * eps with sigma = ln(1 + e^rho); mean and rho are learnt. Each forward pass draws one eps for all
    rows from torch's global generator, in evaluation as in training, unless it runs within `mean_weights` or
    `one_draw`.

    Args:
        inputs: size of the rows that come in.
        outputs: size of those that go out.
        bias: add a learnt constant, which has no uncertainty.
        rho: where every rho starts.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool = False, rho: float = RHO) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.empty(outputs, inputs))
        self.rho = nn.Parameter(torch.full((outputs, inputs), rho))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.fixed: Tensor | None = None  # [outputs, inputs], the weight while it is not to be drawn
        nn.init.kaiming_uniform_(self.mean, a=math.sqrt(5))

    def sigma(self) -> Tensor:
        """Return the weights' standard deviations, [outputs, inputs]."""
        return F.softplus(self.rho)

    def draw(self) -> Tensor:
        """Draw a weight, [outputs, inputs]."""
        return self.mean + self.sigma() * torch.randn_like(self.mean)

    def kl(self, prior_sigma: float) -> Tensor:
        """Compute the Kullback-Leibler divergence of the weights from N(0, prior_sigma^2), summed: a scalar.

        Raises:
            UsageError: prior_sigma is not a positive number.
        """
        if not 0 < prior_sigma < math.inf:
            raise UsageError(f"prior_sigma: got {prior_sigma}, expected a positive number")
        sigma = self.sigma()
        squares = (sigma.square() + self.mean.square()) / prior_sigma**2
        return (squares / 2 - 0.5 - torch.log(sigma / prior_sigma)).sum()

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., inputs] to [..., outputs]."""
        return F.linear(x, self.draw() if self.fixed is None else self.fixed, self.bias)


def kl(network: nn.Module, prior_sigma: float) -> Tensor:
    """Sum the divergences of all Bayesian layers of a network from N(0, prior_sigma^2): a scalar, 0 if it has none.

    Raises:
        UsageError: prior_sigma is not a positive number.
    """
    return torch.stack([torch.zeros(()), *(layer.kl(prior_sigma) for layer in _layers(network))]).sum()


@contextmanager
def mean_weights(network: nn.Module) -> Iterator[None]:
    """Within, every Bayesian layer of a network uses its weights' means: the network is deterministic."""
    # A view, for a module would make a second parameter of the parameter itself.
    with _fixed(network, lambda layer: layer.mean.view_as(layer.mean)):
        yield


@contextmanager
def one_draw(network: nn.Module) -> Iterator[None]:
    """Within, every Bayesian layer of a network uses one weight, drawn on entering."""
    with _fixed(network, BayesianLinear.draw):
        yield


@contextmanager
def _fixed(network: nn.Module, choose: Callable[[BayesianLinear], Tensor]) -> Iterator[None]:
    layers = _layers(network)
    before = [layer.fixed for layer in layers]
    for layer in layers:
        layer.fixed = choose(layer)
    try:
        yield
    finally:
        for layer, weight in zip(layers, before, strict=True):
            layer.fixed = weight


def _layers(network: nn.Module) -> list[BayesianLinear]:
    return [module for module in network.modules() if isinstance(module, BayesianLinear)]
