"""Random numbers as pure functions of a stream and an element's logical index (Philox4x32-10).

The same stream gives the same numbers on every machine, in every memory layout, with and without the native library.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from zcpipe.errors import UsageError
from zcpipe.ops import _library, _philox_twin
from zcpipe.ops._check import check_float, dense_format

Distribution = Literal["normal", "uniform"]  # standard normals, or uniform from -1 to 1


@dataclass(frozen=True, slots=True)
class Stream:
    """One random sequence, named by 128 bits.

    A stream is for one purpose: its bits, normals, uniform numbers, signs and integers are made of the same random
    words, so take a stream of another name for anything that has to be independent. Drawing does not advance it.

    Attributes:
        key: Philox's key, below 2**64.
        nonce: the high half of Philox's counter, below 2**64; the low half is the index of a block of four words.
    """

    key: int
    nonce: int

    def __post_init__(self) -> None:
        for name, word in (("key", self.key), ("nonce", self.nonce)):
            if not 0 <= word < 2**64:
                raise UsageError(f"{name}: got {word}, expected an integer in 0 .. 2**64 - 1")

    @classmethod
    def of(cls, seed: int, space: str, scope: str, repeat: int, name: str) -> Stream:
        """Derive a stream from what it is for.

        The five parts are written with their lengths before them, so that no two sets of parts share a text, and
        hashed with BLAKE2b.

        Args:
            seed: the run's seed, any integer.
            space: the search space's name.
            scope: whose numbers these are: an architecture's key, or the run.
            repeat: which repetition.
            name: the purpose, such as ``weights`` or ``labels``.

        Returns:
            The stream.
        """
        parts = [str(seed), space, scope, str(repeat), name]
        texts = [part.encode() for part in parts]
        digest = hashlib.blake2b(b"".join(b"%d:%s" % (len(text), text) for text in texts), digest_size=16).digest()
        return cls(int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little"))

    def bits(self, n: int) -> Tensor:  # [n]
        """Draw `n` random words of 32 bits.

        Args:
            n: how many.

        Returns:
            Integers in 0 .. 2**32 - 1 as int64 on the CPU; element i is word i % 4 of block i // 4.

        Raises:
            UsageError: `n` is negative.
        """
        return self._words(0, n)

    def integers(self, n: int, high: int) -> Tensor:  # [n]
        """Draw `n` integers in 0 .. `high` - 1.

        Element i takes 64 bits, words 2i (low) and 2i + 1 (high), multiplies them by `high` and keeps what lies above
        2**64: no value is more than `high` / 2**64 likelier than another, relatively.

        Args:
            n: how many.
            high: how many values there are, at most 2**31.

        Returns:
            The integers, int64 on the CPU.

        Raises:
            UsageError: `n` is negative or `high` is outside 1 .. 2**31.
        """
        if not 1 <= high <= 2**31:
            raise UsageError(f"high: got {high}, expected an integer in 1 .. 2**31")
        low, top = self.bits(2 * n).view(-1, 2).unbind(1)
        # (top 2**32 + low) high / 2**64 without leaving 63 bits.
        return (top * high + (low * high >> 32)) >> 32

    def normal_(self, t: Tensor) -> Tensor:  # any shape
        """Fill `t` with standard normals, in place.

        Box-Muller in double precision, rounded to the dtype: elements 2k and 2k + 1 come from block k. The logical
        (row-major, NCHW) index decides, not the strides.

        Args:
            t: float32 or float64, of any strides and on any device. Autograd does not record the filling.

        Returns:
            `t` itself.

        Raises:
            UsageError: `t` has another dtype.
        """
        return self._fill(t, "normal")

    def uniform_(self, t: Tensor) -> Tensor:  # any shape
        """Fill `t` with numbers of uniform distribution from -1 to 1, in place.

        Element i is word i % 4 of block i // 4, taken as a signed integer, divided by 2**31 and rounded to the dtype.
        The logical (row-major, NCHW) index decides, not the strides.

        Args:
            t: float32 or float64, of any strides and on any device. Autograd does not record the filling.

        Returns:
            `t` itself.

        Raises:
            UsageError: `t` has another dtype.
        """
        return self._fill(t, "uniform")

    def rademacher_(self, t: Tensor) -> Tensor:  # any shape
        """Fill `t` with +1 and -1, each with probability one half, in place.

        Element i is +1 where bit i % 32 of word (i // 32) % 4 of block i // 128 is set. The logical (row-major, NCHW)
        index decides, not the strides.

        Args:
            t: float32 or float64, of any strides and on any device. Autograd does not record the filling.

        Returns:
            `t` itself.

        Raises:
            UsageError: `t` has another dtype.
        """
        return self._fill(t, "rademacher")

    def _words(self, first_block: int, n: int) -> Tensor:  # [n]
        if n < 0:
            raise UsageError(f"n: got {n}, expected 0 or more")
        if not _library.available():
            return torch.from_numpy(_philox_twin._bits(self.key, self.nonce, first_block, n))
        out = torch.empty(n, dtype=torch.int64, device="cpu")
        torch.ops.zcpipe.philox_bits_(out, _signed(self.key), _signed(self.nonce), _signed(first_block))
        return out

    def _fill(self, t: Tensor, what: str) -> Tensor:
        check_float("t", t)
        if t.is_meta:
            return t
        if not _library.available():
            values = getattr(_philox_twin, f"_{what}")(self.key, self.nonce, t.numel())
            dense = _tensor(values, t.dtype).view(t.shape)
        else:
            name = f"philox_{what}_"
            op = getattr(torch.ops.zcpipe, name)
            in_place = _can_fill(t, name) and t.is_contiguous(memory_format=dense_format(t))
            device = t.device if in_place or (t.is_cuda and _library.has_cuda(name)) else torch.device("cpu")
            dense = t.detach() if in_place else torch.empty(t.shape, dtype=t.dtype, device=device)
            op(dense, _signed(self.key), _signed(self.nonce))
            if in_place:
                torch.autograd.graph.increment_version(t)
                return t
        with torch.no_grad():
            return t.copy_(dense)


def fill_all(fills: Sequence[tuple[Tensor, Stream, float]], distribution: Distribution) -> None:
    """Fill tensors in place, each from a stream and times a factor of its own.

    The same bits as of ``stream.normal_(tensor).mul_(factor)`` (or `uniform_`) for each, but in one call for those of a
    device that are contiguous: a network's weights are many small tensors.

    Args:
        fills: tensors, streams and factors. The tensors are float32 or float64, of any strides and on any devices; no
            two share memory. Autograd does not record the filling.
        distribution: "normal" or "uniform".

    Raises:
        UsageError: a tensor has another dtype; nothing is filled then.
    """
    for i, (tensor, _, _) in enumerate(fills):
        check_float(f"tensors[{i}]", tensor)
    together: dict[torch.device, list[tuple[Tensor, Stream, float]]] = {}
    for tensor, stream, factor in fills:
        if _library.available() and tensor.is_contiguous() and _can_fill(tensor, "philox_fills_"):
            together.setdefault(tensor.device, []).append((tensor, stream, factor))
            continue
        with torch.no_grad():
            stream._fill(tensor, distribution).mul_(factor)
    for members in together.values():
        tensors, streams, factors = zip(*members, strict=True)
        torch.ops.zcpipe.philox_fills_(
            [tensor.detach() for tensor in tensors],
            [_signed(stream.key) for stream in streams],
            [_signed(stream.nonce) for stream in streams],
            factors,
            distribution == "normal",
        )
        torch.autograd.graph.increment_version(tensors)


def _can_fill(t: Tensor, op: str) -> bool:
    """Whether a native op fills a tensor on the device where it lies."""
    return t.is_cpu or (t.is_cuda and _library.has_cuda(op))


def _signed(word: int) -> int:
    """The same 64 bits as an int64, which is what an op's schema takes."""
    return word - 2**64 if word >= 2**63 else word


def _tensor(values: np.ndarray, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(values).to(dtype)


@_library.on_load
def _register() -> None:
    for op in ("philox_bits_", "philox_normal_", "philox_uniform_", "philox_rademacher_"):
        torch.library.register_fake(f"zcpipe::{op}", lambda out, *counter: None)
    torch.library.register_fake("zcpipe::philox_fills_", lambda outs, *how: None)
