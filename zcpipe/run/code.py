"""Which code decides the values of rows: the version of the package stays the same while it changes."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
_PARTS = ("inputs", "ops", "proxies", "scoring", "spaces")  # packages that decide values; others plan, keep and show
_OFFERS = ("zcpipe.proxies", "zcpipe.spaces")  # groups in which plugins offer what decides values


@cache
def code_digest() -> str:
    """Name the Python code of zcpipe that decides values.

    It is the same for every installation of one code, from a wheel or a checkout, wherever it lies. The native library
    has a field of its own in the build of a row, and so have plugins.
    """
    return _digest(_ROOT)


@cache
def plugin_versions() -> str:
    """Name the installed packages that offer spaces or proxies, each with its version."""
    offered = entry_points()  # looked for once: that is most of the time this takes
    plugins = {entry.dist for group in _OFFERS for entry in offered.select(group=group)}
    return ", ".join(sorted({f"{plugin.name} {plugin.version}" for plugin in plugins if plugin}))


def _digest(root: Path) -> str:
    digest = hashlib.blake2b(digest_size=8)
    files = ((file.relative_to(root).as_posix(), file) for part in _PARTS for file in (root / part).rglob("[!.]*.py"))
    for name, file in sorted(files):
        content = file.read_bytes().replace(b"\r\n", b"\n")
        digest.update(f"{name}\n{len(content)}\n".encode() + content)
    return digest.hexdigest()
