"""`zcpipe search --scores live` on Ray: what nodes compute is what a worker process does, to the bit."""

import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from search_problems import search_command

from zcpipe.search import aznas, result
from zcpipe.search.costs import FRONT
from zcpipe.spaces import get_space

cluster_utils = pytest.importorskip("ray.cluster_utils")
pytestmark = pytest.mark.xdist_group("ray")  # one cluster on this machine at a time

MACRO = get_space("nasbenchmacro")
LIVE = {"space": "nasbenchmacro", "scores": "live", "batch_size": 2, "resolution": 8, "json": ""}
BY_SCORES = {**LIVE, "algorithm": "aznas", "proxies": "expressivity,params", "budget": 12, "batch": 6}
GUIDED = {"warmup": "6:3", "warmup_by": "expressivity", "moves": "trainability", "front": "macs,params"}
POOL = {"budget": 5, "set": ["pool=3", "tournament=2"]}  # so that moves ask for scores, too
TRAINED = {**LIVE, "algorithm": "evolution", "target": "val", **POOL, **GUIDED}


@pytest.fixture
def search(tmp_path):
    """Return a function that searches in a process of its own and returns what was found, but for the time it took."""

    def run(name, given, **where):
        out = tmp_path / name
        command = [sys.executable, "-m", "zcpipe", *search_command({**given, **where, "out": out})]
        done = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        own = (aznas.HISTORY,) if given["algorithm"] == "aznas" else (result.CURVES,)
        tables = {file: pq.read_table(out / file) for file in (*own, result.PICKS, FRONT)}
        kept = {
            file: table.select([column for column in table.column_names if column != "seconds"])
            for file, table in tables.items()
        }
        said = json.loads(done.stdout)
        for row in said["front"]:
            row.pop("seconds", None)
        return {**said, "out": None}, kept

    return run


def test_two_simulated_nodes(search):
    found, tables = search("nodes", BY_SCORES, simulate_nodes=2)
    assert (found["failed"], len(tables[aznas.HISTORY])) == (0, 12)
    assert (found, tables) == search("here", BY_SCORES, workers=1)


def test_two_simulated_nodes_score_for_a_search_that_trains(search, tmp_path):
    archs = pa.array(map(str, MACRO))
    val = [float(MACRO.size(arch, "cifar10").params) for arch in MACRO]
    pq.write_table(pa.table({"arch": archs, "val": val}), tmp_path / "truth.parquet")
    given = {**TRAINED, "truth": tmp_path / "truth.parquet"}
    found, tables = search("nodes", given, simulate_nodes=2)
    assert (found["failed"], len(tables[result.CURVES])) == (0, 5)
    assert (found, tables) == search("here", given, workers=1)


def test_a_node_of_a_cluster_that_is_there(search, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    head = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False, "no_monitor": True}
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
    try:
        found = search("nodes", BY_SCORES, nodes=1, address=cluster.address)
    finally:
        cluster.shutdown()
    assert found == search("here", BY_SCORES, workers=1)
