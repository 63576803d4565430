"""What this installation has: for ``zcpipe doctor`` and for bug reports."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from importlib.metadata import version

import torch

from zcpipe.errors import CapabilityError
from zcpipe.ops import _library as ops
from zcpipe.spaces import _native as graphs

_Info = Mapping[str, str | bool | None]


def examine() -> dict[str, str | int | bool | None]:
    """Collect versions, the state of the native library, devices and threads."""
    library, graph = _state(ops.build_info), _state(graphs.build_info)
    return {
        "zcpipe": version("zcpipe"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pyarrow": version("pyarrow"),
        "native library": library["path"],
        "instruction set": library.get("instruction_set"),
        "cuda kernels": library.get("cuda"),
        "graph module": graph["path"],
        "cuda devices": torch.cuda.device_count(),
        "cores": os.cpu_count(),
    }


def _state(build_info: Callable[[], _Info]) -> _Info:
    """What a native part says of itself; in place of its path, why it cannot be used."""
    try:
        return build_info()
    except CapabilityError as error:
        return {"path": str(error)}
