"""The package of docs/plugins.md, made of the page's own files: it is found, checked and scored."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "plugins.md").read_text()
PROXIES = "aznas,energy,my_saliency,sensitivity"


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """Write the page's files as pip would install them, and return a function that runs zcpipe beside them."""
    home = tmp_path_factory.mktemp("package")
    for name, code in re.findall(r"`(\w+\.py)`:\n\n```python\n(.*?)```", PAGE, re.DOTALL):
        (home / name).write_text(code)
    (project,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    described = tomllib.loads(project)
    assert {f"{module}.py" for module in described["tool"]["setuptools"]["py-modules"]} == {
        path.name for path in home.iterdir()
    }
    installed = home / "my_nas-1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: my-nas\nVersion: 1\n")
    points = (
        f"[{group}]\n" + "".join(f"{name} = {place}\n" for name, place in entries.items())
        for group, entries in described["project"]["entry-points"].items()
    )
    (installed / "entry_points.txt").write_text("\n".join(points))

    def zcpipe(*words):
        paths = os.pathsep.join([str(home), os.environ.get("PYTHONPATH", "")])
        command = [sys.executable, "-m", "zcpipe", *map(str, words)]
        return subprocess.run(
            command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False
        )

    return zcpipe


def test_the_space_is_found_and_keeps_its_promises(package):
    found = package("spaces", "--json")
    assert found.returncode == 0, found.stderr
    assert "my_resnets" in found.stdout and "729" in found.stdout
    checked = package("spaces", "check", "my_resnets", "--sample", 3, "--resolution", 8)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_members_are_scored_by_its_proxies_and_those_of_zcpipe(package, tmp_path):
    words = ("--space", "my_resnets", "--proxies", PROXIES, "--sample", 3, "--batch-size", 2)
    ran = package("run", *words, "--out", tmp_path / "table", "--quiet", "--json")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["new"] == 3
    ranked = package("rank", tmp_path / "table", "--method", "linear", "--proxies", "energy,sensitivity")
    assert ranked.returncode == 0, ranked.stderr


def test_it_moves_in_a_search(package, tmp_path):
    words = ("--space", "my_resnets", "--algorithm", "aznas", "--scores", "live", "--budget", 4)
    found = package("search", *words, "--batch-size", 2, "--resolution", 8, "--out", tmp_path / "search")
    assert found.returncode == 0, found.stderr
