"""In what arithmetic networks are scored, whatever the calling process has chosen for its own."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

_KINDS = [(backend, operation) for backend in ("cuda", "mkldnn") for operation in ("conv", "matmul", "rnn")]
_PLAIN = ("none", "ieee")  # the first is what nobody has set


@contextmanager
def plain_arithmetic(device: torch.device) -> Iterator[None]:
    """Inside, a network computes in the precision of its tensors, and on a GPU the same bits each time.

    Autocast is off; float32 convolutions and products of matrices are not rounded to TF32 (torch's default for
    convolutions on GPUs, which moved trainability by 0.7 %) or bfloat16; and on a GPU torch and cuDNN take
    algorithms that add up in one order. The few operations of torch that have none stay as they are, without a warning.

    Args:
        device: where the network is.
    """
    # Not through ``torch.backends``: its names may be locked, and the older raise where newer ones have been used.
    rounded = {kind: found for kind in _KINDS if (found := torch._C._get_fp32_precision_getter(*kind)) not in _PLAIN}
    try:
        for kind in rounded:
            torch._C._set_fp32_precision_setter(*kind, "ieee")
        with torch.autocast(device.type, enabled=False), _one_order() if device.type == "cuda" else nullcontext():
            yield
    finally:
        for kind, found in rounded.items():
            torch._C._set_fp32_precision_setter(*kind, found)


@contextmanager
def _one_order() -> Iterator[None]:
    """Have torch and cuDNN add up in one order, where they know one."""
    cudnn = torch._C._get_cudnn_deterministic(), torch._C._get_cudnn_benchmark()
    torchs = torch._C._get_deterministic_algorithms(), torch._C._get_deterministic_algorithms_warn_only()
    fills = torch._C._get_deterministic_fill_uninitialized_memory()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[dD]eterministic", category=UserWarning)
        try:
            torch._C._set_cudnn_deterministic(True)
            torch._C._set_cudnn_benchmark(False)
            torch._C._set_deterministic_algorithms(True, warn_only=True)
            torch._C._set_deterministic_fill_uninitialized_memory(False)
            yield
        finally:
            torch._C._set_deterministic_fill_uninitialized_memory(fills)
            torch._C._set_deterministic_algorithms(torchs[0], warn_only=torchs[1])
            torch._C._set_cudnn_deterministic(cudnn[0])
            torch._C._set_cudnn_benchmark(cudnn[1])
