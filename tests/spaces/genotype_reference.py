"""A cell network as the papers write it down, in plain torch, for comparison: every edge is there and runs."""

import torch
import torch.nn.functional as F
from torch import nn


class Reference(nn.Module):
    """The DARTS stack of normal and reduction cells; weighted layers stand in the order in which texts name them."""

    def __init__(self, arch, dataset):
        super().__init__()
        width, self.arch, self.large = arch.width, arch, dataset.name == "imagenet"
        if self.large:
            half = width // 2
            self.stem = nn.ModuleList(
                [conv_norm(3, half, 3, 2), conv_norm(half, width, 3, 2), conv_norm(width, width, 3, 2)]
            )
            older = newer = width
        else:
            self.stem = nn.ModuleList([conv_norm(3, 3 * width, 3, 1)])
            older = newer = 3 * width
        self.cells, halved = nn.ModuleList(), self.large
        for i in range(arch.depth):
            reduction = i in (arch.depth // 3, 2 * arch.depth // 3)
            width *= 1 + reduction
            cell = ReferenceCell(arch.reduce if reduction else arch.normal, older, newer, width, reduction, halved)
            self.cells.append(cell)
            older, newer, halved = newer, width * len(cell.concat), reduction
        self.linear = nn.Linear(newer, dataset.classes)

    def forward(self, x):
        if self.large:
            older = self.stem[1](F.relu(self.stem[0](x)))
            newer = self.stem[2](F.relu(older))
        else:
            older = newer = self.stem[0](x)
        for cell in self.cells:
            older, newer = newer, cell(older, newer)
        return self.linear(newer.mean((2, 3)))


class ReferenceCell(nn.Module):
    def __init__(self, cell, older, newer, width, reduction, halved):
        super().__init__()
        self.sources, self.concat = [source for _, source in cell.edges], cell.concat
        self.inputs = nn.ModuleList([Factorized(older, width) if halved else Edge(older, width, "conv_1x1", 1)])
        self.inputs.append(Edge(newer, width, "conv_1x1", 1))
        self.edges = nn.ModuleList()
        for operation, source in cell.edges:
            stride = 2 if reduction and source < 2 else 1
            factorized = operation == "skip_connect" and stride == 2
            self.edges.append(Factorized(width, width) if factorized else Edge(width, width, operation, stride))

    def forward(self, older, newer):
        nodes = [layer(x) for layer, x in zip(self.inputs, (older, newer), strict=True)]
        for i in range(0, len(self.edges), 2):
            pair = zip(self.edges[i : i + 2], self.sources[i : i + 2], strict=True)
            nodes.append(sum(edge(nodes[source]) for edge, source in pair))
        return torch.cat([nodes[node] for node in self.concat], dim=1)


class Edge(nn.Module):
    def __init__(self, inputs, outputs, operation, stride):
        super().__init__()
        self.operation, self.stride, layers = operation, stride, []
        kind, _, kernel = operation.rpartition("_")
        if kind in ("sep_conv", "dil_conv", "dil_sep_conv"):
            k, dilation = int(kernel[0]), 2 if kind.startswith("dil") else 1
            padding = (k - 1) * dilation // 2
            for step in (stride,) if kind == "dil_conv" else (stride, 1):
                deep = nn.Conv2d(inputs, inputs, k, step, padding, dilation, groups=inputs, bias=False)
                layers.append([deep, nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)])
        elif operation in ("conv_1x1", "conv_3x3"):
            k = int(kernel[0])
            layers.append([nn.Conv2d(inputs, outputs, k, stride, (k - 1) // 2, bias=False), nn.BatchNorm2d(outputs)])
        elif operation in ("conv_3x1_1x3", "conv_7x1_1x7"):
            k = int(kernel[-1])
            row = nn.Conv2d(inputs, outputs, (1, k), (1, stride), (0, (k - 1) // 2), bias=False)
            column = nn.Conv2d(inputs, outputs, (k, 1), (stride, 1), ((k - 1) // 2, 0), bias=False)
            layers.append([row, column, nn.BatchNorm2d(outputs)])
        self.layers = nn.ModuleList(nn.Sequential(*chain) for chain in layers)

    def forward(self, x):
        if self.operation == "none":
            return 0 * x[:, :, :: self.stride, :: self.stride]
        if self.operation == "skip_connect":
            return x
        if "pool" in self.operation:
            k = int(self.operation[-1])
            if self.operation.startswith("max"):
                return F.max_pool2d(x, k, self.stride, k // 2)
            ones = torch.ones_like(x)
            total, counted = (k * k * F.avg_pool2d(F.pad(y, [k // 2] * 4), k, self.stride) for y in (x, ones))
            return total / counted
        for chain in self.layers:
            x = chain(F.relu(x))
        return x


class Factorized(nn.Module):
    """Half of the channels from the pixels at even places, half from those at odd ones, beyond the border zero."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.even = nn.Conv2d(inputs, outputs // 2, 1, bias=False)
        self.odd = nn.Conv2d(inputs, outputs // 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x):
        x = F.relu(x)
        shifted = F.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:]
        return self.norm(torch.cat([self.even(x[:, :, ::2, ::2]), self.odd(shifted[:, :, ::2, ::2])], dim=1))


def conv_norm(inputs, outputs, kernel, stride):
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs))


def leaves(model, kinds=(nn.Conv2d, nn.BatchNorm2d, nn.Linear)):
    """The layers with weights by name, in order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def copy_weights(source, target):
    """Give one network the weights of another whose layers stand in the same order."""
    for ours, theirs in zip(leaves(target).values(), leaves(source).values(), strict=True):
        ours.load_state_dict(theirs.state_dict())
