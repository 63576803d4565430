"""The baseline: AZ-NAS as one would write it in plain eager PyTorch, following the paper step by step.

NCHW layout, the full cell with its dead edges, `torch.bernoulli` probes, one float32 eigenvalue call per map. Its CPU
time was compared with the published code's; `python -m benchmarks.aznas --peer PATH` repeats that.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zcpipe.spaces.nasbench201 import CELLS_PER_STAGE, EDGES, STAGES, WIDTH, Cell


class _Zero(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mul(0.0)


def _relu_conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(nn.ReLU(), conv, nn.BatchNorm2d(outputs))


def _operation(name: str, channels: int) -> nn.Module:
    return {
        "none": _Zero,
        "skip_connect": nn.Identity,
        "nor_conv_1x1": lambda: _relu_conv_bn(channels, channels, 1),
        "nor_conv_3x3": lambda: _relu_conv_bn(channels, channels, 3),
        "avg_pool_3x3": lambda: nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False),
    }[name]()


class _Cell(nn.Module):
    def __init__(self, arch: Cell, channels: int) -> None:
        super().__init__()
        self.edges = nn.ModuleList(_operation(name, channels) for name in arch.operations)

    def forward(self, x: Tensor) -> Tensor:
        nodes = [x]
        for target in (1, 2, 3):
            terms = [self.edges[i](nodes[s]) for i, (s, t) in enumerate(EDGES) if t == target]
            nodes.append(sum(terms[1:], terms[0]))
        return nodes[-1]


class _Reduction(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.a, self.b = _relu_conv_bn(inputs, outputs, 3, 2), _relu_conv_bn(outputs, outputs, 3)
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(inputs, outputs, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)) + self.shortcut(x)


class EagerNetwork(nn.Module):
    """NAS-Bench-201's network, up to its last map, with every edge of the cell in it."""

    def __init__(self, arch: Cell, cells_per_stage: int = CELLS_PER_STAGE) -> None:
        super().__init__()
        stem = nn.Conv2d(3, WIDTH, 3, padding=1, bias=False)
        self.blocks = nn.ModuleList([nn.Sequential(stem, nn.BatchNorm2d(WIDTH))])
        for stage in range(STAGES):
            width = WIDTH << stage
            if stage:
                self.blocks.append(_Reduction(width // 2, width))
            self.blocks.extend(_Cell(arch, width) for _ in range(cells_per_stage))

    def maps(self, x: Tensor) -> list[Tensor]:
        """Return the 18 block maps."""
        features = []
        for block in self.blocks:
            x = block(x)
            features.append(x)
        return features


def eager_aznas(model: EagerNetwork, batch_size: int = 64, resolution: int = 32) -> dict[str, float]:
    """Initialise the network, draw a batch, and return the three scores (complexity needs no network).

    Maps of transformers are tokens, [N, T, C], of which progressivity means nothing.
    """
    model.train()
    transformer = any(isinstance(module, nn.LayerNorm) for module in model.modules())
    for module in model.modules():
        if isinstance(module, nn.Conv2d) or (transformer and isinstance(module, nn.Linear)):  # others only classify
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
    device = next(model.parameters()).device
    features = model.maps(torch.randn(batch_size, 3, resolution, resolution, device=device))
    entropies = [_entropy(feature.detach()) for feature in features]
    gains = [after - before for before, after in itertools.pairwise(entropies)]
    pairs = [_pair(features[i - 1], features[i]) for i in reversed(range(1, len(features)))]
    return {
        "expressivity": _or_worst(sum(entropies)),
        "progressivity": _or_worst(min(gains)),
        "trainability": _or_worst(sum(pairs) / len(pairs)),
    }


def _or_worst(score: float) -> float:
    return -math.inf if math.isnan(score) else score


def _rows(feature: Tensor) -> Tensor:  # [N, C, H, W] or [N, T, C] -> [pixels or tokens of all samples, C]
    return (feature.permute(0, 2, 3, 1) if feature.dim() == 4 else feature).flatten(0, -2)


def _entropy(feature: Tensor) -> float:
    rows = _rows(feature)
    rows = rows - rows.mean(0, keepdim=True)
    eigenvalues = torch.linalg.eigvalsh(rows.T @ rows / rows.shape[0])
    share = eigenvalues / eigenvalues.sum()
    return float((-share * torch.log(share + 1e-8)).sum())


def _pair(f_in: Tensor, f_out: Tensor) -> float:
    g_out = (torch.bernoulli(torch.full_like(f_out, 0.5)) - 0.5) * 2
    (g_in,) = torch.autograd.grad(f_out, f_in, g_out, allow_unused=True, materialize_grads=True)
    if g_in.shape == g_out.shape and bool((g_in == g_out).all()):
        return -math.inf
    if g_in.dim() == 4 and g_in.shape[2] != g_out.shape[2]:
        g_in = F.pixel_unshuffle(g_in, g_in.shape[2] // g_out.shape[2])
    rows_in, rows_out = _rows(g_in), _rows(g_out)
    product = rows_in.T @ rows_out / rows_out.shape[0]
    sigma = float(torch.linalg.svdvals(product if product.shape[0] >= product.shape[1] else product.T)[0])
    return -sigma - 1 / (sigma + 1e-6) + 2
