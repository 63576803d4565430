"""A small problem to learn from, and networks that learn it."""

import numpy as np
import torch
from torch import nn

from zcpipe.parzc.bayesian import BayesianLinear
from zcpipe.parzc.mabn import MABN
from zcpipe.parzc.training import Settings

D = 24
SHORT = Settings(epochs=3, batch_size=16)


def problem(n, seed=0):
    """Vectors of which a number can be learnt that lies as accuracies do."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(n, D)).astype(np.float32)
    y = 90 + 3 * np.tanh(x[:, 0] - x[:, 1] * x[:, 2]) + 0.1 * generator.normal(size=n)
    return x, y


X, Y = problem(60)


def make():
    return MABN(D, dim=16)


def made(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def linear(seed=0, outputs=1):
    """The smallest network: its predictions have a distribution that is known."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(BayesianLinear(D, outputs, rho=-1.0), nn.Flatten(0))


def same(a, b):
    state, other = a.state_dict(), b.state_dict()
    return list(state) == list(other) and all(torch.equal(state[name], other[name]) for name in state)


def holed(values, value):
    values = values.copy()
    values[3] = value
    return values
