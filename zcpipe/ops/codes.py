"""Activation codes: signs as bits, and how many of them pairs of samples differ in."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from zcpipe.errors import UsageError
from zcpipe.ops._check import check_float, use_native
from zcpipe.ops._library import on_load

_BITS = 64


def sign_codes(
    x: Tensor,  # [N, ...] of F elements each
) -> Tensor:  # [N, ceil(F / 64)] int64
    """Write which activations of each sample are positive as bits.

    Bit f % 64 of word f // 64 is set where element f of the sample is above 0; what is left of the last word is 0. The
    logical (row-major, NCHW) index decides, not the strides, so that codes of several maps can be concatenated along
    the words. NaN is not above 0. A neuron's code over the batch is that of the transposed map, ``x.flatten(1).T``.
    A statistic, not a layer: it is not differentiated, and an input that requires gradients is detached.

    Args:
        x: float32 or float64, of any strides; contiguous and channels_last ones are read as they are.

    Returns:
        The samples' codes.

    Raises:
        UsageError: `x` has another dtype or fewer than two dimensions.
    """
    check_float("x", x)
    if x.ndim < 2:
        raise UsageError(f"x: got shape {tuple(x.shape)}, expected two dimensions or more (N, ...)")
    x = x.detach()
    if not use_native("sign_codes", x):
        return _sign_codes(x)
    return torch.ops.zcpipe.sign_codes(x)  # type: ignore[no-any-return]


def hamming_distances(
    codes: Tensor,  # [N, W] int64
) -> Tensor:  # [N, N] int64
    """Count the bits that differ in each pair of codes.

    Args:
        codes: codes of :func:`sign_codes`, of any strides; contiguous ones are read as they are.

    Returns:
        The distances: symmetric, with zeros on the diagonal.

    Raises:
        UsageError: `codes` is no int64 tensor of two dimensions.
    """
    if not isinstance(codes, Tensor):
        raise UsageError(f"codes: got {type(codes).__name__}, expected a tensor")
    if codes.dtype != torch.int64 or codes.layout is not torch.strided:
        raise UsageError(f"codes: got {codes.dtype} of layout {codes.layout}, expected torch.int64, torch.strided")
    if codes.ndim != 2:
        raise UsageError(f"codes: got shape {tuple(codes.shape)}, expected two dimensions (samples, words)")
    if not use_native("hamming_distances", codes):
        return _hamming_distances(codes)
    return torch.ops.zcpipe.hamming_distances(codes)  # type: ignore[no-any-return]


def _sign_codes(x: Tensor) -> Tensor:
    samples, size = x.shape[0], math.prod(x.shape[1:])
    words = -(-size // _BITS)
    bits = F.pad(x.reshape(samples, size) > 0, (0, words * _BITS - size)).long()
    places = torch.arange(_BITS, device=x.device)
    return (bits.view(samples, words, _BITS) << places).sum(2)  # bit 63 is the sign


def _hamming_distances(codes: Tensor) -> Tensor:
    places = torch.arange(_BITS, device=codes.device)
    bits = (codes.unsqueeze(2) >> places & 1).flatten(1)
    return torch.stack([(bits != bit).sum(1) for bit in bits]) if len(bits) else bits.new_zeros(0, 0)


def _fake_sign_codes(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], -(-math.prod(x.shape[1:]) // _BITS), dtype=torch.int64)


def _fake_hamming_distances(codes: Tensor) -> Tensor:
    return codes.new_empty(codes.shape[0], codes.shape[0])


@on_load
def _register() -> None:
    torch.library.register_fake("zcpipe::sign_codes", _fake_sign_codes)
    torch.library.register_fake("zcpipe::hamming_distances", _fake_hamming_distances)
