"""In what arithmetic networks are scored, whatever the calling process has chosen for its own."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

_OPERATIONS = ("conv", "rnn", "matmul")
_PLAIN = ("none", "ieee")  # the first is what nobody has set
_WARNINGS = (".*does not have a deterministic implementation", "Deterministic behavior was enabled")


@contextmanager
def plain_arithmetic(device: torch.device) -> Iterator[None]:
    """Inside, a network computes in the precision of its tensors, and on a GPU the same bits each time.

    Autocast is off; float32 convolutions and products of matrices are not rounded to TF32 (torch's default for
    convolutions on GPUs, which moved trainability by 0.7 %) or bfloat16; and on a GPU torch and cuDNN take algorithms
    that add up in one order, and attention is computed step by step. The few operations of torch that know no such
    order stay as they are, without a warning. These are settings of the process: enter `zcpipe.scoring.guard.untouched`
    before, which one thread does at a time.

    Args:
        device: where the network is.
    """
    on_gpu = device.type == "cuda"
    one_order = _one_order() if on_gpu else nullcontext()
    with _unrounded("cuda" if on_gpu else "mkldnn"), torch.autocast(device.type, enabled=False), one_order:
        yield


@contextmanager
def _unrounded(backend: str) -> Iterator[None]:
    """Have a backend's float32 rounded to nothing less."""
    # Not through ``torch.backends``, whose names may be locked.
    kinds = [(backend, operation) for operation in _OPERATIONS]
    rounded = {kind: found for kind in kinds if (found := torch._C._get_fp32_precision_getter(*kind)) not in _PLAIN}
    if not rounded:
        yield
        return
    # What reads the older names inside would raise if they did not agree with the newer ones.
    older_tf32 = backend == "cuda" and _older(torch._C._get_cudnn_allow_tf32)
    older_products = _older(torch._C._get_float32_matmul_precision) or "highest"
    try:
        if older_tf32:
            torch._C._set_cudnn_allow_tf32(False)
        if older_products != "highest":
            torch._C._set_float32_matmul_precision("highest")
        for kind in rounded:
            torch._C._set_fp32_precision_setter(*kind, "ieee")
        yield
    finally:
        if older_products != "highest":
            torch._C._set_float32_matmul_precision(older_products)
        if older_tf32:
            torch._C._set_cudnn_allow_tf32(True)
        for kind, found in rounded.items():
            torch._C._set_fp32_precision_setter(*kind, found)


def _older(get: Callable[[], Any]) -> Any:  # noqa: ANN401 - as the setting
    """Read a setting by its older name, None where the newer names say what the older cannot."""
    try:
        return get()
    except RuntimeError:
        return None


def _algorithms() -> tuple[bool, bool]:
    return torch._C._get_deterministic_algorithms(), torch._C._get_deterministic_algorithms_warn_only()


def _set_algorithms(found: tuple[bool, bool]) -> None:
    torch._C._set_deterministic_algorithms(found[0], warn_only=found[1])


# How each setting is read and set, and what sums in one order need. Fused attention would add up so only where torch
# raises instead of warning, so that it is computed step by step.
_IN_ORDER: tuple[tuple[Callable[[], Any], Callable[[Any], None], Any], ...] = (
    (torch._C._get_cudnn_deterministic, torch._C._set_cudnn_deterministic, True),
    (torch._C._get_cudnn_benchmark, torch._C._set_cudnn_benchmark, False),
    (_algorithms, _set_algorithms, (True, True)),
    (
        torch._C._get_deterministic_fill_uninitialized_memory,
        torch._C._set_deterministic_fill_uninitialized_memory,
        False,
    ),
    (torch._C._get_flash_sdp_enabled, torch._C._set_sdp_use_flash, False),
    (torch._C._get_mem_efficient_sdp_enabled, torch._C._set_sdp_use_mem_efficient, False),
    (torch._C._get_cudnn_sdp_enabled, torch._C._set_sdp_use_cudnn, False),
    (torch._C._get_math_sdp_enabled, torch._C._set_sdp_use_math, True),
)


@contextmanager
def _one_order() -> Iterator[None]:
    """Have torch and cuDNN add up in one order, where they know one."""
    found = [get() for get, _, _ in _IN_ORDER]
    with warnings.catch_warnings():
        for message in _WARNINGS:
            warnings.filterwarnings("ignore", message=message, category=UserWarning)
        try:
            for _, put, wanted in _IN_ORDER:
                put(wanted)
            yield
        finally:
            for (_, put, _), before in zip(_IN_ORDER, found, strict=True):
                put(before)
