"""The executor on a Ray cluster: an agent on each node, minded so that no node can stop a run."""

from __future__ import annotations

import math
import platform
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from zcpipe.errors import CapabilityError, ZcpipeError
from zcpipe.ops import build_info
from zcpipe.run.code import code_digest
from zcpipe.run.events import Event, Joined, Left, Warned
from zcpipe.run.executor import Died, Done, Lease, Outcome
from zcpipe.run.nodes.agent import Agent, Hello, layout
from zcpipe.run.nodes.cluster import Cluster
from zcpipe.run.nodes.metrics import Metrics
from zcpipe.run.nodes.roster import DEATHS, Host, Roster, calls
from zcpipe.run.nodes.watch import Watch
from zcpipe.run.spec import RunSpec
from zcpipe.run.work import Unit
from zcpipe.table.schema import package_version

_GLANCE = 2.0  # seconds between two looks at which nodes there are
_STRAGGLING = 10.0  # seconds after which a lease is given to an idle node as well
_SLOW = 20.0  # seconds after which an agent that has not started is told of
_FROZEN = 60.0  # seconds in which an agent that is ready must answer


class NodesExecutor:
    """Computes units on the nodes of a cluster.

    What an agent had when it or its node was lost is given to others, without blame for any unit: a unit can only end
    a worker, and that the agent tells. Nodes that join or come back are used as long as fewer than asked for are, and
    tried beside those that are long in starting. Towards the end idle nodes are given what others still have; the first
    result counts.

    Raises:
        CapabilityError: no node can be used.
    """

    def __init__(self, spec: RunSpec, cluster: Cluster, timeout: float, on_event: Callable[[Event], None]) -> None:
        import ray

        self._ray = ray
        self._spec = spec
        self._cluster = cluster
        self._timeout = timeout
        self._on_event = on_event
        self._metrics = Metrics()
        self._watch = Watch(ray)
        self._roster = Roster(cluster.nodes)
        self._hosts = self._roster.hosts
        self._hellos: dict[Any, Host] = {}
        self._queue: deque[Lease] = deque()
        self._awaited: set[Unit] = set()
        self._glanced = -math.inf
        self._layout = layout(spec)
        self._without_library: set[str] = set()

    @property
    def capacity(self) -> int:
        """The number of actors on the nodes that are used now."""
        return max(1, sum(host.placement.actors for host in self._hosts.values()))

    def wants(self) -> bool:
        """Whether the next agent to run short of leases would find none; what goes to certain nodes does not count."""
        return all(lease.avoid for lease in self._queue)

    def submit(self, lease: Lease) -> None:
        """Queue a lease and hand out what agents can take."""
        self._awaited.update(lease.units)
        self._queue.append(lease)
        self._hand_out()

    def collect(self, patience: float = 1.0) -> list[Outcome]:
        """Wait ``patience`` seconds at most for one or more outcomes.

        Raises:
            CapabilityError: no node can be used, none has been there for ten minutes, or the cluster's head was lost.
            ZcpipeError: what agents say of every node.
        """
        self._reconcile()
        self._hand_out()
        references = [*self._hellos, *(reference for host in self._hosts.values() for reference in host.flying)]
        if not references:
            time.sleep(min(patience, 0.2))
            return []
        ready, _ = self._ray.wait(references, num_returns=1, timeout=patience)
        if ready:  # and whatever else there is
            ready, _ = self._ray.wait(references, num_returns=len(references), timeout=0)
        return [outcome for reference in ready for outcome in self._take(reference)]

    def close(self) -> None:
        """End all agents."""
        self._watch.close()
        for host in self._hosts.values():
            self._end(host)
        self._hosts.clear()
        self._hellos.clear()
        self._queue.clear()

    # -- nodes

    def _reconcile(self) -> None:
        """Leave the nodes that are gone and use others in their place."""
        now = time.monotonic()
        passed = now - self._glanced
        if passed < _GLANCE:
            return
        self._glanced = now
        nodes = {node["NodeID"]: node for node in self._watch.nodes()}
        for host in list(self._hosts.values()):
            if host.node not in nodes:
                self._lose(host, "the node is gone")
            elif host.ready:
                self._feel(host, min(passed, 2 * _GLANCE))  # not what this process was stopped for, as by Ctrl-Z
        for node in self._roster.following(nodes):
            self._start(nodes[node])
        for host in self._hosts.values():
            if not host.ready and not host.told and time.monotonic() > host.since + _SLOW:
                host.told = True
                self._on_event(
                    Warned(
                        f"node {host.name} has not started its actors yet; {host.placement.needs} may be taken by "
                        "another job (ray status shows it)"
                    )
                )
        self._roster.see(nodes)

    def _feel(self, host: Host, passed: float) -> None:
        """Leave an agent that does not answer: its node may be well, and others need not be there to notice."""
        host.silent += passed
        if host.pulse is None or self._ray.wait([host.pulse], timeout=0)[0]:
            with suppress(self._ray.exceptions.RayError):  # its end, which all that it has tells as well
                for message in self._ray.get(host.pulse) if host.pulse is not None else ():
                    self._on_event(Warned(f"node {host.name}: {message}"))
            host.pulse, host.silent = host.agent.answer.remote(), 0.0
        elif host.silent > _FROZEN:
            self._lose(host, f"its agent has not answered for {_FROZEN:.0f} s")

    def _end(self, host: Host) -> None:
        """Have Ray end an agent; one that it cannot reach ends with its node or with this process."""
        with suppress(self._ray.exceptions.RayError):
            self._ray.kill(host.agent)

    def _start(self, node: dict[str, Any]) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}, {node['NodeID'][:8]})"
        try:
            placement = self._cluster.placement(node["Resources"])
        except CapabilityError as error:
            self._bar(node["NodeID"], name, error)
            return
        agent: Any = (
            self._ray.remote(Agent)
            .options(
                num_cpus=min(placement.actors, node["Resources"]["CPU"]),
                num_gpus=placement.gpus,
                max_restarts=0,
                max_task_retries=0,
                max_concurrency=calls(placement),
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
            )
            .remote(self._spec.for_workers(), placement, self._timeout)
        )
        host = self._hosts[node["NodeID"]] = Host(node["NodeID"], name, placement, agent)
        self._hellos[agent.hello.remote()] = host

    def _greet(self, host: Host, hello: Hello) -> None:
        own = (package_version(), platform.python_version())
        if (hello.version, hello.python) != own:
            self._bar(
                host.node,
                host.name,
                CapabilityError(
                    f"node {host.name} has zcpipe {hello.version} on Python {hello.python}, this process {own[0]} on "
                    f"{own[1]}; install the same on all nodes"
                ),
            )
            return
        if (hello.code, hello.layout) != (code_digest(), self._layout):
            what = "other columns than" if hello.layout != self._layout else "with another code than"
            error = CapabilityError(
                f"node {host.name} computes {what} this process: its zcpipe or its plugins are of another version; "
                "install the same on all nodes"
            )
            self._bar(host.node, host.name, error)
            return
        if build_info()["native"] and not hello.native and host.name not in self._without_library:
            self._without_library.add(host.name)
            self._on_event(
                Warned(f"node {host.name} lacks the native library and computes slowly; see zcpipe doctor there")
            )
        for surplus in self._roster.accept(host, hello.memory):
            self._drop(surplus)
        self._on_event(Joined(host.name, host.placement.actors))

    def _drop(self, host: Host) -> None:
        """Use an agent no more."""
        self._hosts.pop(host.node, None)
        self._hellos = {reference: other for reference, other in self._hellos.items() if other is not host}
        self._end(host)

    def _leave(self, host: Host, reason: str) -> None:
        """Use an agent no more and give back what it had."""
        self._drop(host)
        for lease, _ in reversed(list(host.flying.values())):
            self._requeue(lease)
        host.flying.clear()
        if host.ready:
            self._on_event(Left(host.name, reason))

    def _lose(self, host: Host, reason: str) -> None:
        """Leave an agent that has ended; its node may get another."""
        self._leave(host, reason)
        if self._roster.end(host.node):
            error = CapabilityError(f"{DEATHS} agents in a row ended on node {host.name}: {reason}")
            self._bar(host.node, host.name, error)

    def _bar(self, node: str, name: str, error: ZcpipeError) -> None:
        if (host := self._hosts.get(node)) is not None:
            self._leave(host, str(error))
        now = " now, and tried again in five minutes" if self._roster.bar(node, error) else ""
        self._on_event(Warned(f"node {name} is not used{now}: {error}"))

    # -- leases

    def _hand_out(self) -> None:
        while (found := self._roster.next(self._queue)) is not None:
            place, host = found
            lease = self._queue[place]
            del self._queue[place]
            self._give(host, lease)
        self._share_the_tail()

    def _give(self, host: Host, lease: Lease) -> None:
        host.flying[host.agent.work.remote(lease)] = (lease, time.monotonic())

    def _requeue(self, lease: Lease) -> None:
        flying = {unit for host in self._hosts.values() for other, _ in host.flying.values() for unit in other.units}
        left = tuple(unit for unit in lease.units if unit in self._awaited and unit not in flying)
        if left:
            self._queue.appendleft(replace(lease, units=left))

    def _share_the_tail(self) -> None:
        """Give an idle node what another has had for long, once."""
        idle = [host for host in self._hosts.values() if host.ready and not host.flying]
        if not idle:
            return
        flying = [entry for host in self._hosts.values() for entry in host.flying.values()]
        copies = Counter(unit for lease, _ in flying for unit in lease.units)
        late = [lease for lease, since in flying if time.monotonic() > since + _STRAGGLING]
        for host, lease in zip(idle, (lease for lease in late if copies[lease.units[0]] == 1), strict=False):
            self._give(host, lease)

    def _take(self, reference: Any) -> Iterable[Outcome]:  # noqa: ANN401 - a reference of Ray's
        """Take in what an agent returned, or take note of its end."""
        if (host := self._hellos.pop(reference, None)) is not None:
            if (hello := self._get(host, reference)) is not None:
                self._greet(host, hello)
            return
        for host in list(self._hosts.values()):
            if reference in host.flying:
                found = self._get(host, reference)
                host.flying.pop(reference, None)
                if found is not None:
                    self._roster.succeed(host.node)
                    for outcome in found:
                        for first in self._first(outcome, host):
                            self._metrics.count(first, host.name)
                            yield first
                return

    def _get(self, host: Host, reference: Any) -> Any:  # noqa: ANN401 - what an agent's method returns
        """Return what a call returned, None where the agent cannot be used any more."""
        errors = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except errors.RayError as error:
            if isinstance(error, errors.RayTaskError) and isinstance(error.cause, ZcpipeError):
                self._bar(host.node, host.name, error.cause)
            else:  # its end, a fault of its own, or a result that was lost on its way
                self._lose(host, _last_line(error))
        return None

    def _first(self, outcome: Outcome, host: Host) -> Iterable[Outcome]:
        """Pass on what nobody has told yet of the units of an outcome."""
        if isinstance(outcome, Died):
            if outcome.unit in self._awaited:
                self._awaited.discard(outcome.unit)
                yield replace(outcome, place=host.node)
            return
        new = [unit in self._awaited for unit in outcome.units]
        self._awaited.difference_update(outcome.units)
        if all(new):
            yield replace(outcome, place=host.name)
        elif any(new):
            kept = np.repeat(new, [len(unit.members) for unit in outcome.units])
            units = tuple(unit for unit, fresh in zip(outcome.units, new, strict=True) if fresh)
            yield Done(
                units, outcome.rows.filter(kept), outcome.seconds * sum(new) / len(new), outcome.build, host.name
            )


def _last_line(error: Exception) -> str:
    return ([line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__])[-1]
