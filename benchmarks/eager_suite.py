"""The baseline: the 13 proxies of NAS-Bench-Suite-Zero in plain eager PyTorch, one by one as the published suites do.

Nothing is shared: each measure makes its own copy of the batch and a deep copy of the network, runs its own forward and
backward passes and collects garbage afterwards (l2_norm does without a copy; flops and params each run one image
through a copy and collect nothing). NCHW layout, the full cell with its dead edges. Values and CPU time were held
against the published code's; `python -m benchmarks.suite --peer CHECKOUT` repeats that.
"""

from __future__ import annotations

import copy
import gc
import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.eager import EagerNetwork
from zcpipe.spaces.nasbench201 import CELLS_PER_STAGE, STAGES, WIDTH, Cell

Measure = Callable[[nn.Module, Tensor, Tensor], float]

_EPSILON = 1e-5


class SuiteNetwork(nn.Module):
    """NAS-Bench-201's network with its classifier."""

    def __init__(self, arch: Cell, classes: int = 10, cells_per_stage: int = CELLS_PER_STAGE) -> None:
        super().__init__()
        width = WIDTH << (STAGES - 1)
        self.blocks = EagerNetwork(arch, cells_per_stage).blocks
        self.lastact = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU())
        self.global_pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:  # [N, 3, H, W] -> [N, classes]
        """Return the logits."""
        for block in self.blocks:
            x = block(x)
        return self.classifier(self.global_pooling(self.lastact(x)).flatten(1))

    def forward_before_global_avg_pool(self, x: Tensor) -> Tensor:
        """Return what enters the pooling; the name is the one that the published code calls."""
        maps: list[Tensor] = []
        hook = self.global_pooling.register_forward_hook(lambda module, inputs, output: maps.append(inputs[0]))
        self(x)
        hook.remove()
        return maps[0]

    def take(self, state: Mapping[str, Tensor]) -> SuiteNetwork:
        """Take over weights named as in the benchmark's inference model; what ``state`` lacks stays as it is."""
        loaded = self.load_state_dict({_own_name(name): value for name, value in state.items()}, strict=False)
        if loaded.unexpected_keys:
            raise KeyError(f"no such weights in the network: {loaded.unexpected_keys}")
        return self


def _own_name(name: str) -> str:
    for theirs, ours in ((".layers.", ".edges."), (".op.", "."), ("conv_", ""), ("downsample", "shortcut")):
        name = name.replace(theirs, ours)
    part, _, rest = name.partition(".")
    if part == "stem":
        return f"blocks.0.{rest}"
    if part == "cells":
        cell, _, rest = rest.partition(".")
        return f"blocks.{int(cell) + 1}.{rest}"
    return name


def measured(name: str, model: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    """Return one measure of a network in train mode, on a batch [N, 3, H, W] with classes [N]; NaN if undefined."""
    if name == "l2_norm":
        return MEASURES[name](model, inputs.clone(), targets.clone())
    own = copy.deepcopy(model)
    value = MEASURES[name](own, inputs.clone(), targets.clone())
    del own
    if name not in ("flops", "params"):
        gc.collect()
    return value


def _layers(net: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    return [module for module in net.modules() if isinstance(module, nn.Conv2d | nn.Linear)]


def _total(terms: list[Tensor]) -> float:
    return float(sum(term.detach().sum() for term in terms))


def _loss_backward(net: nn.Module, inputs: Tensor, targets: Tensor) -> None:
    F.cross_entropy(net(inputs), targets).backward()


def _grad_norm(net: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    _loss_backward(net, inputs, targets)
    return _total([layer.weight.grad.norm() for layer in _layers(net)])


def plain_terms(net: nn.Module, inputs: Tensor, targets: Tensor) -> list[Tensor]:
    """Return g * w of every layer, of which plain is the sum."""
    _loss_backward(net, inputs, targets)
    return [layer.weight.detach() * layer.weight.grad for layer in _layers(net)]


def _masked_forward(layer: nn.Conv2d | nn.Linear) -> Callable[[Tensor], Tensor]:
    if isinstance(layer, nn.Linear):
        return lambda x: F.linear(x, layer.weight * layer.mask, layer.bias)
    return lambda x: F.conv2d(x, layer.weight * layer.mask, layer.bias, layer.stride, layer.padding)


def _snip(net: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    for layer in _layers(net):
        layer.mask = nn.Parameter(torch.ones_like(layer.weight))
        layer.weight.requires_grad_(False)
        layer.forward = _masked_forward(layer)
    _loss_backward(net, inputs, targets)
    return _total([layer.mask.grad.abs() for layer in _layers(net)])


def grasp_terms(net: nn.Module, inputs: Tensor, targets: Tensor) -> list[Tensor]:
    """Return -w * (H g) of every layer, of which grasp is the sum: two whole passes, one differentiated again."""
    weights = [layer.weight for layer in _layers(net)]
    fixed = torch.autograd.grad(F.cross_entropy(net(inputs), targets), weights)
    again = torch.autograd.grad(F.cross_entropy(net(inputs), targets), weights, create_graph=True)
    sum((a * b).sum() for a, b in zip(fixed, again, strict=True)).backward()
    return [-weight.detach() * weight.grad for weight in weights]


def _watch_outputs(layer: nn.Conv2d | nn.Linear, saliencies: dict[nn.Module, Tensor]) -> None:
    """Pass a layer's output through an identity whose backward hook reads the gradient there."""
    identity, kept = nn.Identity(), []

    def through_identity(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        kept.append(output.detach())
        return identity(output)

    def read(module: nn.Module, grad_input: tuple[Tensor, ...], grad_output: tuple[Tensor, ...]) -> None:
        product = kept.pop() * grad_output[0]
        per_channel = product.sum((2, 3)) if product.ndim == 4 else product  # [N, C]
        saliencies[layer] = per_channel.square().mean(0) / 2

    layer.register_forward_hook(through_identity)
    identity.register_full_backward_hook(read)


def _fisher(net: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    saliencies: dict[nn.Module, Tensor] = {}
    for layer in _layers(net):
        _watch_outputs(layer, saliencies)
    _loss_backward(net, inputs, targets)
    # A channel's saliency is written out for each of its weights, one channel at a time, and only then summed.
    return _total(
        [
            torch.stack([torch.full(layer.weight.shape[1:], float(value)) for value in saliencies[layer].abs()])
            for layer in _layers(net)
        ]
    )


def _synflow(net: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.forward = lambda x: x
    net.double()
    with torch.no_grad():
        for value in net.state_dict().values():
            value.abs_()
    net(torch.ones(1, *inputs.shape[1:], dtype=torch.float64)).sum().backward()
    return _total([(layer.weight * layer.weight.grad).abs() for layer in _layers(net)])


def _input_gradient(net: nn.Module, inputs: Tensor) -> np.ndarray:  # [N, D]
    inputs.requires_grad_()
    output = net(inputs)
    output.backward(torch.ones_like(output))
    return inputs.grad.flatten(1).numpy()


def _jacov(net: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    with np.errstate(invalid="ignore", divide="ignore"):
        correlations = np.corrcoef(_input_gradient(net, inputs))
    if not np.isfinite(correlations).all():
        return math.nan
    eigenvalues = np.linalg.eigvals(correlations) + _EPSILON
    return float(-(np.log(eigenvalues) + 1 / eigenvalues).sum().real)


def _epe_nas(net: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    rows, labels = _input_gradient(net, inputs), targets.numpy()
    with np.errstate(invalid="ignore", divide="ignore"):
        classes = [np.corrcoef(rows[labels == label]) for label in np.unique(labels)]
        return float(sum(abs(np.log(np.abs(one) + _EPSILON).sum()) for one in classes))


def _nwot(net: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    kernel = np.zeros((len(inputs), len(inputs)))

    def agreements(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal kernel
        code = (args[0].flatten(1) > 0).float()
        kernel = kernel + (code @ code.T).numpy() + ((1 - code) @ (1 - code).T).numpy()

    for module in net.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(agreements)
    net(inputs)
    return float(np.linalg.slogdet(kernel)[1])


@torch.no_grad()
def _zen(net: SuiteNetwork, inputs: Tensor, targets: Tensor) -> float:
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
    images, others = torch.randn(inputs.shape), torch.randn(inputs.shape)
    before = net.forward_before_global_avg_pool(images)
    after = net.forward_before_global_avg_pool(images + 0.01 * others)
    score = (before - after).abs().sum((1, 2, 3)).mean().log()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            score = score + module.running_var.mean().sqrt().log()
    return float(score)


def _l2_norm(net: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    return _total([layer.weight.norm() for layer in _layers(net)])


def _operations(module: nn.Module, x: Tensor, output: Tensor) -> int:
    """Operations of a leaf as the published suite counts them, batch norm, ReLU and pooling included."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        return module.weight[0].numel() * output.numel()
    if isinstance(module, nn.BatchNorm2d):
        return 2 * x.numel()
    if isinstance(module, nn.ReLU):
        return x.numel()
    if isinstance(module, nn.AvgPool2d):
        kernel = module.kernel_size
        return output.numel() * kernel * kernel
    if isinstance(module, nn.AdaptiveAvgPool2d):  # to one position; it counts one row and one column too many
        return output.numel() * (x.shape[2] + 1) * (x.shape[3] + 1)
    return 0


def _counted(net: nn.Module, inputs: Tensor) -> tuple[float, float]:
    """Run one image through a network and return the millions of parameters and operations of its leaves."""
    params = operations = 0

    def count(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal params, operations
        params += sum(parameter.numel() for parameter in module.parameters())
        operations += _operations(module, args[0], output)

    for module in net.modules():
        if not list(module.children()):
            module.register_forward_hook(count)
    net.eval()(torch.rand(1, *inputs.shape[1:], dtype=inputs.dtype))
    return params / 1e6, operations / 1e6


MEASURES: dict[str, Measure] = {
    "epe_nas": _epe_nas,
    "fisher": _fisher,
    "flops": lambda net, inputs, targets: _counted(net, inputs)[1],
    "grad_norm": _grad_norm,
    "grasp": lambda net, inputs, targets: _total(grasp_terms(net, inputs, targets)),
    "jacov": _jacov,
    "l2_norm": _l2_norm,
    "nwot": _nwot,
    "params": lambda net, inputs, targets: _counted(net, inputs)[0],
    "plain": lambda net, inputs, targets: _total(plain_terms(net, inputs, targets)),
    "snip": _snip,
    "synflow": _synflow,
    "zen": _zen,
}
