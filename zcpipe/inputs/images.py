"""Labelled images on disk, as every format offers them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class ImageFile:
    """A file of labelled images, of which only what is asked for is kept.

    Attributes:
        labels: the class of every image, from 0, [N].
        shape: that of one image, [H, W, C].
        mean: of each channel, for intensities of 0 to 1.
        std: of each channel.
        take: the images at some positions, in their order, uint8 [n, H, W, C] and contiguous; it may read the file
            again and raises ``DataError`` if that is damaged.
    """

    labels: Labels
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    take: Callable[[Labels], Pixels]
