"""Finding and loading the native library `zcpipe/_C`.

Nothing is loaded on import: the first op that runs, or :func:`available`, does it.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from zcpipe.errors import CapabilityError

_PACKAGE = Path(__file__).resolve().parent.parent
_MEND = "build it with `pip install -e . --no-build-isolation` or `make build`"
_TARGET_TORCH = "2.13"  # the release whose stable ABI setup.py asks for

_registrations: list[Callable[[], None]] = []


def on_load(register: Callable[[], None]) -> Callable[[], None]:
    """Have `register` run once the library is loaded: its schemas exist only from then on.

    Args:
        register: adds an op's fake kernels and autograd.

    Returns:
        `register` itself, so that this serves as a decorator.
    """
    _registrations.append(register)
    return register


def available() -> bool:
    """Say whether the native ops can be used, loading the library on the first call.

    Returns:
        False where the library is not built (after one warning that says how to build it), and while the environment
        variable ``ZCPIPE_NO_NATIVE`` is set to anything but ``0``: the twins are used then.

    Raises:
        CapabilityError: the library is there but does not fit this torch or these sources.
    """
    if os.environ.get("ZCPIPE_NO_NATIVE", "0") not in ("", "0"):
        return False
    return _load() is not None


def build_info() -> dict[str, str | bool | None]:
    """Describe the native library.

    Returns:
        ``native`` (whether the ops use it), ``path``, ``torch_target`` (the oldest torch it serves),
        ``instruction_set`` (``x86-64-v4``, ``x86-64-v3`` or ``default``, chosen from what this processor has),
        ``cuda`` (whether it holds CUDA kernels) and ``cuda_runtime`` (of which CUDA, and whether that runtime is its
        own: ``13.0 static``, which needs a driver of CUDA 13, or torch's: ``13.0 shared``). The first is False and
        the others are None where no library is in use.
    """
    names = ("path", "torch_target", "instruction_set", "cuda", "cuda_runtime")
    if not available():
        return {"native": False, **dict.fromkeys(names)}
    cuda = has_cuda("avg_pool3x3")
    return {
        "native": True,
        "path": str(_load()),
        "torch_target": _TARGET_TORCH,
        "instruction_set": torch.ops.zcpipe.instruction_set(),
        "cuda": cuda,
        "cuda_runtime": torch.ops.zcpipe.cuda_runtime() if cuda else None,
    }


@functools.cache
def has_cuda(op: str) -> bool:
    """Say whether the loaded library holds a CUDA kernel for the op of this name."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"zcpipe::{op}", "CUDA")


@functools.cache
def _load() -> Path | None:
    """Load the library once in a process; None where there is none."""
    path = next(iter(sorted(_PACKAGE.glob("_C*.so"))), None)
    if path is None:
        warnings.warn(
            f"the native library {_PACKAGE / '_C.abi3.so'} is not built: slower reference code gives the same results; "
            f"{_MEND}",
            stacklevel=3,
        )
        return None
    try:
        torch.ops.load_library(str(path))  # type: ignore[no-untyped-call]
        while _registrations:
            _registrations.pop()()
    except (OSError, RuntimeError, AttributeError) as error:
        raise CapabilityError(
            f"the native library {path} does not fit torch {torch.__version__} or this version of zcpipe ({error}); "
            f"re{_MEND}, or set ZCPIPE_NO_NATIVE=1 to go without it"
        ) from error
    return path
