"""The name of the code that decides values."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from plugin_spaces import package_installed

import zcpipe
from zcpipe.run.code import _digest, plugin_versions

HERE = Path(zcpipe.__file__).parent
PLUGIN = "OFFERED = ()\n"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The same code elsewhere, as a wheel would bring it: without what Python keeps compiled, and with new times."""
    there = tmp_path / "site-packages" / "zcpipe"
    shutil.copytree(HERE, there, copy_function=shutil.copyfile, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    return there


def test_the_same_code_has_one_name_wherever_it_lies(copy: Path) -> None:
    assert _digest(copy) == _digest(HERE)
    file = copy / "proxies" / "zen.py"
    os.utime(file, (1, 1))
    file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    (copy / "ops" / "__pycache__").mkdir()
    (copy / "ops" / "__pycache__" / "philox.cpython-311.pyc").write_bytes(b"compiled")
    (copy / "ops" / ".#philox.py").symlink_to("somebody@edits.1")
    assert _digest(copy) == _digest(HERE)


@pytest.mark.parametrize("part", ["inputs", "ops", "proxies", "scoring", "spaces"])
def test_what_decides_values_changes_the_name(part: str, copy: Path) -> None:
    before = _digest(copy)
    file = copy / part / "__init__.py"
    file.write_text(file.read_text() + "\nMORE = 1\n")
    changed = _digest(copy)
    file.rename(copy / part / "other.py")
    assert len({before, changed, _digest(copy)}) == 3


@pytest.mark.parametrize("file", ["cli.py", "search/loop.py", "table/store.py", "run/drive.py", "rank/ranking.py"])
def test_what_plans_keeps_and_shows_does_not(file: str, copy: Path) -> None:
    (copy / file).write_text("")
    assert _digest(copy) == _digest(HERE)


@pytest.mark.parametrize(("group", "counts"), [("zcpipe.spaces", True), ("zcpipe.proxies", True), ("console", False)])
def test_installed_plugins_are_named_with_their_versions(group: str, counts: bool, tmp_path: Path) -> None:
    without = plugin_versions()
    with package_installed(tmp_path, group, PLUGIN):
        assert ("my-nas 1.0" in plugin_versions() or "my_nas 1.0" in plugin_versions()) == counts
    assert plugin_versions() == without
