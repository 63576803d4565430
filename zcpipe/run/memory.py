"""How much memory there is and how much of it a process holds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

import psutil

from zcpipe.errors import UsageError

_PROCESS = Path("/proc/self")
_LIMITS = {"cgroup": "memory.limit_in_bytes", "cgroup2": "memory.max"}  # by type of the file system of control groups
_SHARE = 0.9  # of the memory, for all workers together: Ray ends what it likes above 0.95, the system above all
_UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def total() -> int:
    """Return the bytes of memory that this machine has, or this container may use."""
    have = int(psutil.virtual_memory().total)
    for file in _limits():
        with suppress(OSError, ValueError):  # it sets no limit; one of version 1 then has a number beyond all memory
            have = min(have, int(file.read_text()))
    return have


def _limits() -> Iterator[Path]:
    """Yield the files with the limits of the control groups that this process is in and of those above them.

    Both versions can be there at once. A container may see no more of them than its own group, at the mount itself.
    """
    try:
        groups = (_PROCESS / "cgroup").read_text().splitlines()
        mounts = (_PROCESS / "mountinfo").read_text().splitlines()
    except OSError:  # no Linux
        return
    names = {}
    for line in groups:
        _, controllers, name = line.split(":", 2)
        if not controllers:
            names["cgroup2"] = PurePosixPath(name)
        elif "memory" in controllers.split(","):
            names["cgroup"] = PurePosixPath(name)
    for line in mounts:
        where, _, what = line.partition(" - ")
        root, mount = where.split()[3:5]
        kind, *_, options = what.split()
        if kind in names and (kind == "cgroup2" or "memory" in options.split(",")):
            group = names[kind]
            seen = group.relative_to(root) if group.is_relative_to(root) else PurePosixPath()
            yield from (Path(mount, part, _LIMITS[kind]) for part in (seen, *seen.parents))


def share(workers: int) -> int:
    """Return the bytes that each of so many workers may hold."""
    return int(total() * _SHARE) // workers


def resident(pid: int) -> int:
    """Return the bytes that a process holds, 0 where there is none or the system does not tell now."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except (psutil.Error, OSError):  # such as that it gives no further file
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
