"""What the studies' tests share: the modules of pipelines/."""

import importlib
from pathlib import Path

import pytest


@pytest.fixture
def study(monkeypatch):
    """Import a module of pipelines/ as the script beside it does."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "pipelines"))
    monkeypatch.setenv("MPLBACKEND", "agg")
    return importlib.import_module
