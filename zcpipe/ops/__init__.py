"""The native ops' Python face: each op with its autograd and its slow reference twin.

A public function uses the native library where it is built and its twin (the same name with a leading underscore)
where it is not; the results are the same.
"""

from __future__ import annotations

from zcpipe.ops._library import available, build_info
from zcpipe.ops.batchnorm import batch_norm_train
from zcpipe.ops.codes import hamming_distances, sign_codes
from zcpipe.ops.convolution import conv_batch_norm_train
from zcpipe.ops.convolution_tangent import conv_batch_norm_tangent, conv_batch_norm_tangent_backward
from zcpipe.ops.layout import as_images, image_format
from zcpipe.ops.moments import covariance, cross_moment, position_gram
from zcpipe.ops.null import null
from zcpipe.ops.parameters import ParameterStatistics, parameter_statistics
from zcpipe.ops.philox import Stream
from zcpipe.ops.pool import avg_pool3x3
from zcpipe.ops.products import product_sums
from zcpipe.ops.spectra import largest_singular_values, symmetric_eigenvalues

__all__ = [
    "ParameterStatistics",
    "Stream",
    "as_images",
    "available",
    "avg_pool3x3",
    "batch_norm_train",
    "build_info",
    "conv_batch_norm_tangent",
    "conv_batch_norm_tangent_backward",
    "conv_batch_norm_train",
    "covariance",
    "cross_moment",
    "hamming_distances",
    "image_format",
    "largest_singular_values",
    "null",
    "parameter_statistics",
    "position_gram",
    "product_sums",
    "sign_codes",
    "symmetric_eigenvalues",
]
