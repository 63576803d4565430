"""The spaces of tests/plugins, and other things, as an installed package would bring them."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zcpipe.registry import discover
from zcpipe.run.code import plugin_versions

PLUGINS = Path(__file__).parent / "plugins"


def forget() -> None:
    """Have what is installed looked for anew."""
    discover.cache_clear()
    plugin_versions.cache_clear()


@contextmanager
def plugins_installed() -> Iterator[None]:
    """Within, this process and its children find them."""
    before = os.environ.get("PYTHONPATH")
    sys.path.insert(0, str(PLUGINS))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(PLUGINS), *([before] if before else [])])
    forget()
    yield
    sys.path.remove(str(PLUGINS))
    os.environ.pop("PYTHONPATH")
    if before is not None:
        os.environ["PYTHONPATH"] = before
    forget()


@contextmanager
def package_installed(directory: Path, group: str, source: str) -> Iterator[None]:
    """Within, this process and its children find a package ``my-nas`` that offers ``OFFERED`` of a module."""
    found = directory / "my_nas-1.0.dist-info"
    found.mkdir(parents=True)
    (directory / "my_nas.py").write_text(source)
    (found / "METADATA").write_text("Metadata-Version: 2.1\nName: my-nas\nVersion: 1.0\n")
    (found / "entry_points.txt").write_text(f"[{group}]\nmy_nas = my_nas:OFFERED\n")
    before = os.environ.get("PYTHONPATH", "")
    sys.path.insert(0, str(directory))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(directory), before])
    forget()
    try:
        yield
    finally:
        sys.path.remove(str(directory))
        sys.modules.pop("my_nas", None)
        os.environ["PYTHONPATH"] = before
        forget()
