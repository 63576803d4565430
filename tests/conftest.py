"""Shared fixtures: where the benchmarks' data lie, and one thread per process as in every worker."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("zcpipe", deadline=None)  # no test asserts a time
settings.load_profile("zcpipe")


@pytest.fixture(scope="session")
def data():
    """Find a file of benchmark data by name; skip the test, saying which file, where it is absent."""
    root = os.environ.get("ZCPIPE_DATA")

    def find(name):
        if root is None:
            pytest.skip(f"needs {name}: set ZCPIPE_DATA to the folder that holds it")
        path = Path(root) / name
        if not path.exists():
            pytest.skip(f"needs {path}, which does not exist")
        return path

    return find
