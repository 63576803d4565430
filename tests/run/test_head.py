"""What is left of a run whose cluster loses its head: one message, what was committed, and a way on."""

from __future__ import annotations

import json
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
    monkeypatch.setenv("CROWD", str(ROWS))
    with monkeypatch.context() as patch:
        patch.setenv("HAZARD_ELSE", "nap")
        patch.setenv("RAY_worker_niceness", "0")  # other tests run beside this one
        made: Any = cluster_utils.Cluster(
            initialize_head=True, head_node_args={**SIZE, "num_cpus": 0, "include_dashboard": False}
        )
        made.add_node(**SIZE)
    yield made
    made.shutdown()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_head_ends_a_run_in_order(how: signal.Signals, cluster: Any, tmp_path: Path) -> None:
    head = psutil.Process(cluster.head_node.all_processes["gcs_server"][0].process.pid)
    told = tmp_path / "events.jsonl"
    command = [*ZCPIPE, *WORDS, "--out", str(tmp_path / "table")]
    there = ["--nodes", "1", "--address", cluster.address, "--events", str(told)]
    with subprocess.Popen([*command, *there], stderr=subprocess.PIPE, text=True) as driver:
        while not (told.exists() and '"committed"' in told.read_text()):
            assert driver.poll() is None
            time.sleep(0.1)
        head.send_signal(how)
        _, said = driver.communicate(timeout=120)
    head.kill()

    assert driver.returncode == 5, said
    (message,) = (line for line in said.splitlines() if line.startswith("error: "))
    assert "the head of the Ray cluster has not answered for 30 s" in message and "same command goes on" in message
    left = status(tmp_path / "table")
    events = [json.loads(line) for line in told.read_text().splitlines()]
    committed = sum(event["rows"] for event in events if event["event"] == "committed")
    assert 0 < left.rows < ROWS and committed == left.rows and not left.complete
    again = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(again.stdout)
    assert (found["present"], found["new"], found["failed"]) == (committed, ROWS - committed, 0)
