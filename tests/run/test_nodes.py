"""Runs on the nodes of a real Ray cluster on this machine: the same rows whatever dies."""

from __future__ import annotations

import builtins
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest
from small_runs import content, spec

from zcpipe.errors import CapabilityError, UsageError
from zcpipe.ops import available
from zcpipe.run import Sample, run
from zcpipe.run.events import Event, Joined, Left, Scored, Warned
from zcpipe.run.nodes.cluster import Cluster, connected
from zcpipe.table import open_table

cluster_utils = pytest.importorskip("ray.cluster_utils")

MIB = 1 << 20
pytestmark = pytest.mark.xdist_group("ray")  # one cluster on this machine at a time


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that says how members behave, which the cluster's processes look at when they build one."""
    path = tmp_path_factory.mktemp("told") / "hazards.json"
    path.write_text("{}")
    return path


@pytest.fixture(scope="module")
def nodes(told: Path) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HAZARDS_FILE", str(told))
        patch.setenv("HAZARD_MARKS", str(told.parent))
        for name, value in (("period_ms", 1000), ("timeout_ms", 2000), ("failure_threshold", 3)):
            patch.setenv(f"RAY_health_check_{name}", str(value))  # a frozen node is given up in seconds
        patch.setenv("RAY_worker_niceness", "0")  # other tests run beside this one
        size = {"num_cpus": 1, "object_store_memory": 80 * MIB}
        made: Any = cluster_utils.Cluster(
            initialize_head=True, head_node_args={**size, "num_cpus": 0, "include_dashboard": False, "no_monitor": True}
        )
        for _ in range(2):
            made.add_node(**size, num_gpus=2)
        yield made
        made.shutdown()


@pytest.fixture(autouse=True)
def well_behaved(told: Path) -> None:
    told.write_text("{}")


def on(made: Any, **fields: Any) -> Cluster:
    return Cluster(**{"nodes": 2, "address": made.address, "actors_per_node": 1, **fields})


def test_nodes_compute_the_rows_that_this_process_does(nodes: Any, tmp_path: Path, undisturbed: pa.Table) -> None:
    events = list[Event]()
    assert run(spec(), tmp_path, cluster=on(nodes), on_event=events.append).by_status == {"ok": 24}
    assert content(tmp_path).equals(undisturbed)
    joined = {event.node: event.actors for event in events if isinstance(event, Joined)}
    assert list(joined.values()) == [1, 1]
    assert {event.node for event in events if isinstance(event, Scored)} <= joined.keys()
    assert run(spec(), tmp_path, cluster=on(nodes)).new == 0


def test_poison_ends_as_rows_and_everything_else_is_there(
    nodes: Any, told: Path, tmp_path: Path, undisturbed: pa.Table
) -> None:
    behaviour = {"2": "bloat", "6": "segv", "10": "hang", "14": "raise", "20": "exit once"}
    told.write_text(json.dumps(behaviour))
    cluster = on(nodes, memory_per_actor=1200 * MIB)
    summary = run(spec(), tmp_path, cluster=cluster, timeout=15.0)
    assert summary.by_status == {"ok": 16, "error": 4, "timeout": 2, "memory": 2}
    rows = content(tmp_path).to_pylist()
    found = {row["index"]: row["failures"][0]["message"] for row in rows if row["failures"]}
    assert set(found) == {2, 3, 6, 7, 10, 11, 14, 15}
    assert found[6] == "its process was killed by SIGSEGV, twice" and found[10] == "no result within 15 s"
    assert [row for row in rows if not row["failures"]] == [
        row for row in undisturbed.to_pylist() if row["index"] not in found
    ]
    told.write_text("{}")
    assert run(spec(), tmp_path, cluster=on(nodes), retry_errors=True).by_status == {"ok": 24}
    assert content(tmp_path).equals(undisturbed)


def agents(nodes: Any) -> list[psutil.Process]:
    raylets = [psutil.Process(node.all_processes["raylet"][0].process.pid) for node in nodes.worker_nodes]
    children = [child for raylet in raylets for child in raylet.children(recursive=True)]
    return [child for child in children if "ray::Agent" in " ".join(child.cmdline())]


def during(action: Callable[[], None]) -> Callable[[Event], None]:
    """Do something once, beside the run, when the first rows have come in."""
    done = threading.Event()

    def tell(event: Event) -> None:
        if isinstance(event, Scored) and not done.is_set():
            done.set()
            threading.Thread(target=action).start()

    return tell


def slow(told: Path) -> None:
    told.write_text(json.dumps({str(i): "nap long" for i in range(0, 24, 2)}))


def lasting(told: Path) -> Callable[[Event], None]:
    """Have most members wait until a third agent has joined, however long that takes."""
    told.write_text(json.dumps({str(i): "wait" for i in range(6, 24, 2)}))
    joined = list[Event]()

    def tell(event: Event) -> None:
        if isinstance(event, Joined):
            joined.append(event)
            if len(joined) == 3:
                released = told.with_suffix(".new")  # in one step: those that wait look at it all the time
                released.write_text("{}")
                released.replace(told)

    return tell


def together(*hearers: Callable[[Event], None]) -> Callable[[Event], None]:
    """Let several hear the same events."""

    def tell(event: Event) -> None:
        for hear in hearers:
            hear(event)

    return tell


def test_an_agent_that_is_killed_is_replaced(nodes: Any, told: Path, tmp_path: Path, undisturbed: pa.Table) -> None:
    events = list[Event]()
    hear = together(events.append, during(lambda: agents(nodes)[0].kill()), lasting(told))
    summary = run(spec(), tmp_path, cluster=on(nodes), on_event=hear)
    assert summary.by_status == {"ok": 24} and content(tmp_path).equals(undisturbed)
    assert any(isinstance(event, Left) for event in events)
    assert sum(isinstance(event, Joined) for event in events) == 3


@pytest.mark.parametrize("how", ["removed", "killed", "frozen"])
def test_a_node_that_is_lost_loses_nothing_and_a_spare_one_takes_its_place(
    how: str, nodes: Any, told: Path, tmp_path: Path, undisturbed: pa.Table
) -> None:
    wait = lasting(told)
    nodes.add_node(num_cpus=1, num_gpus=2, object_store_memory=80 * MIB)
    events, lost, frozen = list[Event](), list[Any](), list[psutil.Process]()

    def lose() -> None:
        used = next(event.node for event in events if isinstance(event, Joined))
        lost.append(next(node for node in nodes.worker_nodes if node.node_id[:8] in used))
        raylet = psutil.Process(lost[0].all_processes["raylet"][0].process.pid)
        match how:
            case "removed":
                nodes.remove_node(lost[0])
            case "killed":
                raylet.kill()
            case "frozen":
                frozen.extend([raylet, *raylet.children(recursive=True)])
                for process in frozen:
                    process.send_signal(signal.SIGSTOP)

    hear = together(events.append, during(lose), wait)
    try:
        summary = run(spec(), tmp_path, cluster=on(nodes), on_event=hear)
    finally:
        for process in filter(psutil.Process.is_running, frozen):
            process.send_signal(signal.SIGCONT)
        if how != "removed":
            nodes.remove_node(lost[0], allow_graceful=False)
    assert summary.by_status == {"ok": 24} and content(tmp_path).equals(undisturbed)
    assert sum(isinstance(event, Joined) for event in events) == 3


def test_an_agent_that_is_frozen_is_replaced_where_there_is_no_other_node(
    nodes: Any, told: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: pa.Table
) -> None:
    slow(told)
    monkeypatch.setattr("zcpipe.run.nodes.executor._FROZEN", 4.0)
    events, stopped = list[Event](), list[psutil.Process]()

    def freeze() -> None:
        stopped.extend(agents(nodes))
        stopped[0].suspend()

    act = during(freeze)
    one = on(nodes, nodes=1)
    summary = run(spec(), tmp_path, cluster=one, on_event=lambda event: (events.append(event), act(event))[0])
    assert summary.by_status == {"ok": 24} and content(tmp_path).equals(undisturbed)
    assert len(stopped) == 1 and not stopped[0].is_running()
    assert [event.reason for event in events if isinstance(event, Left)] == ["its agent has not answered for 4 s"]


def test_an_agent_with_a_fault_is_replaced(
    nodes: Any, told: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: pa.Table
) -> None:
    from zcpipe_substitutes import FaultyAgent  # a plugin, which the cluster's processes have too

    monkeypatch.setattr("zcpipe.run.nodes.executor.Agent", FaultyAgent)
    events = list[Event]()
    summary = run(spec(), tmp_path, cluster=on(nodes, nodes=1), on_event=events.append)
    assert summary.by_status == {"ok": 24} and content(tmp_path).equals(undisturbed)
    assert [event.reason for event in events if isinstance(event, Left)] == ["ValueError: a fault of the agent"]
    assert (told.parent / "faulty").exists()


def test_actors_that_share_a_gpu_see_the_same_one(nodes: Any, told: Path, tmp_path: Path) -> None:
    told.write_text(json.dumps({str(i): "show devices" for i in range(0, 24, 2)}))
    run(spec(), tmp_path, cluster=on(nodes, nodes=1, actors_per_node=4, gpus_per_actor=0.5))
    seen = {path.name: path.read_text() for path in told.parent.glob("devices-*")}
    assert sorted(seen.values()) == ["0", "0", "1", "1"]


def test_what_the_cluster_lacks_is_said_in_one_line(
    nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zcpipe.run.nodes.cluster._ADMISSION", 0.5)
    with pytest.raises(CapabilityError, match=r"9 nodes were asked for and 2 are alive.*--nodes 2"):
        run(spec(), tmp_path, cluster=on(nodes, nodes=9))
    with pytest.raises(CapabilityError, match=r"5 actors of 0.5 GPUs each do not fit a node with 2"):
        run(spec(), tmp_path, cluster=on(nodes, actors_per_node=5, gpus_per_actor=0.5))
    with monkeypatch.context() as patch:
        patch.setattr("zcpipe.run.nodes.executor.package_version", lambda: "9.9")
        with pytest.raises(
            CapabilityError, match=r"has zcpipe .* on Python .*, this process 9.9 on .*install the same"
        ):
            run(spec(), tmp_path, cluster=on(nodes))
    with monkeypatch.context() as patch:
        patch.setattr("zcpipe.run.nodes.executor.code_digest", lambda: "another")
        with pytest.raises(CapabilityError, match=r"computes with another code than this process.*install the same"):
            run(spec(), tmp_path, cluster=on(nodes))
    monkeypatch.setattr("zcpipe.run.nodes.executor.layout", lambda spec: "another")
    with pytest.raises(CapabilityError, match=r"computes other columns than this process.*install the same"):
        run(spec(), tmp_path, cluster=on(nodes))
    assert not list(tmp_path.glob("shard-*"))


def test_what_ray_raises_is_said_in_one_line(nodes: Any) -> None:
    ray = pytest.importorskip("ray")

    @ray.remote
    def slow() -> None:
        time.sleep(2.0)

    said = r"the Ray cluster fails: Get timed out.*; finished shards are committed, and the same command goes on"
    with pytest.raises(CapabilityError, match=said), connected(on(nodes)):
        ray.get(slow.remote(), timeout=0.1)


@pytest.mark.skipif(not available(), reason="the native library is not built")
def test_a_node_without_the_library_is_named_once(nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = list[Event]()
    with monkeypatch.context() as patch:
        patch.setenv("ZCPIPE_NO_NATIVE", "1")
        slow = nodes.add_node(num_cpus=1, object_store_memory=80 * MIB)
    run(spec(), tmp_path, cluster=on(nodes, nodes=3), on_event=events.append)
    nodes.remove_node(slow)
    (lacking,) = (
        event.message for event in events if isinstance(event, Warned) and "lacks the native" in event.message
    )
    assert slow.node_id[:8] in lacking
    assert len(open_table(tmp_path)) == 24


def test_python_is_left_as_it_is(nodes: Any, tmp_path: Path) -> None:
    run(spec(selection=Sample(n=2)), tmp_path, cluster=on(nodes))
    assert builtins.print.__module__ == "builtins"


def test_no_cluster_at_the_address(tmp_path: Path) -> None:
    with pytest.raises(CapabilityError, match=r"no Ray cluster at 127.0.0.1:9.*--simulate-nodes"):
        run(spec(), tmp_path, cluster=Cluster(1, "127.0.0.1:9"))


@pytest.mark.parametrize(
    "fields", [{"nodes": 0}, {"actors_per_node": 0}, {"gpus_per_actor": 0.7}, {"gpus_per_actor": 2.0}]
)
def test_numbers_out_of_range(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="must be"):
        Cluster(**{"nodes": 1, **fields})
