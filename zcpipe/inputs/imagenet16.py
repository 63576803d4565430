"""ImageNet16-120: downsampled ImageNet (Chrabaszcz et al., 2017) at 16 pixels, its first 120 classes.

Mean and standard deviation are those that NAS-Bench-201 trains with, of intensities from 0 to 255.
"""

from __future__ import annotations

from pathlib import Path

from zcpipe.inputs.images import ImageFile
from zcpipe.inputs.pickles import files_of, read_pickles

_STATISTICS = ((122.68, 116.66, 104.01), (63.22, 61.26, 65.09))


def read_imagenet16(path: Path) -> ImageFile:
    """Read a directory's ten files ``train_data_batch_1`` to ``_10``, or one of them; labels there begin at 1.

    Raises:
        DataError: a file is missing, damaged or another one.
    """
    files = files_of(path, [f"train_data_batch_{number}" for number in range(1, 11)])
    return read_pickles(files, "labels", 16, _STATISTICS, range(1, 121))
