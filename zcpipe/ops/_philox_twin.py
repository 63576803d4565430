"""Philox and what is made of it, in numpy: the slow twin of csrc/common/philox.h and normal.h.

Every expression of the normals is the native code's, in the same order: only operations that IEEE 754 rounds in one
way, so that both give the same bits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_Words = NDArray[np.uint64]
_Reals = NDArray[np.float64]
_LOW32 = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


def _philox(key: int, nonce: int, first: int, blocks: int) -> _Words:  # [blocks, 4]
    """Words of the Philox4x32-10 blocks `first`, `first` + 1, ..., each below 2**32."""
    index = np.arange(blocks, dtype=np.uint64) + np.uint64(first)
    c0, c1 = index & _LOW32, index >> _32
    c2, c3 = np.full_like(index, nonce & 0xFFFFFFFF), np.full_like(index, nonce >> 32)
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    for _ in range(10):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (p1 >> _32) ^ c1 ^ np.uint64(k0), p1 & _LOW32, (p0 >> _32) ^ c3 ^ np.uint64(k1), p0 & _LOW32
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=1)


def _bits(key: int, nonce: int, first_block: int, n: int) -> NDArray[np.int64]:  # [n]
    return _philox(key, nonce, first_block, -(-n // 4)).reshape(-1)[:n].astype(np.int64)


def _rademacher(key: int, nonce: int, n: int) -> NDArray[np.int8]:  # [n]
    words = _philox(key, nonce, 0, -(-n // 128)).reshape(-1, 1)
    bits = (words >> np.arange(32, dtype=np.uint64)) & np.uint64(1)
    return (2 * bits.astype(np.int8) - 1).reshape(-1)[:n]


def _normal(key: int, nonce: int, n: int) -> _Reals:  # [n]
    words = _philox(key, nonce, 0, -(-n // 2))
    w0, w1, w2, w3 = words.T
    u = ((w1 >> np.uint64(5)) * 67108864.0 + ((w0 >> np.uint64(6)) + np.uint64(1))) * 2.0**-53
    v = ((w3 >> np.uint64(5)) * 67108864.0 + (w2 >> np.uint64(6))) * 2.0**-53
    radius = np.sqrt(-2.0 * _log_unit(u))
    cos, sin = _cos_sin_turn(v, w3 >> np.uint64(29))
    return np.stack([radius * cos, radius * sin], axis=1).reshape(-1)[:n]


def _uniform(key: int, nonce: int, n: int) -> _Reals:  # [n]
    words = _philox(key, nonce, 0, -(-n // 4)).reshape(-1)[:n]
    return words.astype(np.uint32).view(np.int32).astype(np.float64) * 2.0**-31


def _log_unit(u: _Reals) -> _Reals:
    """Compute log(u) for u in [2**-53, 1]."""
    bits = u.view(np.uint64) + np.uint64(0x3FF0000000000000 - 0x3FE6A09E00000000)
    e = (bits >> np.uint64(52)).astype(np.float64) - 1023.0
    z = ((bits & np.uint64(0x000FFFFFFFFFFFFF)) + np.uint64(0x3FE6A09E00000000)).view(np.float64)
    f = z - 1.0
    s = f / (2.0 + f)
    q = s * s
    p = np.full_like(q, 2.0 / 21.0)
    for odd in range(19, 1, -2):
        p = p * q + 2.0 / odd
    return e * float.fromhex("0x1.62e42feep-1") + (e * float.fromhex("0x1.a39ef35793c76p-33") + (2.0 * s + s * (q * p)))


def _cos_sin_turn(v: _Reals, eighth: _Words) -> tuple[_Reals, _Reals]:
    """Compute cos and sin of 2 pi v for v in [0, 1); `eighth` is the integer part of 8 v."""
    quarter = (eighth + np.uint64(1)) >> np.uint64(1)
    t = (v - 0.25 * quarter) * float.fromhex("0x1.921fb54442d18p+2")
    q = t * t
    s = np.full_like(q, 1.0 / 355687428096000.0)
    for factorial in (-1307674368000.0, 6227020800.0, -39916800.0, 362880.0, -5040.0, 120.0, -6.0):
        s = s * q + 1.0 / factorial
    s = t + t * (q * s)
    c = np.full_like(q, 1.0 / 20922789888000.0)
    for factorial in (-87178291200.0, 479001600.0, -3628800.0, 40320.0, -720.0, 24.0, -2.0):
        c = c * q + 1.0 / factorial
    c = 1.0 + q * c
    odd = (quarter & np.uint64(1)) != 0
    x, y = np.where(odd, s, c), np.where(odd, c, s)
    flip_x, flip_y = ((quarter + np.uint64(1)) & np.uint64(2)) != 0, (quarter & np.uint64(2)) != 0
    return np.where(flip_x, -x, x), np.where(flip_y, -y, y)
