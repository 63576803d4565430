"""What enters the networks of a run: noise, or a batch of real images with their labels.

A new format is one file here with a function ``read(path) -> ImageFile``, and a line in `FORMATS`.
"""

from __future__ import annotations

from zcpipe.inputs.batch import FORMATS, NOISE, Batch, batch_of, content_of, noise_of, parse

__all__ = ["FORMATS", "NOISE", "Batch", "batch_of", "content_of", "noise_of", "parse"]
