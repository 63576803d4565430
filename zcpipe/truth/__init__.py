"""Trained accuracies: readers of the benchmarks' official files, and the one columnar form they end in.

A new reader is one file here with a tuple ``READERS`` of `Reader`; another package adds one through the entry-point
group ``zcpipe.truth``.
"""

from __future__ import annotations

from zcpipe.errors import unknown_name
from zcpipe.registry import discover
from zcpipe.truth.nats import import_nats, read_nats
from zcpipe.truth.open import align, direction_of, read_truth
from zcpipe.truth.reader import Progress, Reader, faults

__all__ = ["Progress", "Reader", "align", "direction_of", "import_nats", "read_nats", "read_truth", "reader", "readers"]


def readers() -> dict[str, Reader]:
    """Give every known reader by name."""
    return discover("zcpipe.truth", "READERS", faults)


def reader(name: str) -> Reader:
    """Give one reader.

    Args:
        name: what the reader is called.

    Raises:
        UsageError: no reader is called so (the message names near ones).
    """
    known = readers()
    if name not in known:
        raise unknown_name("truth reader", name, known)
    return known[name]
