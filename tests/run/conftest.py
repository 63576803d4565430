from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from small_runs import content, spec

from zcpipe.registry import discover
from zcpipe.run import run

os.environ["RAY_AUTH_MODE"] = "disabled"  # Ray looks when it is imported; only tests do without tokens
os.environ["RAY_TQDM_PATCH_PRINT"] = "0"  # print stays Python's own, also in other tests
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


@pytest.fixture(scope="session")
def undisturbed(hazards: None, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """The rows of a run to which nothing happens."""
    out = tmp_path_factory.mktemp("undisturbed") / "table"
    run(spec(), out)
    return content(out)
