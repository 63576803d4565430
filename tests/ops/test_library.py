"""Finding, loading and describing the native library."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import zcpipe.ops
from zcpipe.errors import CapabilityError
from zcpipe.ops import _library, available, avg_pool3x3, build_info
from zcpipe.ops.pool import _avg_pool3x3


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installation without a library, not loaded yet."""
    monkeypatch.delenv("ZCPIPE_NO_NATIVE", raising=False)
    _library._load()  # what torch is told once per process is told now
    monkeypatch.setattr(_library, "_PACKAGE", tmp_path)
    _library._load.cache_clear()
    yield tmp_path
    monkeypatch.undo()
    _library._load.cache_clear()


def test_build_info_describes_the_library(native):
    info = build_info()
    assert info["native"] is True
    assert Path(info["path"]).name.startswith("_C")
    assert info["torch_target"] == "2.13"
    assert info["instruction_set"] in ("default", "x86-64-v3", "x86-64-v4")
    assert info["cuda"] is (info["cuda_runtime"] is not None)


def test_the_environment_can_force_the_twins(no_native):
    assert not available()
    assert build_info() == {
        "native": False, "path": None, "torch_target": None, "instruction_set": None, "cuda": None,
        "cuda_runtime": None,
    }  # fmt: skip
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(avg_pool3x3(x), _avg_pool3x3(x))


@pytest.mark.parametrize("value", ["", "0"])
def test_an_unset_environment_does_not(native, monkeypatch, value):
    monkeypatch.setenv("ZCPIPE_NO_NATIVE", value)
    assert available()


def test_a_missing_library_warns_once_with_the_mend(package, recwarn):
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(avg_pool3x3(x), _avg_pool3x3(x))
    assert not available() and not build_info()["native"]
    (warning,) = recwarn
    assert "pip install -e . --no-build-isolation" in str(warning.message)
    assert "make build" in str(warning.message)


def test_a_library_that_does_not_load_says_so(package):
    (package / "_C.abi3.so").write_bytes(b"not a library")
    with pytest.raises(CapabilityError, match=r"does not fit torch .*pip install -e \. --no-build-isolation"):
        available()


def test_importing_loads_nothing():
    code = "import torch, zcpipe.ops; assert not hasattr(torch.ops.zcpipe, 'avg_pool3x3')"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(zcpipe.ops.__file__).parents[2])


def test_the_library_needs_no_python_symbols_beyond_the_stable_abi(native):
    """Only what PyInit__C uses: one library serves every CPython."""
    if shutil.which("nm") is None:
        pytest.skip("no nm")
    out = subprocess.run(
        ["nm", "-D", "--undefined-only", build_info()["path"]], check=True, capture_output=True, text=True
    )
    python = {line.split()[-1] for line in out.stdout.splitlines() if " Py" in line or " _Py" in line}
    assert python <= {"PyModule_Create2"}
