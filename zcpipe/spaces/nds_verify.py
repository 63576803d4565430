"""The networks of NDS held against the counts that its official files state.

Each network is built whole on the meta device and run once with a hook on every layer, which counts what the layer
does; nothing of that comes from the space's own ``size``, which is held against it, too. What the files call ``flops``
was counted in two ways:

- the standard families: multiply-accumulates, 5 for each output of a batch norm, and the classifier's biases;
- the cell spaces: multiply-accumulates, 1 for each element that enters a ReLU, the elements that each output of a pool
  is made of (all that it reads, for the global one), and the classifier's biases. Batch norms count nothing, and a
  dilated convolution as if its output were as large as its padding makes that of one without dilation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zcpipe.spaces.anynet import ANYNET_SPACES
from zcpipe.spaces.base import Architecture, Dataset, Entry, Verification
from zcpipe.spaces.nds_files import Family, Progress, count_of, dataset_of

_STANDARD = {space.family for space in ANYNET_SPACES}


@dataclass
class _Counter:
    """Counts what layers do for one image."""

    macs: int = 0
    undilated: int = 0  # multiply-accumulates, as the cell spaces' files have them
    normed: int = 0
    rectified: int = 0
    pooled: int = 0
    biases: int = 0

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        match layer:
            case nn.Conv2d():
                weights, (height, width) = layer.weight[0].numel(), output.shape[2:]
                self.macs += weights * layer.out_channels * height * width
                self.undilated += weights * layer.out_channels * math.prod(_undilated_sides(layer, inputs[0]))
            case nn.Linear():
                self.macs += layer.weight.numel()
                self.undilated += layer.weight.numel()
                self.biases += layer.out_features
            case nn.BatchNorm2d():
                self.normed += output[0].numel()
            case nn.ReLU():
                self.rectified += inputs[0][0].numel()
            case nn.MaxPool2d() | nn.AvgPool2d():
                kernel = layer.kernel_size if isinstance(layer.kernel_size, tuple) else (layer.kernel_size,) * 2
                self.pooled += math.prod(kernel) * output[0].numel()
            case nn.AdaptiveAvgPool2d():
                self.pooled += inputs[0][0].numel()

    def flops(self, family: str) -> int:
        """Return what the files of a family call so."""
        if family in _STANDARD:
            return self.macs + 5 * self.normed + self.biases
        return self.undilated + self.rectified + self.pooled + self.biases


def _undilated_sides(layer: nn.Conv2d, images: Tensor) -> Iterator[int]:
    """Yield the height and width that a convolution's output would have without its dilation."""
    for axis, (kernel, stride) in enumerate(zip(layer.kernel_size, layer.stride, strict=True)):
        yield (images.shape[2 + axis] + 2 * int(layer.padding[axis]) - kernel) // stride + 1


def verify(entries: Sequence[Entry], families: Mapping[str, Family], progress: Progress | None) -> Verification:
    """Count the networks of entries, and compare with the entries and with the spaces' own counts.

    Raises:
        DataError: an entry states no counts, or nothing says which data set its file is of.
    """
    mismatches: list[dict[str, Any]] = []
    params_equal = macs_equal = 0
    for done, entry in enumerate(entries, start=1):
        dataset = dataset_of(entry)
        arch: Any = entry.arch
        family = families[arch.family]
        expected = {"params": count_of(entry, "params"), "flops": count_of(entry, "flops")}
        params, counter = _count(family, arch, family.datasets[dataset])
        size = family.size(arch, dataset)
        got = {"params": params, "flops": counter.flops(family.family), "macs": counter.macs}
        analytic = {"params": size.params, "flops": family.published_flops(arch, dataset), "macs": size.macs}
        params_agree = got["params"] == analytic["params"] == expected["params"]
        macs_agree = got["flops"] == analytic["flops"] == expected["flops"] and got["macs"] == analytic["macs"]
        params_equal += params_agree
        macs_equal += macs_agree
        if not (params_agree and macs_agree):
            mismatches.append(
                {
                    "file": str(entry.file),
                    "entry": entry.position,
                    "arch": str(arch),
                    "got": {**got, "analytic": analytic},
                    "expected": expected,
                }
            )
        if progress is not None:
            progress(done, len(entries))
    return Verification(len(entries), params_equal, macs_equal, tuple(mismatches))


def _count(family: Family, arch: Architecture, dataset: Dataset) -> tuple[int, _Counter]:
    """Build a network, and count its parameters and what its layers do."""
    with torch.device("meta"):
        model = family.build(arch, dataset.name, full=True).model.eval()
    counter = _Counter()
    for module in model.modules():
        module.register_forward_hook(counter)
    with torch.no_grad():
        model(torch.empty(1, *dataset.input_shape, device="meta"))
    return sum(parameter.numel() for parameter in model.parameters()), counter
