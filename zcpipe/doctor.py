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
        "cuda runtime": _runtime(library.get("cuda_runtime")),
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


def _runtime(built: str | bool | None) -> str | None:
    """Say which driver the library's CUDA runtime needs: one of its own is not chosen by torch to fit the driver."""
    if not isinstance(built, str):
        return None
    version, kind = built.split()
    if kind == "shared":
        return f"{version}, torch's"
    return f"{version}, its own: needs a driver for CUDA {version.split('.')[0]} or newer"
