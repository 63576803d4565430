"""What is left of a run whose cluster loses its head: one message, what was committed, and a way on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from zcpipe.table import status

cluster_utils = pytest.importorskip("ray.cluster_utils")
pytestmark = pytest.mark.xdist_group("ray")  # one cluster on this machine at a time
SIZE = {"num_cpus": 1, "object_store_memory": 80 << 20}
ROWS = 3000  # a minute of naps
ZCPIPE = [sys.executable, "-m", "zcpipe", "run", "--space", "crowd", "--proxies", "params,expressivity"]
WORDS = ["--batch-size", "2", "--quiet", "--json"]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with monkeypatch.context() as patch:
        patch.setenv("CROWD", str(ROWS))
        patch.setenv("HAZARD_ELSE", "nap")
        patch.setenv("RAY_worker_niceness", "0")  # other tests run beside this one
        made: Any = cluster_utils.Cluster(
            initialize_head=True, head_node_args={**SIZE, "num_cpus": 0, "include_dashboard": False, "no_monitor": True}
        )
        made.add_node(**SIZE)
    yield made
    made.shutdown()


def launch(made: Any, rows: int, out: Path, told: Path) -> subprocess.Popen[str]:
    """Start a run on the cluster, and wait until it has committed something."""
    there = ["--nodes", "1", "--address", made.address, "--events", str(told)]
    driver = subprocess.Popen(
        [*ZCPIPE, *WORDS, "--range", f"0:{rows}", "--out", str(out), *there],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "CROWD": str(ROWS)},
    )
    while not (told.exists() and '"committed"' in told.read_text()):
        assert driver.poll() is None
        time.sleep(0.1)
    return driver


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_head_ends_a_run_in_order(
    how: signal.Signals, cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = psutil.Process(cluster.head_node.all_processes["gcs_server"][0].process.pid)
    out, told = tmp_path / "table", tmp_path / "events.jsonl"
    driver = launch(cluster, ROWS, out, told)
    head.send_signal(how)
    _, said = driver.communicate(timeout=120)
    head.kill()

    assert driver.returncode == 5, said
    (message,) = (line for line in said.splitlines() if line.startswith("error: "))
    assert "the head of the Ray cluster has not answered for 30 s" in message and "same command goes on" in message
    left = status(out)
    events = [json.loads(line) for line in told.read_text().splitlines()]
    committed = sum(event["rows"] for event in events if event["event"] == "committed")
    assert 0 < left.rows < ROWS and committed == left.rows and not left.complete
    monkeypatch.setenv("CROWD", str(ROWS))
    again = subprocess.run([*ZCPIPE, *WORDS, "--out", str(out)], check=True, capture_output=True, text=True)
    found = json.loads(again.stdout)
    assert (found["present"], found["new"], found["failed"]) == (committed, ROWS - committed, 0)


def test_a_supervisor_that_was_stopped_itself_takes_nobody_for_lost(cluster: Any, tmp_path: Path) -> None:
    told = tmp_path / "events.jsonl"
    driver = launch(cluster, 500, tmp_path / "table", told)
    driver.send_signal(signal.SIGSTOP)
    time.sleep(35.0)  # longer than a head may be silent
    driver.send_signal(signal.SIGCONT)
    out, said = driver.communicate(timeout=120)
    assert driver.returncode == 0, said
    assert json.loads(out)["new"] == 500 and '"left"' not in told.read_text()


def test_sigterm_interrupts_like_ctrl_c(cluster: Any, tmp_path: Path) -> None:
    """Not as Ray has it, which exits with the number of the signal and a stack dump."""
    out = tmp_path / "table"
    driver = launch(cluster, ROWS, out, tmp_path / "events.jsonl")
    driver.terminate()
    _, said = driver.communicate(timeout=60)
    assert driver.returncode == 130, said
    assert said.splitlines() == ["interrupted: finished shards are committed; the same command goes on"]
    assert 0 < status(out).rows < ROWS
