"""What this installation has: for ``zcpipe doctor`` and for bug reports."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version

import torch

from zcpipe.ops._library import build_info


def examine() -> dict[str, str | int | bool | None]:
    """Collect versions, the state of the native library, devices and threads."""
    build = build_info()
    return {
        "zcpipe": version("zcpipe"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pyarrow": version("pyarrow"),
        "native library": build["path"] if build["native"] else None,
        "instruction set": build["instruction_set"],
        "cuda kernels": build["cuda"],
        "cuda devices": torch.cuda.device_count(),
        "cores": os.cpu_count(),
    }
