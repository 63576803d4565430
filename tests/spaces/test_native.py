"""Finding, loading and describing the native module of graphs."""

import os
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from pathlib import Path

import pytest

import zcpipe
from zcpipe.doctor import examine
from zcpipe.errors import CapabilityError
from zcpipe.spaces import _native
from zcpipe.spaces.graphs import nasbench101_hashes

CELL = 2 << 31 | 1 << 10  # input and output, joined


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installation without the module, not loaded yet."""
    monkeypatch.delenv("ZCPIPE_NO_NATIVE", raising=False)
    monkeypatch.setattr(_native, "_PACKAGE", tmp_path)
    _native._load.cache_clear()
    yield tmp_path
    monkeypatch.undo()
    _native._load.cache_clear()


def test_doctor_names_the_module(native):
    assert _native.build_info() == {"native": True, "path": native.__file__}
    assert examine()["graph module"] == native.__file__


@pytest.mark.parametrize("value", ["1", "yes"])
def test_the_environment_can_force_the_twins(monkeypatch, value):
    monkeypatch.setenv("ZCPIPE_NO_NATIVE", value)
    assert _native.module() is None
    assert _native.build_info() == {"native": False, "path": None}


@pytest.mark.parametrize("value", ["", "0"])
def test_an_unset_environment_does_not(native, monkeypatch, value):
    monkeypatch.setenv("ZCPIPE_NO_NATIVE", value)
    assert _native.module() is native


def test_a_missing_module_warns_once_with_the_mend(native, package, recwarn):
    expected = native.nasbench101_hashes([CELL])
    assert nasbench101_hashes([CELL]) == expected == nasbench101_hashes([CELL])
    assert examine()["graph module"] is None
    (warning,) = (found for found in recwarn if "_graph" in str(found.message))
    assert "pip install -e . --no-build-isolation" in str(warning.message)
    assert "make build" in str(warning.message)


def test_a_module_that_does_not_load_says_so(package):
    (package / f"_graph{EXTENSION_SUFFIXES[0]}").write_bytes(b"not a module")
    with pytest.raises(CapabilityError, match=r"does not fit .*pip install -e \. --no-build-isolation"):
        nasbench101_hashes([CELL])
    assert "does not fit" in examine()["graph module"]


def test_a_module_of_another_interpreter_says_so(package):
    (package / "_graph.cpython-39-x86_64-linux-gnu.so").write_bytes(b"")
    with pytest.raises(CapabilityError, match=r"_graph\.cpython-39.* does not fit CPython 3.*built for another one"):
        nasbench101_hashes([CELL])


class Empty:
    """Loads a module with nothing in it."""

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        pass


def test_a_module_of_other_sources_says_so(package, monkeypatch):
    (package / "_graph.so").write_bytes(b"")
    monkeypatch.setattr(_native.PathFinder, "find_spec", lambda name, path: ModuleSpec(name, Empty()))
    with pytest.raises(CapabilityError, match="lacks Wiring, canonical_texts"):
        nasbench101_hashes([CELL])


def test_importing_loads_nothing():
    code = "import sys, zcpipe.spaces.graphs; assert 'zcpipe._graph' not in sys.modules"
    environment = {**os.environ, "PYTHONPATH": str(Path(zcpipe.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
