"""The chaos study at a small size: every row once, whatever is killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray")
STUDY = Path(__file__).parents[2] / "pipelines" / "chaos.py"
pytestmark = pytest.mark.xdist_group("ray")  # one cluster on this machine at a time


def test_unknown_faults_are_refused_before_anything_is_done(study, tmp_path, capsys) -> None:
    module = study("chaos")
    with pytest.raises(SystemExit):
        module.main(["--out", str(tmp_path / "chaos"), "--faults", "worker, typo"])
    assert "no fault is called typo; there are worker, agent," in capsys.readouterr().err
    assert not (tmp_path / "chaos").exists()
    assert all(hasattr(module.Chaos, f"do_{fault}") for fault in module.FAULTS)


def test_nothing_is_lost_or_doubled_whatever_dies(tmp_path: Path) -> None:
    faults = "worker,agent,raylet,driver,worker"
    options = ["--members", "450", "--cells", "3", "--faults", faults, "--every", "4", "--docs", str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, str(STUDY), "--out", str(tmp_path / "chaos"), "--others", "nap long", *options],
        env=environment,
        capture_output=True,
        text=True,
        timeout=540,
    )
    assert done.returncode == 0, done.stderr
    assert "Every row is there once" in done.stdout and "exactly the 36 rows" in done.stdout
    assert "fault: raylet" in (tmp_path / "chaos.md").read_text()
