"""Finding and loading the native module `zcpipe/_graph`.

Nothing is loaded on import: the first function that runs, or :func:`module`, does it.
"""

from __future__ import annotations

import functools
import os
import platform
import warnings
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType

from zcpipe.errors import CapabilityError

_PACKAGE = Path(__file__).resolve().parent.parent
_MEND = "build it with `pip install -e . --no-build-isolation` or `make build`"
_NAMES = ("Wiring", "canonical_texts", "live_edges", "nasbench101_canonical", "nasbench101_cells", "nasbench101_hashes",
          "nasbench101_prune")  # fmt: skip


def module() -> ModuleType | None:
    """Return the native module, loading it on the first call.

    Returns:
        None where it is not built (after one warning that says how to build it), and while the environment variable
        ``ZCPIPE_NO_NATIVE`` is set to anything but ``0``: the twins are used then.

    Raises:
        CapabilityError: the module is there but does not fit this interpreter or these sources.
    """
    if os.environ.get("ZCPIPE_NO_NATIVE", "0") not in ("", "0"):
        return None
    return _load()


def build_info() -> dict[str, str | bool | None]:
    """Describe the native module.

    Returns:
        ``native`` (whether it is in use) and ``path``, which is None where it is not.

    Raises:
        CapabilityError: as :func:`module`.
    """
    found = module()
    return {"native": found is not None, "path": None if found is None else found.__file__}


@functools.cache
def _load() -> ModuleType | None:
    """Load the module once in a process; None where there is none."""
    built = sorted(_PACKAGE.glob("_graph*.so"))
    if not built:
        warnings.warn(
            f"the native module {_PACKAGE / '_graph'} is not built: slower reference code gives the same results; "
            f"{_MEND}",
            stacklevel=4,
        )
        return None
    spec = PathFinder.find_spec("zcpipe._graph", [str(_PACKAGE)])
    if spec is None or spec.loader is None:
        raise _unfit(built[0], "it was built for another one")
    try:
        loaded = module_from_spec(spec)
        spec.loader.exec_module(loaded)
    except ImportError as error:
        raise _unfit(built[0], str(error)) from error
    lacking = [name for name in _NAMES if not hasattr(loaded, name)]
    if lacking:
        raise _unfit(built[0], f"it lacks {', '.join(lacking)}")
    return loaded


def _unfit(path: Path, reason: str) -> CapabilityError:
    interpreter = f"{platform.python_implementation()} {platform.python_version()}"
    return CapabilityError(
        f"the native module {path} does not fit {interpreter} or this version of zcpipe ({reason}); "
        f"re{_MEND}, or set ZCPIPE_NO_NATIVE=1 to go without it"
    )
