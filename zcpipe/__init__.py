"""zcpipe: zero-cost proxies for whole architecture search spaces."""

from zcpipe.errors import ZcpipeError
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
