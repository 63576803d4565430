"""Programs that run the CUDA kernels on the CPU: which there are, and how they are compiled."""

import fcntl
import subprocess
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
BUILD = ROOT / "build" / "cuda"
OPS = sorted(path.stem for path in HERE.glob("*.cpp") if path.stem != "faults")
FLAGS = ["-std=c++20", "-O0", "-g1", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off"]
MODES = {
    "plain": [],
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread"],
}
ENVIRONMENT = {"ASAN_OPTIONS": "detect_leaks=1", "TSAN_OPTIONS": "halt_on_error=1 report_signal_unsafe=0"}


@contextmanager
def locked(name):
    """Let one of several pytest processes work at a time."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def newest(*patterns):
    return max(path.stat().st_mtime for pattern in patterns for path in ROOT.glob(pattern))


def compile_shim(name, mode):
    output = BUILD / mode / name
    output.parent.mkdir(exist_ok=True)
    # Every header counts as an input of every program: what a stale executable shows is worth nothing.
    inputs = newest("csrc/common/*", "csrc/cuda/**/*", "tests/cuda/*.h", f"tests/cuda/{name}.cpp", "tests/cuda/*.py")
    if not output.exists() or output.stat().st_mtime <= inputs:
        new = output.with_suffix(".new")
        source = f"tests/cuda/{name}.cpp"
        command = ["g++", *FLAGS, *MODES[mode], "-Icsrc", "-Itests/cuda", source, "-o", str(new)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        new.rename(output)
    return output
