"""What this installation has: for ``zcpipe doctor`` and for bug reports."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version

import torch

from zcpipe.errors import CapabilityError
from zcpipe.ops._library import build_info


def examine() -> dict[str, str | int | bool | None]:
    """Collect versions, the state of the native library, devices and threads."""
    try:
        build, trouble = build_info(), None
    except CapabilityError as error:
        build, trouble = {}, str(error)
    return {
        "zcpipe": version("zcpipe"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pyarrow": version("pyarrow"),
        "native library": trouble or build.get("path"),
        "instruction set": build.get("instruction_set"),
        "cuda kernels": build.get("cuda"),
        "cuda runtime": _runtime(build.get("cuda_runtime")),
        "cuda devices": torch.cuda.device_count(),
        "cores": os.cpu_count(),
    }


def _runtime(built: str | bool | None) -> str | None:
    """Say which driver the library's CUDA runtime needs: one of its own is not chosen by torch to fit the driver."""
    if not isinstance(built, str):
        return None
    version, kind = built.split()
    if kind == "shared":
        return f"{version}, torch's"
    return f"{version}, its own: needs a driver for CUDA {version.split('.')[0]} or newer"
