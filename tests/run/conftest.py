from __future__ import annotations

import os
from collections.abc import Iterator

import pyarrow as pa
import pytest
from plugin_spaces import plugins_installed
from small_runs import content, spec

from zcpipe.run import run

os.environ["RAY_AUTH_MODE"] = "disabled"  # Ray looks when it is imported; only tests do without tokens
os.environ["RAY_TQDM_PATCH_PRINT"] = "0"  # print stays Python's own, also in other tests


@pytest.fixture(scope="session", autouse=True)
def hazards() -> Iterator[None]:
    """Install the spaces of tests/plugins for this process and its children."""
    with plugins_installed():
        yield


@pytest.fixture(scope="session")
def undisturbed(hazards: None, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """The rows of a run to which nothing happens."""
    out = tmp_path_factory.mktemp("undisturbed") / "table"
    run(spec(), out)
    return content(out)
