"""The spaces of tests/plugins, as an installed package would bring them."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zcpipe.registry import discover

PLUGINS = Path(__file__).parent / "plugins"


@contextmanager
def plugins_installed() -> Iterator[None]:
    """Within, this process and its children find them."""
    before = os.environ.get("PYTHONPATH")
    sys.path.insert(0, str(PLUGINS))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(PLUGINS), *([before] if before else [])])
    discover.cache_clear()
    yield
    sys.path.remove(str(PLUGINS))
    os.environ.pop("PYTHONPATH")
    if before is not None:
        os.environ["PYTHONPATH"] = before
    discover.cache_clear()
