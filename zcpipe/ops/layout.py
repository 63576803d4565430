"""How images lie in memory where they are scored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_CONTIGUOUS = ContextVar("contiguous", default=False)


@contextmanager
def contiguous_images() -> Iterator[None]:
    """Inside, images are scored in torch's own layout on every device, for networks that take their maps for such."""
    token = _CONTIGUOUS.set(True)
    try:
        yield
    finally:
        _CONTIGUOUS.reset(token)


def in_contiguous_images() -> bool:
    """Whether this runs inside `contiguous_images`."""
    return _CONTIGUOUS.get()


def needs_other_layout(message: str) -> bool:
    """Whether it is a tensor's layout that torch complains of: a ``view`` of a map as if it were contiguous."""
    return "view size is not compatible" in message


def image_format(device: torch.device | str) -> torch.memory_format:
    """Return the layout in which images are scored on a device.

    channels_last on the CPU, which the native operations are written for. Contiguous on CUDA: in float32 cuDNN's
    convolutions are made for it, and the gradient of a padded average pool in channels_last is wrong there in torch
    2.13 (pytorch issue 188344), and on the CPU inside `contiguous_images`.
    """
    native = torch.device(device).type == "cpu" and not in_contiguous_images()
    return torch.channels_last if native else torch.contiguous_format


def as_images(x: Tensor) -> Tensor:
    """Return images [N, C, H, W] in the layout in which they are scored, and any other tensor as it is."""
    if x.ndim != 4:
        return x
    if image_format(x.device) == torch.channels_last:
        return x.contiguous(memory_format=torch.channels_last)
    # Images of one channel or pixel are contiguous in either layout, and torch may take them for the other.
    strides = torch.empty(x.shape, device="meta").stride()
    return x if x.stride() == strides else x.clone(memory_format=torch.contiguous_format)
