"""Plain torch, for reference networks written out by hand."""

from __future__ import annotations

import torch.nn.functional as F


def norm(weights, name, x, eps=1e-5):
    """A batch norm in train mode."""
    return F.batch_norm(x, None, None, weights[f"{name}.weight"], weights[f"{name}.bias"], training=True, eps=eps)


def conv(weights, name, x, stride=1, groups=1):
    """A bias-free convolution that keeps the sides, or halves them."""
    weight = weights[f"{name}.weight"]
    return F.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2, groups=groups)


def relu_conv_norm(weights, name, x, stride=1):
    """What TransNAS-Bench-101 calls an operation, as built here."""
    return norm(weights, f"{name}.op.2", conv(weights, f"{name}.op.1", x.relu(), stride))


def classify(weights, x):
    """Average pooling and a linear layer."""
    return F.linear(x.mean((2, 3)), weights["classifier.weight"], weights["classifier.bias"])


def randomise(model, generator):
    """Draw all parameters, norms and biases, too, which would be the same everywhere."""
    for parameter in model.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 25
        parameter.data.normal_(float(parameter.ndim == 1), fan_in**-0.5, generator=generator)
    return dict(model.named_parameters())
