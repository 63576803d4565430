"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009): the official python batches, training images only in a directory.

Mean and standard deviation are those that NAS-Bench-201 trains with, of intensities from 0 to 255.
"""

from __future__ import annotations

from pathlib import Path

from zcpipe.inputs.images import ImageFile
from zcpipe.inputs.pickles import files_of, read_pickles

_CIFAR10 = ((125.3, 123.0, 113.9), (63.0, 62.1, 66.7))
_CIFAR100 = ((129.3, 124.1, 112.4), (68.2, 65.4, 70.4))


def read_cifar10(path: Path) -> ImageFile:
    """Read ``cifar-10-batches-py``, its five training batches, or one of its batches.

    Raises:
        DataError: a file is missing, damaged or another one.
    """
    files = files_of(path, [f"data_batch_{number}" for number in range(1, 6)])
    return read_pickles(files, "labels", 32, _CIFAR10, range(10))


def read_cifar100(path: Path) -> ImageFile:
    """Read the training images of ``cifar-100-python``, or one of its two files, with fine labels.

    Raises:
        DataError: a file is missing, damaged or another one.
    """
    return read_pickles(files_of(path, ["train"]), "fine_labels", 32, _CIFAR100, range(100))
