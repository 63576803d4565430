"""Prove dist/zcpipe-*.whl: what is in it, and that it works where there is neither a compiler nor this checkout.

A fresh environment gets the wheel and what it requires as wheels only, with a path on which there is no compiler and
with ``CC`` and ``CXX`` that fail. From an empty directory ``zcpipe doctor`` must then find the native parts, and
``zcpipe run`` score four cells in a worker process.
"""

import json
import os
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
CELLS = 4


def tracked(folder: str) -> set[str]:
    """Return what git knows below a folder and what is new there, without what is ignored."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", folder]
    listed = subprocess.check_output(command, cwd=ROOT, text=True).splitlines()
    return {name for name in listed if (ROOT / name).exists()}


def only(pattern: str) -> Path:
    """Return the one file of dist that fits."""
    found = list((ROOT / "dist").glob(pattern))
    assert len(found) == 1, f"dist: expected one {pattern}, got {found}; run make wheel"
    return found[0]


def check_contents(wheel: Path, source: Path) -> None:
    """The wheel is the package and the two native modules; the source distribution has what both are built from."""
    names = set(zipfile.ZipFile(wheel).namelist())
    native = {name for name in names if name.endswith(".so")}
    assert {Path(name).name.split(".")[0] for name in native} == {"_C", "_graph"}, native
    assert "zcpipe/_C.abi3.so" in native, f"the ops are no longer of the stable ABI: {native}"
    assert "zcpipe/py.typed" in names
    packed = {name for name in names - native if ".dist-info/" not in name}
    assert packed == tracked("zcpipe"), f"the wheel differs from zcpipe/ in {packed ^ tracked('zcpipe')}"
    # The graphs are built for one CPython, so the wheel must not promise others; nobody has audited it for manylinux.
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert wheel.stem.split("-")[2:4] == [tag, tag], wheel.name

    with tarfile.open(source) as archive:
        files = {member.name.split("/", 1)[1] for member in archive if member.isfile()}
    needed = tracked("csrc") | tracked("zcpipe") | {"setup.py", "pyproject.toml", "README.md", "LICENSE"}
    assert needed <= files, f"the source distribution lacks {needed - files}"
    assert not [name for name in files if name.endswith((".so", ".o"))]


def check_works(wheel: Path, folder: Path) -> None:
    """Install it and score."""
    venv.create(folder / "venv", with_pip=True)
    binaries = folder / "venv" / "bin"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    environment |= {"PATH": str(binaries), "CC": "/bin/false", "CXX": "/bin/false"}

    def call(*command: str) -> str:
        return subprocess.check_output(command, cwd=folder, env=environment, text=True)

    pip = (f"{binaries}/pip", "install", "--quiet", "--no-compile")  # of all that it brings, little is imported
    call(*pip, "--only-binary", ":all:", "--constraint", f"{ROOT}/constraints.txt", str(wheel))
    doctor = json.loads(call("zcpipe", "doctor", "--json"))
    for part in ("native library", "graph module"):
        assert str(doctor[part]).startswith(str(binaries.parent)), f"{part}: {doctor[part]}"
    run = ("zcpipe", "run", "--space", "nasbench201", "--sample", str(CELLS), "--batch-size", "8", "--workers", "1")
    summary = json.loads(call(*run, "--out", "table", "--quiet", "--json"))
    assert summary["by_status"] == {"ok": CELLS}, summary


if __name__ == "__main__":
    built = only("zcpipe-*.whl")
    check_contents(built, only("zcpipe-*.tar.gz"))
    with tempfile.TemporaryDirectory() as temporary:
        check_works(built, Path(temporary).resolve())
    print(f"{built.name}: {built.stat().st_size / 1e6:.1f} MB, installs and scores without a compiler")
