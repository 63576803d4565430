from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from zcpipe.registry import discover

PLUGINS = Path(__file__).parents[1] / "plugins"


@pytest.fixture(scope="session", autouse=True)
def hazards() -> Iterator[None]:
    """Install the spaces of tests/plugins for this process and its children."""
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
