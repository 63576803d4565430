"""The library with its CUDA half: compiled for every architecture, loaded beside a CPU torch."""

import os
import re
import subprocess
import sys

import pytest
import torch
from programs import BUILD, ROOT

pytestmark = pytest.mark.xdist_group("cuda")  # who waits for what another builds does nothing else

ARCHITECTURES = {"sm_80", "sm_90", "sm_100"}
FILES = sorted(path.stem for path in (ROOT / "csrc/cuda").glob("*.cu"))
ENTRY = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)' for '(?P<architecture>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers",
    re.DOTALL,
)
CUDA_ALONE = {"cuda_runtime", "symmetric_eigenvalues", "largest_singular_values"}
MOST_REGISTERS = 128  # of 256 threads a block: two blocks fit


@pytest.fixture(scope="module")
def kernels(cuda_build):
    """What ptxas said of each kernel: file, kernel, architecture, stack, stores, loads, registers."""
    logs = {file: (ROOT / "build" / "objects" / "cuda" / f"{file}.log").read_text() for file in FILES}
    return [{"file": file, **match.groupdict()} for file, log in logs.items() for match in ENTRY.finditer(log)]


@pytest.mark.parametrize("file", [file for file in FILES if file != "runtime"])
def test_every_kernel_is_compiled_for_every_architecture(kernels, file):
    by_architecture = {
        name: {k["kernel"] for k in kernels if k["file"] == file and k["architecture"] == name}
        for name in ARCHITECTURES
    }
    assert all(by_architecture.values())
    assert len(set(map(frozenset, by_architecture.values()))) == 1


def test_nothing_spills(kernels):
    assert [k for k in kernels if k["stores"] != "0" or k["loads"] != "0" or k["stack"] != "0"] == []


def test_registers_leave_room_for_two_blocks(kernels):
    """And a report of them, for who tunes a kernel: build/cuda/registers.txt."""
    names = subprocess.run(["c++filt"], input="\n".join(k["kernel"] for k in kernels), capture_output=True, text=True)
    lines = [
        f"{k['architecture']:6} {k['registers']:>4} {name.split('(')[0]}"
        for k, name in zip(kernels, names.stdout.splitlines(), strict=True)
    ]
    (BUILD / "registers.txt").write_text("\n".join(sorted(lines)) + "\n")
    assert max(int(k["registers"]) for k in kernels) <= MOST_REGISTERS


def test_the_library_loads_and_holds_every_op_for_its_devices(cuda_build):
    registered = {
        name for file in FILES for name in re.findall(r'm\.impl\("(\w+)"', (ROOT / f"csrc/cuda/{file}.cu").read_text())
    }
    code = f"""
import torch
torch.ops.load_library({str(next(cuda_build.glob("zcpipe/_C*.so")))!r})
has = torch._C._dispatch_has_kernel_for_dispatch_key
for op in {sorted(registered - {"cuda_runtime"})}:
    assert has(f"zcpipe::{{op}}", "CUDA") and has(f"zcpipe::{{op}}", "CPU") is (op not in {CUDA_ALONE}), op
print(torch.ops.zcpipe.cuda_runtime())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    version, kind = done.stdout.split()
    assert re.fullmatch(r"\d+\.\d+", version) and kind == ("static" if torch.version.cuda is None else "shared")
    assert {"null", "avg_pool3x3", "avg_pool3x3_backward", "batch_norm_train", "philox_normal_"} <= registered
    assert registered >= CUDA_ALONE


def setup_fails(**environment):
    command = [sys.executable, "setup.py", "-q", "build_ext"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode != 0
    return done.stderr


def test_a_wrong_architecture_is_named(cuda_build):
    said = setup_fails(FORCE_CUDA="1", TORCH_CUDA_ARCH_LIST="9.0;Hopper")
    assert "TORCH_CUDA_ARCH_LIST: got 'Hopper', expected versions such as 8.0, 9.0a or 10.0+PTX" in said


def test_something_else_than_nvcc_is_refused(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").symlink_to("/bin/true")
    said = setup_fails(FORCE_CUDA="1", CUDA_HOME=str(tmp_path))
    assert "expected the CUDA compiler, got a program that does not answer like it" in said
