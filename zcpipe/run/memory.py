"""How much memory there is and how much of it a process holds."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

import psutil

from zcpipe.errors import UsageError

_CGROUPS = Path("/sys/fs/cgroup")
_SHARE = 0.9  # of the memory, for all workers together: Ray ends what it likes above 0.95, the system above all
_UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def total() -> int:
    """Return the bytes of memory that this machine has, or this container may use."""
    have = int(psutil.virtual_memory().total)
    for group in _own_groups():
        with suppress(OSError, ValueError):  # it sets no limit
            have = min(have, int((group / "memory.max").read_text()))
    return have


def _own_groups() -> list[Path]:
    """Return the control groups that this process is in, each with those above it, as far as they can be seen."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:  # no Linux
        return []
    names = [line.removeprefix("0::/") for line in lines if line.startswith("0::/")]
    return [group for name in names for group in (_CGROUPS / name, *(_CGROUPS / name).parents) if group >= _CGROUPS]


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
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *(?:([KMGT])i?)?B?", text, re.IGNORECASE)
    if found and (count := int(float(found[1]) * 1024 ** " KMGT".index((found[2] or " ").upper()))):
        return count
    raise UsageError(f"{text!r} is no amount of memory; write it like 4GiB or 800MiB")


def format_bytes(count: int) -> str:
    """Write an amount of memory for people."""
    for size, name in _UNITS:
        if count >= size:
            return f"{count / size:.3g} {name}"
    return f"{count} B"
