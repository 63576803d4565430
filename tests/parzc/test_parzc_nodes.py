"""Trainings on the nodes of a Ray cluster give what they give here."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("ray")


@pytest.mark.xdist_group("ray")
def test_nodes_give_the_same(directory, truth):
    command = [
        sys.executable, "-m", "zcpipe", "parzc", "evaluate", directory, "--truth", truth, "--target", "test",
        "--statistics", "snip@layer", "--proxies", "params", "--methods", "ridge,ridge:proxies", "--samples", "12",
        "--seeds", "2", "--json",
    ]  # fmt: skip
    found = []
    for options in ((), ("--simulate-nodes", "2")):
        done = subprocess.run([*map(str, command), *options], env=dict(os.environ), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout))
    assert found[0] == found[1]
