"""How much memory there is and how much of it a process holds."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

import psutil

from zcpipe.errors import UsageError

_CGROUP = Path("/sys/fs/cgroup/memory.max")
_SHARE = 0.9  # of the memory, for all workers together: Ray ends what it likes above 0.95, the system above all
_UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def total() -> int:
    """Return the bytes of memory that this machine has, or this container may use."""
    have = psutil.virtual_memory().total
    with suppress(OSError, ValueError):  # no limit, or no container
        have = min(have, int(_CGROUP.read_text()))
    return int(have)


def share(workers: int) -> int:
    """Return the bytes that each of so many workers may hold."""
    return int(total() * _SHARE) // workers


def resident(pid: int) -> int:
    """Return the bytes that a process holds, 0 where there is none."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def parse_bytes(text: str) -> int:
    """Read ``4GiB``, ``512 MB`` or a number of bytes.

    Raises:
        UsageError: it is none of these.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *(?:([KMGT])i?)?B?", text, re.IGNORECASE)
    if found and (count := int(float(found[1]) * 1024 ** " KMGT".index((found[2] or " ").upper()))):
        return count
    raise UsageError(f"{text!r} is no amount of memory; write it like 4GiB or 800MiB")


def format_bytes(count: int) -> str:
    """Write an amount of memory for people."""
    for size, name in _UNITS:
        if count >= size:
            return f"{count / size:.3g} {name}"
    return f"{count} B"
