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
        "cuda devices": torch.cuda.device_count(),
        "cores": os.cpu_count(),
    }
