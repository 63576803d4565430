"""AZ-NAS's search on the nodes of a real Ray cluster on this machine."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from zcpipe.run import RunSpec
from zcpipe.run.nodes.cluster import Cluster
from zcpipe.search.aznas import HISTORY, AzNasSpec, aznas_search

pytest.importorskip("ray")
pytestmark = pytest.mark.xdist_group("ray")  # one cluster on this machine at a time


@pytest.fixture
def address():
    """Where Ray keeps which cluster is this machine's own: one that is no more."""
    file = Path(import_module("ray._private.utils").get_ray_address_file(None))
    before = file.read_text() if file.exists() else None
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("192.0.2.1:6379")
    yield file
    file.unlink() if before is None else file.write_text(before)


def test_the_same_on_nodes(tmp_path, monkeypatch, address):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    run = RunSpec(
        space="nasbenchmacro", dataset="cifar10", proxies=("expressivity", "params"), batch_size=2, resolution=8
    )
    spec = AzNasSpec(run=run, budget=16, batch=8, population=6)
    aznas_search(spec, tmp_path / "here")
    aznas_search(spec, tmp_path / "nodes", cluster=Cluster(2, actors_per_node=1, simulated=True))
    here, nodes = (pq.read_table(tmp_path / name / HISTORY).drop_columns("seconds") for name in ("here", "nodes"))
    assert here == nodes
    assert address.read_text() == "192.0.2.1:6379", "what is simulated is no cluster of this machine"
    aznas_search(spec, tmp_path / "nodes", cluster=Cluster(2, address="nowhere:1"))  # nothing is left to connect for
