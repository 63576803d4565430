"""VKDNW (Tybl & Neumann, CVPR 2025): the shape of the spectrum of the Fisher information.

Settings are those of the published code for NAS-Bench-201: the first 128 parameter tensors in the order of
``named_parameters``, norm layers and biases among them, of each the first element (its other script draws 128 tensors
at random). In three things this keeps to the Fisher information where the code departs from it. The code multiplies the
Jacobian J by the Cholesky factor L of the class covariance S = L L^T where L^T is due, so that its matrix is
J^T L^T L J instead of J^T S J, which has another spectrum. It works in float32, with a smoothing of 0.05 rounded to
half precision. And it adds 1e-10 to the sum of the deciles, so that the entropy of a very small spectrum depends on its
scale.

The published single score is the number of layers plus this entropy, which is below ln 9 and so orders networks of one
depth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zcpipe.errors import UnsupportedError
from zcpipe.proxies.base import CustomStatistic, Network, Proxy, Recipe, Values, asking, tensor_of
from zcpipe.proxies.samples import gradients_of, part, require_gradient, require_real
from zcpipe.spaces.layers import computes_as

PAPER = (
    "Tybl & Neumann, Training-free Neural Architecture Search through Variance of Knowledge of Deep Network Weights, "
    "CVPR 2025"
)
RECIPE = Recipe(init="kaiming_normal", inputs="noise", norm="running")

_TENSORS = 128
_SMOOTHING = 0.05
_EPSILON = 1e-10  # inside the logarithm only


def vkdnw(network: Network) -> list[float]:
    """Entropy, in nats, of the deciles of the Fisher information's singular values, normalised to sum 1.

    The Fisher information is that of the network's class probabilities with respect to one scalar of each of the first
    128 parameter tensors, its first element: F = mean over samples of J^T (diag(p) - p p^T) J, J the Jacobian of one
    sample's outputs, p = 0.95 softmax(outputs) + 0.05 / classes. Deciles are the quantiles 0.1, ..., 0.9, interpolated
    linearly. Tensors of dead layers, which the output does not depend on, are not among them.

    Returns:
        The entropy, between 0 and ln 9; 0 where no such scalar moves an output; NaN where outputs or their derivatives
        are not finite.

    Raises:
        UnsupportedError: the network has no parameters, one of these is complex, its output does not depend on them or
            is not [N, classes].
    """
    logits, jacobian = output_jacobian(network)
    if not (np.isfinite(logits).all() and np.isfinite(jacobian).all()):
        return [math.nan]
    return [decile_entropy(np.abs(np.linalg.eigvalsh(fisher_information(logits, jacobian))))]


def fisher_information(logits: Values, jacobian: Values) -> Values:  # [N, K], [N, K, P] -> [P, P]
    """Return the mean over samples of J^T (diag(p) - p p^T) J, see `vkdnw`."""
    shares = np.exp(logits - logits.max(1, keepdims=True))
    p = (1 - _SMOOTHING) * shares / shares.sum(1, keepdims=True) + _SMOOTHING / logits.shape[1]
    # The same as a sum of squares, which rounding does not make indefinite.
    centred = jacobian - np.einsum("nk,nkp->np", p, jacobian)[:, None]
    rows = (np.sqrt(p)[:, :, None] * centred).reshape(-1, jacobian.shape[2])
    information: Values = rows.T @ rows / len(logits)
    return information


def decile_entropy(spectrum: Values) -> float:
    """Return -sum q ln(q + 1e-10) over the nine deciles q of the singular values, divided by their sum."""
    deciles = np.quantile(spectrum, np.arange(1, 10) / 10)
    if deciles.sum() == 0:
        return 0.0
    q = deciles / deciles.sum()
    return float(-(q * np.log(q + _EPSILON)).sum())


def output_jacobian(network: Network) -> tuple[Values, Values]:  # [N, K], [N, K, P] float64
    """Return the outputs, and each sample's Jacobian with respect to the scalars of `vkdnw`.

    In eval mode the samples do not touch each other, so one forward and one backward of the whole batch for each class
    serve all. That this holds for the network is proved on its first sample, computed alone; otherwise each sample goes
    through alone.

    Raises:
        UnsupportedError: see `vkdnw`.
    """
    samples = network.inputs[0].shape[0]
    parameters = list(network.parameters)[:_TENSORS]
    if not parameters:
        raise UnsupportedError("the network has no parameters")
    require_real(parameters)
    first = _alone(network, parameters, 0)
    together = _together(network, parameters)
    if together is not None and _agree(first, together):
        return together
    rows = [first, *(_alone(network, parameters, i) for i in range(1, samples))]
    return np.concatenate([logits for logits, _ in rows]), np.concatenate([jacobian for _, jacobian in rows])


def _agree(first: tuple[Values, Values], together: tuple[Values, Values]) -> bool:
    """Whether a batch's first rows are those of the first sample alone, but for rounding in float32."""
    for expected, got in zip(first, together, strict=True):
        size = np.abs(expected[0])
        scale = size.max(0, initial=0.0) + 1e-3 * size.max(initial=0.0)
        if not (np.abs(got[0] - expected[0]) <= 1e-3 * scale).all():
            return False
    return True


def _alone(network: Network, parameters: Sequence[Tensor], i: int) -> tuple[Values, Values]:  # [1, K], [1, K, P]
    everything = [parameter for parameter in network.model.parameters() if parameter.is_floating_point()]
    with asking(everything):  # an output that depends on later parameters only is one all the same
        logits = _logits(tensor_of(network.model(*part(network.inputs, slice(i, i + 1)))), 1)
        require_gradient(logits)
        rows = [
            torch.stack([gradient.flatten()[0] for gradient in gradients_of(logit, parameters, keep_graph=True)])
            for logit in logits[0].unbind()
        ]
    return _float64(logits), _float64(torch.stack(rows)[None])


def _together(network: Network, parameters: Sequence[Tensor]) -> tuple[Values, Values] | None:
    """Return outputs and Jacobians of the whole batch; None where a parameter's effect is not known by rule."""
    samples = network.inputs[0].shape[0]
    owners = {id(p): (m, name) for m in network.model.modules() for name, p in m._parameters.items() if p is not None}
    effects = [effect for p in parameters if (effect := _effect(*owners[id(p)])) is not None]
    if len(effects) < len(parameters):
        return None
    shifts = [parameter.new_zeros(samples).requires_grad_() for parameter in parameters]
    handles = []
    try:
        for parameter, effect, shift in zip(parameters, effects, shifts, strict=True):
            handles.append(owners[id(parameter)][0].register_forward_hook(_shifted(effect, shift)))
        with torch.enable_grad():
            logits = _logits(tensor_of(network.model(*network.inputs)), samples)
            rows = [torch.stack(gradients_of(column, shifts, keep_graph=True), -1) for column in logits.sum(0).unbind()]
    except _UnknownLayoutError:
        return None
    finally:
        for handle in handles:
            handle.remove()
    return _float64(logits), _float64(torch.stack(rows, 1))


class _UnknownLayoutError(Exception):
    """A layer is not called with the whole batch as its rule expects it."""


@dataclass(frozen=True)
class _Effect:
    """How the first element of a parameter enters the first channel of a module's output: times ``factor``, added."""

    channels: int  # which dimension of the output
    dimensions: int  # of the input at least, the batch's included
    factor: Callable[[Tensor], Tensor | float]  # of the module's input; as the output's first channel


def _effect(module: nn.Module, name: str) -> _Effect | None:
    """Return the effect of a parameter of a module that we know."""
    if not computes_as(module, nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm):
        return None
    channels = -1 if isinstance(module, (nn.Linear, nn.LayerNorm)) else 1
    dimensions = 4 if isinstance(module, nn.Conv2d) else 2
    if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) != 1:
        return None
    if name == "bias":
        return _Effect(channels, dimensions, lambda x: 1.0)
    if isinstance(module, nn.Conv2d):
        known = module.padding_mode == "zeros" and not isinstance(module.padding, str)
        return _Effect(channels, dimensions, lambda x: _first_tap(module, x)) if known else None
    if isinstance(module, nn.Linear):
        return _Effect(channels, dimensions, lambda x: x[..., 0])
    if isinstance(module, nn.LayerNorm):
        return _Effect(channels, dimensions, lambda x: F.layer_norm(x, module.normalized_shape, eps=module.eps)[..., 0])
    if not isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        return None
    mean, variance = module.running_mean, module.running_var
    if mean is None or variance is None:
        return None
    scale = (variance[0] + module.eps).rsqrt()
    return _Effect(channels, dimensions, lambda x: (x[:, 0] - mean[0]) * scale)


def _first_tap(conv: nn.Conv2d, x: Tensor) -> Tensor:  # [N, C, H, W] -> [N, H', W']
    """Return what the first element of a kernel meets: the first channel at the top left of every window."""
    top, left = (int(padding) for padding in conv.padding)
    down, right = conv.stride
    padded = F.pad(x[:, 0], (left, left, top, top))
    # Where the rest of a kernel does not fit any more, there is no window.
    height, width = (
        size - dilation * (kernel - 1)
        for size, dilation, kernel in zip(padded.shape[1:], conv.dilation, conv.kernel_size, strict=True)
    )
    return padded[:, :height:down, :width:right]


def _shifted(effect: _Effect, shift: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    """Return a hook that makes a module's output depend on its parameter's shift in each sample."""

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        # A layer that takes samples one by one has other dimensions where its rule looks for the batch and channels.
        if not args or args[0].ndim < effect.dimensions or output.shape[0] != shift.shape[0]:
            raise _UnknownLayoutError
        factor = effect.factor(args[0].detach())
        result: Tensor = _Shift.apply(output, shift, factor, effect.channels)  # type: ignore[no-untyped-call]
        return result

    return hook


class _Shift(torch.autograd.Function):
    """The output itself, as the function of a shift of zero that is added, times a factor, to the first channel."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, shift: Tensor, factor: Tensor | float, channels: int) -> Tensor:  # noqa: ANN401
        ctx.factor, ctx.channels = factor, channels
        ctx.mark_dirty(output)  # a view could not be added to in place later, as residual networks do
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:  # noqa: ANN401
        effect = grad.select(ctx.channels, 0) * ctx.factor
        return grad, effect.flatten(1).sum(1) if effect.ndim > 1 else effect, None, None


def _logits(output: Tensor, samples: int) -> Tensor:  # [N, K]
    if output.ndim != 2 or len(output) != samples:
        raise UnsupportedError(f"outputs must be [{samples}, classes], got shape {tuple(output.shape)}")
    return output


def _float64(tensor: Tensor) -> Values:
    values: Values = tensor.detach().double().cpu().numpy()
    return values


PROXIES = (
    Proxy(
        name="vkdnw",
        direction="higher",
        scope="function",
        cost="per-sample",
        recipe=RECIPE,
        statistics=(
            CustomStatistic("vkdnw_entropy", "nat", "network", vkdnw),
            CustomStatistic("vkdnw_layers", "", "network", lambda network: [float(sum(network.live))]),
        ),
        reduce=lambda statistics: float(statistics["vkdnw_layers"][0] + statistics["vkdnw_entropy"][0]),
        unit="",
        formula="number of layers + entropy of the deciles of the Fisher information's spectrum, over 128 scalars",
        paper=PAPER,
    ),
)
