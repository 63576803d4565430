"""Executables of the CUDA kernels on the CPU, built once a session, and the library with its CUDA half."""

import os
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from programs import ENVIRONMENT, MODES, OPS, ROOT, compile_shim, locked


@pytest.fixture(scope="session")
def executables():
    """All programs in all modes, by (name, mode)."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++, which has the sanitizers that the shim is built for")
    wanted = [(name, mode) for mode in reversed(MODES) for name in (*OPS, "faults")]
    with locked("executables"), ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(wanted, pool.map(lambda pair: compile_shim(*pair), wanted), strict=True))


@pytest.fixture
def run(executables):
    """Run a program; give its exit status and all that it printed."""

    def run(name, mode, *arguments):
        command = [executables[name, mode], *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **ENVIRONMENT})
        said = done.stdout + done.stderr
        if "FATAL: ThreadSanitizer" in said:
            pytest.skip(f"ThreadSanitizer does not run on this system: {said.splitlines()[0]}")
        return done.returncode, said

    return run


@pytest.fixture(scope="session")
def cuda_build(tmp_path_factory):
    """The folder of the library that holds the CUDA half: this process's own, for every build links it anew."""
    homes = [os.environ.get("CUDA_HOME", ""), *Path(sysconfig.get_path("purelib")).glob("nvidia/*")]
    if shutil.which("nvcc") is None and not any((Path(home) / "bin" / "nvcc").exists() for home in homes):
        pytest.skip("needs nvcc: `make nvcc` installs it from PyPI")
    folder = tmp_path_factory.mktemp("library")
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(folder)]
    with locked("library"):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "FORCE_CUDA": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    return folder
