"""Finding and loading the native module `zcpipe/_graph`.

Nothing is loaded on import: the first function that runs, or :func:`available`, does it.
"""

from __future__ import annotations

import functools
import importlib
import os
import platform
import warnings
from pathlib import Path
from types import ModuleType

from zcpipe.errors import CapabilityError

_PACKAGE = Path(__file__).resolve().parent.parent
_MEND = "build it with `pip install -e . --no-build-isolation` or `make build`"
_NAMES = ("Wiring", "canonical_texts", "live_edges", "nasbench101_canonical", "nasbench101_cells", "nasbench101_hashes",
          "nasbench101_prune")  # fmt: skip


def available() -> bool:
    """Say whether graphs are handled natively, loading the module on the first call.

    Returns:
        False where the module is not built (after one warning that says how to build it), and while the environment
        variable ``ZCPIPE_NO_NATIVE`` is set to anything but ``0``: the twins are used then.

    Raises:
        CapabilityError: the module is there but does not fit this interpreter or these sources.
    """
    if os.environ.get("ZCPIPE_NO_NATIVE", "0") not in ("", "0"):
        return False
    return _load() is not None


def build_info() -> dict[str, str | bool | None]:
    """Describe the native module.

    Returns:
        ``native`` (whether it is in use) and ``path``, which is None where it is not.

    Raises:
        CapabilityError: as :func:`available`.
    """
    module = _load() if available() else None
    return {"native": module is not None, "path": None if module is None else module.__file__}


@functools.cache
def _load() -> ModuleType | None:
    """Load the module once in a process; None where there is none."""
    built = sorted(_PACKAGE.glob("_graph*.so"))
    if not built:
        warnings.warn(
            f"the native module {_PACKAGE / '_graph'} is not built: slower reference code gives the same results; "
            f"{_MEND}",
            stacklevel=3,
        )
        return None
    try:
        module = importlib.import_module("zcpipe._graph")
        for name in _NAMES:
            getattr(module, name)
    except (ImportError, AttributeError) as error:
        raise CapabilityError(
            f"the native module {built[0]} does not fit {platform.python_implementation()} "
            f"{platform.python_version()} or this version of zcpipe ({error}); "
            f"re{_MEND}, or set ZCPIPE_NO_NATIVE=1 to go without it"
        ) from error
    return module
