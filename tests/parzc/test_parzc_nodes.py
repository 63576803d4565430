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


@pytest.mark.xdist_group("ray")
def test_a_cluster_that_fails_promises_nothing_that_is_not_kept():
    program = """
import operator
from zcpipe.errors import CapabilityError
from zcpipe.parzc.parallel import Pool, each
from zcpipe.run.nodes.cluster import Cluster

try:
    each(operator.truediv, 1, [1, 0], Pool(cluster=Cluster(1, simulated=True)))
except CapabilityError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], env=dict(os.environ), capture_output=True, text=True)
    assert done.stdout.startswith("the Ray cluster fails: "), done.stderr
    assert done.stdout.endswith("; give the command again when the cluster is well\n")
    assert "commit" not in done.stdout and "goes on" not in done.stdout
