"""A run on nodes to which everything happens that can, and whose table is then compared with an undisturbed one.

    python pipelines/chaos.py --out runs/chaos --docs docs        # some ten minutes on 2 cores
    python pipelines/chaos.py --out runs/chaos --members 600 --faults worker,raylet,driver

A cluster of four nodes is started on this machine, and on it `zcpipe run` as a user would: 51,000 small networks of the
space `crowd` (tests/plugins), three to a key, some of which crash, hang or take all memory when they are built; then
cells of NAS-Bench-201. Meanwhile processes are killed and frozen, nodes removed and added, the disk filled, the output
moved away, the cluster's head killed; a supervisor that has ended is launched again by the same command. At the end
every row must be there once, equal to that of a run with two workers to which nothing happens, and exactly the members
that were told to misbehave must have failed, for the right reason.

The disk that fills is a small tmpfs, which only root can make; without that the fault is left out, and said.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from study import listed, refuse_unknown

ROOT = Path(__file__).parents[1]
NODES = 4
TIMEOUT = 20.0
MEMORY = "1500MiB"
# What members are told to do when they are built, and what their rows then say.
POISON = {
    "exit": ("error", "its process exited with code 7, twice"),
    "kill": ("error", "its process was killed by SIGKILL, as the system does when memory runs out, twice"),
    "segv": ("error", "its process was killed by SIGSEGV, twice"),
    "raise": ("error", "ValueError: told to raise for member-"),
    "hang": ("timeout", "no result within 20 s"),
    "bloat": ("memory", "of memory, more than the 1.46 GiB of a worker, twice"),
    "exit once": None,
}
# A frozen node is given up in seconds, and nodes have their share of a machine whatever else it does.
RAY = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_worker_niceness": "0",
}


class Machine:
    """A cluster on this machine that can be hurt."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        size = {"object_store_memory": 100 << 20}
        self._size = {**size, "num_cpus": 1}
        self._nodes: Any = Cluster(
            initialize_head=True, head_node_args={**size, "num_cpus": 0, "include_dashboard": False}
        )
        self._frozen: list[psutil.Process] = []
        for _ in range(NODES):
            self.add()

    @property
    def address(self) -> str:
        """Where a supervisor finds it."""
        return str(self._nodes.address)

    def add(self) -> None:
        """Let a node join."""
        self._nodes.add_node(**self._size)

    def end(self) -> None:
        """End all its processes."""
        self.thaw()
        self._nodes.shutdown()

    def thaw(self) -> None:
        """Let everything go on that is frozen."""
        for process in self._frozen:
            with suppress(psutil.Error):
                process.send_signal(signal.SIGCONT)
        self._frozen.clear()

    def freeze(self, processes: list[psutil.Process]) -> None:
        """Stop processes without ending them."""
        for process in processes:
            with suppress(psutil.Error):
                process.send_signal(signal.SIGSTOP)
                self._frozen.append(process)

    def raylet(self, node: Any) -> psutil.Process:  # noqa: ANN401 - Ray's
        """Return the process that is a node."""
        return psutil.Process(node.all_processes["raylet"][0].process.pid)

    def some_node(self, chance: random.Random) -> Any:  # noqa: ANN401 - Ray's
        """Pick a node that computes."""
        return chance.choice(list(self._nodes.worker_nodes))

    def drop(self, node: Any, *, gracefully: bool) -> None:  # noqa: ANN401 - Ray's
        """Remove a node."""
        self._nodes.remove_node(node, allow_graceful=gracefully)

    def kill_head(self) -> None:
        """Kill the process that knows the whole cluster."""
        psutil.Process(self._nodes.head_node.all_processes["gcs_server"][0].process.pid).kill()

    def processes(self, what: str) -> list[psutil.Process]:
        """Return the agents (``ray::Agent``) or workers (``zcpipe.run.worker``) of its nodes."""
        found = []
        for node in self._nodes.worker_nodes:
            with suppress(psutil.Error):
                for process in self.raylet(node).children(recursive=True):
                    if what in " ".join(process.cmdline()):
                        found.append(process)
        return found


class Chaos:
    """A supervisor on a machine, launched again whenever it has ended, and what is done to both."""

    def __init__(self, out: Path, seed: int, say: Callable[[str], None]) -> None:
        self.out = out
        self.chance = random.Random(seed)
        self.say = say
        self.machine = Machine()
        self.launches = 0
        self._command: list[str] = []
        self._driver: subprocess.Popen[bytes] | None = None

    def run(self, command: list[str], faults: list[str], seconds: float) -> None:
        """Run a command to its end, doing something to it every so many seconds."""
        self._command, waiting = command, list(faults)
        self._launch()
        due: float | None = None  # not before anything is computed
        while True:
            time.sleep(0.2)
            assert self._driver is not None
            code = self._driver.poll()
            if code in (0, 3):
                if waiting:
                    raise SystemExit(f"the run has ended before {waiting} could be done to it; give more --members")
                return
            if code is not None:
                self.say(f"the supervisor ended with {code}: {self._last_line()}")
                self._launch()
            if due is None and self._computing():
                due = time.monotonic() + seconds
            if waiting and due is not None and time.monotonic() > due and self._computing():
                fault = waiting.pop(0)
                self.say(f"fault: {fault}")
                getattr(self, f"do_{fault}")()
                due = time.monotonic() + seconds

    def _launch(self) -> None:
        self.launches += 1
        self._log = self.out.with_suffix(f".{self.launches}.log")
        with self._log.open("wb") as log:
            arguments = [*self._command, "--nodes", str(NODES), "--address", self.machine.address]
            self._driver = subprocess.Popen(arguments, stdout=log, stderr=log)

    def _last_line(self) -> str:
        return (self._log.read_text(errors="replace").strip().splitlines() or [""])[-1][:200]

    def _computing(self) -> bool:
        return bool(self.machine.processes("zcpipe.run.worker"))

    def do_worker(self) -> None:
        """Kill an actor."""
        self.chance.choice(self.machine.processes("zcpipe.run.worker")).kill()

    def do_agent(self) -> None:
        """Kill an agent."""
        if agents := self.machine.processes("ray::Agent"):
            self.chance.choice(agents).kill()

    def do_pause(self) -> None:
        """Freeze an agent and its actors for some seconds."""
        if agents := self.machine.processes("ray::Agent"):
            agent = self.chance.choice(agents)
            self.machine.freeze([agent, *agent.children(recursive=True)])
            time.sleep(5.0)
            self.machine.thaw()

    def do_leave(self) -> None:
        """Let a node leave in order, and another join."""
        self.machine.drop(self.machine.some_node(self.chance), gracefully=True)
        self.machine.add()

    def do_raylet(self) -> None:
        """Kill a node, and let another join."""
        node = self.machine.some_node(self.chance)
        self.machine.raylet(node).kill()
        self.machine.drop(node, gracefully=False)
        self.machine.add()

    def do_freeze(self) -> None:
        """Freeze a node for good, and let another join."""
        node = self.machine.some_node(self.chance)
        raylet = self.machine.raylet(node)
        self.machine.freeze([raylet, *raylet.children(recursive=True)])
        self.machine.add()
        time.sleep(12.0)
        self.machine.thaw()
        self.machine.drop(node, gracefully=False)

    def do_driver(self) -> None:
        """Kill the supervisor."""
        assert self._driver is not None
        self._driver.kill()

    def do_interrupt(self) -> None:
        """Interrupt the supervisor, as Ctrl-C does."""
        assert self._driver is not None
        self._driver.send_signal(signal.SIGINT)

    def do_head(self) -> None:
        """Kill the head, wait for the supervisor's end, and start another cluster."""
        assert self._driver is not None
        self.machine.kill_head()
        self._driver.wait(timeout=180)
        self.machine.end()
        self.machine = Machine()

    def do_vanish(self) -> None:
        """Move the table away, and back when the supervisor has ended."""
        assert self._driver is not None
        away = self.out.with_name(f"{self.out.name}.away")
        self.out.rename(away)
        self._driver.wait(timeout=180)
        shutil.rmtree(self.out, ignore_errors=True)
        away.rename(self.out)

    def do_disk(self) -> None:
        """Fill the disk that the table is on, and make room when the supervisor has ended."""
        assert self._driver is not None
        filler = self.out.parent / "filler"
        with suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(bytes(1 << 20))
        self._driver.wait(timeout=180)
        filler.unlink()


@contextmanager
def small_disk(place: Path) -> Iterator[bool]:
    """Put a small disk at a place, if this process may; yield whether it could."""
    place.mkdir(parents=True, exist_ok=True)
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", str(place)], capture_output=True)
    try:
        yield made.returncode == 0
    finally:
        if made.returncode == 0:
            subprocess.run(["umount", str(place)], check=True)


FAULTS = (
    *("worker", "agent", "driver", "leave", "worker", "raylet", "pause", "worker", "agent", "disk", "worker", "freeze"),
    *("interrupt", "worker", "vanish", "agent", "raylet", "worker", "head", "worker", "pause", "driver"),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Do everything, compare, and write the log."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--members", type=int, default=51_000)
    parser.add_argument("--cells", type=int, default=400, help="of NAS-Bench-201, after that")
    parser.add_argument("--faults", type=listed, default=",".join(FAULTS))
    parser.add_argument("--every", type=float, default=8.0, help="seconds between two of them")
    parser.add_argument("--others", help="what all other members do, to make a small run last: nap long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--docs", type=Path, help="where chaos.md goes")
    options = parser.parse_args(arguments)
    refuse_unknown(parser, "fault", options.faults, dict.fromkeys(FAULTS))
    options.out.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    begun = time.monotonic()

    def say(text: str) -> None:
        lines.append(f"{time.monotonic() - begun:7.1f} s  {text}")
        print(lines[-1], file=sys.stderr, flush=True)

    told = prepare(options.out, options.members, options.seed)
    with small_disk(options.out / "disk") as small:
        faults = [fault for fault in options.faults if small or fault != "disk"]
        if len(faults) < len(options.faults):
            say("no small disk can be made here: the full disk is left out")
        verdict = study(options, told, faults, say)
    print(verdict)
    if options.docs is not None:
        text = "\n".join(["# A run to which everything happens", "", verdict, "", "```", *lines, "```", ""])
        (options.docs / "chaos.md").write_text(text)


def prepare(out: Path, members: int, seed: int) -> dict[int, str]:
    """Tell members what to do, and this process's children where they find that."""
    chance = random.Random(seed)
    kinds = [kind for kind in POISON for _ in range(2)]
    told = dict(zip([3 * i for i in chance.sample(range(members // 3), len(kinds))], kinds, strict=True))
    (out / "told.json").write_text(json.dumps(told))
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "plugins"), os.environ.get("PYTHONPATH", "")])
    os.environ |= {"PYTHONPATH": path, "CROWD": str(members), "HAZARD_MARKS": str(out)}
    os.environ |= RAY
    if not os.environ.get("RAY_AUTH_MODE"):
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    sys.path[:0] = path.split(os.pathsep)
    return told


def study(options: argparse.Namespace, told: dict[int, str], faults: list[str], say: Callable[[str], None]) -> str:
    """Run, disturbed and undisturbed, and compare."""
    zcpipe = [sys.executable, "-m", "zcpipe", "run"]
    crowd = [*zcpipe, "--space", "crowd", "--proxies", "expressivity,trainability,params", "--batch-size", "4"]
    cells = [*zcpipe, "--space", "nasbench201", "--sample", str(options.cells)]
    later = ["worker", "raylet"] if options.cells >= 300 else []
    plain = {}
    for name, command in (("crowd", crowd), ("cells", cells)):
        subprocess.run([*command, "--out", str(options.out / name), "--workers", "2"], check=True)
        plain[name] = options.out / name
    say("two workers have made the undisturbed tables")

    os.environ["HAZARDS_FILE"] = str(options.out / "told.json")
    if options.others:
        os.environ["HAZARD_ELSE"] = options.others
    table = options.out / "disk" / "crowd"
    chaos = Chaos(table, options.seed, say)
    try:
        held = ["--out", str(table), "--timeout", f"{TIMEOUT:g}", "--memory", MEMORY]
        chaos.run([*crowd, *held, "--events", str(options.out / "events.jsonl")], faults, options.every)
        say("the crowd is complete")
        failed = compare(table, plain["crowd"], told)
        real = options.out / "disk" / "cells"
        chaos.out = real
        chaos.run([*cells, "--out", str(real)], later, options.every)
        say("the cells are complete")
        compare(real, plain["cells"], {})
    finally:
        chaos.machine.end()
    count = len(faults) + len(told) + len(later)
    return (
        f"`{' '.join(['python', *sys.argv])}`: {options.members} small networks and {options.cells} cells of "
        f"NAS-Bench-201, {count} faults ({len(told)} members that misbehave, {count - len(told)} from outside), "
        f"{chaos.launches} launches. Every row is there once and equals that of an undisturbed run in every column but "
        f"`seconds`; exactly the {failed} rows of the members that misbehave for good have failed, each for its reason."
    )


def compare(disturbed: Path, plain: Path, told: dict[int, str]) -> int:
    """Hold a table against an undisturbed one, and return how many rows have failed, as they should."""
    from zcpipe.table import open_table

    found, wanted = (open_table(path).to_arrow().drop_columns(["seconds"]) for path in (disturbed, plain))
    poisoned = {3 * (index // 3) + i: POISON[kind] for index, kind in told.items() for i in range(3) if POISON[kind]}
    assert found["index"].equals(wanted["index"]), "rows are missing or doubled"
    good = [index not in poisoned for index in wanted["index"].to_pylist()]
    assert found.filter(good).equals(wanted.filter(good)), "rows differ from the undisturbed run's"
    for row in found.filter([not ok for ok in good]).select(["index", "status", "failures"]).to_pylist():
        status, message = poisoned[row["index"]]
        assert row["status"] == status and message in row["failures"][0]["message"], row
    return len(poisoned)


if __name__ == "__main__":
    main()
