"""How images lie in memory where they are scored."""

from __future__ import annotations

import torch
from torch import Tensor


def image_format(device: torch.device | str) -> torch.memory_format:
    """Return the layout in which images are scored on a device.

    channels_last on the CPU, which the native operations are written for. Contiguous on CUDA: in float32 cuDNN's
    convolutions are made for it, and the gradient of a padded average pool in channels_last is wrong there in torch
    2.13 (pytorch issue 188344).
    """
    return torch.channels_last if torch.device(device).type == "cpu" else torch.contiguous_format


def as_images(x: Tensor) -> Tensor:
    """Return images [N, C, H, W] in the layout in which they are scored, and any other tensor as it is."""
    return x.contiguous(memory_format=image_format(x.device)) if x.ndim == 4 else x
