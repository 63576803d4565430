"""TE-NAS (Chen et al., ICLR 2021): the condition number of the neural tangent kernel.

The published code draws Kaiming-normal weights by fan-out, our recipe by fan-in as everywhere; it takes a batch of 72
for NAS-Bench-201 and repeats three times; AZ-NAS takes one of 64. A kernel that is not positive definite in float32
gives it a negative number or 100000, see `ntk_condition` for ours.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from zcpipe.errors import UnsupportedError
from zcpipe.proxies.base import CustomStatistic, Network, Proxy, Recipe, Values, asking, only, tensor_of
from zcpipe.proxies.samples import gradients_of, require_gradient, require_real

PAPER = "Chen et al., Neural Architecture Search on ImageNet in Four GPU Hours (TE-NAS), ICLR 2021"
RECIPE = Recipe(init="kaiming_normal", inputs="data", norm="batch")


def ntk_condition(network: Network) -> list[float]:
    """Largest over smallest eigenvalue of G G^T, row i of G the gradient of the sum of sample i's outputs.

    The gradient is with respect to every parameter that has "weight" in its name, as in the published code: those of
    norm layers count, biases do not. Batch norm normalises by the whole batch, so each row goes through all samples.

    The kernel's smallest eigenvalue is not told from zero when it is at most N eps times the largest, the error of the
    eigenvalues in float64. The kernel then counts as singular, its condition is infinite.

    Returns:
        The condition number, at least 1; infinite for a singular kernel; NaN where a gradient is not finite.

    Raises:
        UnsupportedError: the network has no such parameters, one of them is complex, its output does not depend on
            them, or it has another first dimension than the batch.
    """
    return [_condition(tangent_kernel(network))]


def tangent_kernel(network: Network) -> Values:  # [N, N]
    """Return G G^T, see `ntk_condition`, summed in float64."""
    samples = network.inputs[0].shape[0]
    weights = [parameter for name, parameter in network.model.named_parameters() if "weight" in name]
    if not weights:
        raise UnsupportedError("the network has no parameter with weight in its name")
    require_real(weights)
    rows = [weight.new_empty(samples, weight.numel(), requires_grad=False) for weight in weights]
    with asking(weights):
        outputs = tensor_of(network.model(*network.inputs))
        if outputs.ndim == 0 or len(outputs) != samples:
            raise UnsupportedError(f"outputs must be [{samples}, ...], a row a sample, got {tuple(outputs.shape)}")
        require_gradient(outputs)
        for i, output in enumerate(outputs.reshape(samples, -1).sum(1).unbind()):
            gradients = gradients_of(output, weights, keep_graph=i + 1 < samples)
            torch._foreach_copy_([row[i] for row in rows], [gradient.flatten() for gradient in gradients])
    kernel = sum((_gram(row) for row in rows), torch.zeros((), dtype=torch.float64, device=rows[0].device))
    values: Values = kernel.cpu().numpy()
    return values


def _gram(rows: Tensor) -> Tensor:  # [N, weights] -> [N, N] float64
    rows = rows.double()
    return rows @ rows.T


def _condition(kernel: Values) -> float:
    if not np.isfinite(kernel).all():
        return math.nan
    eigenvalues = np.linalg.eigvalsh(kernel)
    smallest, largest = float(eigenvalues[0]), float(eigenvalues[-1])
    singular = smallest <= len(kernel) * np.finfo(np.float64).eps * largest
    return math.inf if singular else largest / smallest


PROXIES = (
    Proxy(
        name="ntk_condition",
        direction="lower",
        scope="function",
        cost="per-sample",
        recipe=RECIPE,
        statistics=(CustomStatistic("ntk_condition", "", "network", ntk_condition, blind=True),),
        reduce=only("ntk_condition"),
        unit="",
        formula="largest over smallest eigenvalue of G G^T, row i of G the gradient of the sum of sample i's outputs",
        paper=PAPER,
    ),
)
