"""zcpipe: zero-cost proxies for whole architecture search spaces."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from zcpipe.errors import ZcpipeError

if TYPE_CHECKING:
    from zcpipe.proxies import list_proxies
    from zcpipe.scoring.init import initialise
    from zcpipe.scoring.score import Scores, score
    from zcpipe.spaces import get_space, list_spaces
    from zcpipe.table import Table, open_table

__all__ = [
    "Scores",
    "Table",
    "ZcpipeError",
    "__version__",
    "get_space",
    "initialise",
    "list_proxies",
    "list_spaces",
    "open_table",
    "score",
]

__version__ = "0.1.0"

# Imported when they are first asked for: torch alone takes a second, which the command line's help need not wait for.
_HOMES = {
    "Scores": "zcpipe.scoring.score",
    "Table": "zcpipe.table",
    "get_space": "zcpipe.spaces",
    "initialise": "zcpipe.scoring.init",
    "list_proxies": "zcpipe.proxies",
    "list_spaces": "zcpipe.spaces",
    "open_table": "zcpipe.table",
    "score": "zcpipe.scoring.score",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
