"""Three hosts with a network between them: one is cut off in the middle of a run, and comes back."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from small_runs import content

pytest.importorskip("ray")

BRIDGE = "zcbr0"
NET = "10.213.7"
HOSTS = (1, 2, 3)
FAIR = {"RAY_worker_niceness": "0"}  # other tests run beside this one
FAST = {f"RAY_health_check_{name}": value for name, value in (("period_ms", "1000"), ("timeout_ms", "2000"))}
pytestmark = [
    pytest.mark.xdist_group("ray"),  # one cluster on this machine at a time
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("ip") is None, reason="network namespaces need root and iproute2"
    ),
]


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@contextmanager
def network() -> Iterator[None]:
    """A bridge with a namespace for each host."""
    with ExitStack() as undo:
        ip("link", "add", BRIDGE, "type", "bridge")
        undo.callback(ip, "link", "del", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        for host in HOSTS:
            ip("netns", "add", f"zc{host}")
            undo.callback(ip, "netns", "del", f"zc{host}")
            ip("link", "add", f"zcv{host}", "type", "veth", "peer", "name", "eth0", "netns", f"zc{host}")
            ip("link", "set", f"zcv{host}", "master", BRIDGE, "up")
            for arguments in (f"addr add {NET}.{host}/24 dev eth0", "link set eth0 up", "link set lo up"):
                ip("-n", f"zc{host}", *arguments.split())
        yield


def inside(host: int, command: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start a command on a host."""
    with log.open("ab") as output:
        return subprocess.Popen(
            ["ip", "netns", "exec", f"zc{host}", *command], env=environment, stdout=output, stderr=output
        )


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process with all that it has started."""
    with suppress(psutil.Error):
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for member in family:
            with suppress(psutil.Error):
                member.send_signal(signal.SIGKILL)
    process.wait()


class Hosts:
    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self._directory = directory
        self._environment = environment
        self._ray = str(Path(sys.executable).with_name("ray"))
        self._running: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, host: int) -> None:
        where = ["--head", "--port=6379", "--include-dashboard=false"] if host == 1 else [f"--address={NET}.1:6379"]
        cores = "0" if host == 1 else "1"
        command = [self._ray, "start", "--block", f"--node-ip-address={NET}.{host}", f"--num-cpus={cores}", *where]
        command.append(f"--object-store-memory={80 << 20}")
        log = self._directory / f"host{host}.log"
        log.unlink(missing_ok=True)
        self._running[host] = inside(host, command, self._environment, log)
        deadline = time.monotonic() + 90
        while "Ray runtime started" not in log.read_text():  # they share /tmp, where nodes name their files in turn
            assert time.monotonic() < deadline and self._running[host].poll() is None, log.read_text()
            time.sleep(0.2)

    def end(self, host: int) -> None:
        end(self._running.pop(host))

    def end_all(self) -> None:
        for host in list(self._running):
            self.end(host)


def events(path: Path, kind: str) -> list[dict[str, object]]:
    lines = path.read_text().splitlines() if path.exists() else []
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def wait_for(path: Path, kind: str, count: int, run: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 180
    while len(events(path, kind)) < count:
        assert run.poll() is None, log.read_text()
        assert time.monotonic() < deadline, f"no {count} times {kind}: {log.read_text()}"
        time.sleep(0.2)


def test_a_host_that_is_cut_off_and_comes_back_costs_no_row(tmp_path: Path) -> None:
    slow = {"HAZARD_ELSE": "nap long", "CROWD": "240"}
    tokens = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    environment = {**os.environ, **slow, **FAST, **FAIR, **tokens}
    log, told = tmp_path / "run.log", tmp_path / "events.jsonl"
    plain = ["--space", "crowd", "--proxies", "expressivity,params", "--batch-size", "4", "--out"]
    zcpipe = [sys.executable, "-m", "zcpipe", "run"]
    quick = {**os.environ, "CROWD": "240"}
    subprocess.run([*zcpipe, *plain, str(tmp_path / "plain")], env=quick, check=True, capture_output=True)
    hosts = Hosts(tmp_path, environment)
    with network():
        try:
            for host in HOSTS:
                hosts.start(host)
            there = ["--nodes", "2", "--address", f"{NET}.1:6379", "--events", str(told)]
            run = inside(1, [*zcpipe, *plain, str(tmp_path / "table"), *there], environment, log)
            try:
                wait_for(told, "scored", 6, run, log)
                ip("link", "set", "zcv3", "down")
                wait_for(told, "left", 1, run, log)
                scored = len(events(told, "scored"))
                wait_for(told, "scored", scored + 2, run, log)
                ip("link", "set", "zcv3", "up")
                hosts.end(3)
                hosts.start(3)
                wait_for(told, "joined", 3, run, log)
                assert run.wait(timeout=240) == 0, log.read_text()
            finally:
                end(run)
        finally:
            hosts.end_all()
    assert content(tmp_path / "table").equals(content(tmp_path / "plain"))
