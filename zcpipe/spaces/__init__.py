"""Search spaces: one file each, offering it in ``SPACES``; third parties use entry points ``zcpipe.spaces``."""

from __future__ import annotations

from zcpipe.errors import unknown_name
from zcpipe.registry import discover
from zcpipe.spaces.base import (
    Architecture,
    Built,
    Dataset,
    DescribesCells,
    DrawsByDataset,
    Entry,
    EnumerableSpace,
    LimitsResolution,
    MadeOfChoices,
    MovesFromNetwork,
    PublishedFlops,
    ReadsEntries,
    Size,
    Slots,
    Space,
    Verification,
    Verifies,
    slot_of,
)
from zcpipe.spaces.declared import faults

__all__ = [
    "Architecture",
    "Built",
    "Dataset",
    "DescribesCells",
    "DrawsByDataset",
    "Entry",
    "EnumerableSpace",
    "LimitsResolution",
    "MadeOfChoices",
    "MovesFromNetwork",
    "PublishedFlops",
    "ReadsEntries",
    "Size",
    "Slots",
    "Space",
    "Verification",
    "Verifies",
    "get_space",
    "list_spaces",
    "slot_of",
]


def list_spaces() -> list[str]:
    """Return the names of all installed spaces, sorted."""
    return list(discover(__name__, "SPACES", faults))


def get_space(name: str) -> Space[Architecture]:
    """Return an installed space by name.

    Raises:
        UsageError: no space has this name; near ones are named.
    """
    spaces = discover(__name__, "SPACES", faults)
    if name not in spaces:
        raise unknown_name("space", name, spaces)
    space: Space[Architecture] = spaces[name]
    return space
