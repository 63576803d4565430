"""Which nodes of a cluster a run uses: those it has, those that are tried next, and those that are left alone."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from zcpipe.errors import CapabilityError, ZcpipeError
from zcpipe.run.executor import Lease
from zcpipe.run.nodes.agent import Placement

DEATHS = 3  # of agents of one node, with no result in between, after which the node is left alone
_LEASES_PER_ACTOR = 2
_LATE = 60.0  # seconds after which a spare node is tried beside one that has not started its agent
_REST = 300.0  # seconds for which a node that has computed something is left alone
_DESERTED = 600.0  # seconds without any node after which a run ends


@dataclass(eq=False)
class Host:
    """An agent and the node it is on."""

    node: str
    name: str
    placement: Placement
    agent: Any  # a handle of Ray's
    since: float = field(default_factory=time.monotonic)
    ready: bool = False
    told: bool = False  # that it does not start
    pulse: Any = None  # a reference: the last question whether it is there
    silent: float = 0.0  # seconds since that was asked in which this process ran
    flying: dict[Any, tuple[Lease, float]] = field(default_factory=dict)  # by reference: when it was given

    @property
    def room(self) -> int:
        """How many leases more it can take."""
        return _LEASES_PER_ACTOR * self.placement.actors - len(self.flying) if self.ready else 0

    def has(self, lease: Lease) -> bool:
        """Whether it has a unit of a lease already, as a copy of what another was slow with."""
        return any(unit in other.units for other, _ in self.flying.values() for unit in lease.units)


def calls(placement: Placement) -> int:
    """Return how many calls an agent must be able to answer side by side: its leases, and whether it is there."""
    return _LEASES_PER_ACTOR * placement.actors + 2


class Roster:
    """The nodes that a run has, so many that as many as asked for compute.

    Args:
        wanted: how many.
    """

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted
        self.hosts: dict[str, Host] = {}
        self._seen: dict[str, float] = {}  # when a node was last there
        self._memory: dict[str, int] = {}  # bytes that each actor may hold, of nodes that are or were ready
        self._useful: set[str] = set()  # that have computed something
        self._ends: Counter[str] = Counter()  # of a node's agents, with no result in between
        self._late: set[str] = set()  # that did not start their agent while others did
        self._barred: dict[str, tuple[ZcpipeError, float]] = {}  # until when
        self._populated = time.monotonic()

    @property
    def ready(self) -> list[Host]:
        """Those that compute."""
        return [host for host in self.hosts.values() if host.ready]

    def see(self, nodes: Iterable[str]) -> None:
        """Take note of which nodes there are.

        Raises:
            ZcpipeError: no node can be used: the reason of the first of them.
            CapabilityError: for ten minutes there was none that could.
        """
        now = time.monotonic()
        self._seen |= dict.fromkeys(nodes, now)
        self._barred = {node: (error, until) for node, (error, until) in self._barred.items() if now < until}
        if self.ready:
            self._populated = now
            return
        # One that is away for a moment may come back, so those that are there do not decide alone.
        lately = [node for node, when in self._seen.items() if now < when + _DESERTED]
        if lately and self._barred.keys() >= set(lately):
            raise self._barred[lately[0]][0]
        if now > self._populated + _DESERTED:
            barred = "".join(f" ({error})" for error, _ in list(self._barred.values())[:1])
            raise CapabilityError(
                f"no node could be used for {_DESERTED:.0f} s{barred}; finished shards are committed, and the same "
                "command goes on when the cluster is back or free"
            )

    def following(self, nodes: Iterable[str]) -> list[str]:
        """Return which of the nodes that are there to try now: one too for each that is late to start its agent."""
        now = time.monotonic()
        counted = sum(host.ready or now < host.since + _LATE for host in self.hosts.values())
        spare = [node for node in nodes if node not in self.hosts and node not in self._barred]
        spare.sort(key=lambda node: (self._ends[node], node in self._late))
        return spare[: max(0, self._wanted - counted)]

    def accept(self, host: Host, memory: int) -> list[Host]:
        """Let a host compute, and return those that are then too many, for they have not started."""
        host.ready = True
        self._memory[host.node] = memory
        if len(self.ready) < self._wanted:
            return []
        waiting = [other for other in self.hosts.values() if not other.ready]
        self._late |= {other.node for other in waiting}
        return waiting

    def succeed(self, node: str) -> None:
        """Take note that a node has computed something."""
        self._useful.add(node)
        self._ends[node] = 0

    def end(self, node: str) -> bool:
        """Take note that an agent of a node ended; return whether that was one too many."""
        self._ends[node] += 1
        return self._ends[node] >= DEATHS

    def bar(self, node: str, error: ZcpipeError) -> bool:
        """Leave a node alone, for five minutes if it has computed something before; return whether for these only."""
        rests = node in self._useful
        self._barred[node] = (error, time.monotonic() + (_REST if rests else float("inf")))
        if rests:
            self._ends[node] = 0
        return rests

    def taker(self, lease: Lease) -> Host | None:
        """Return the host that is to have a lease, if one can take it now.

        What ended a worker goes elsewhere if there is an elsewhere, and to where workers may hold most if that is more
        than it had: whether it needs too much must not depend on which node it came to.
        """
        hosts = [host for host in self.ready if not (lease.alone and host.has(lease))]
        if lease.avoid:
            most = max((self._memory[host.node] for host in hosts), default=0)
            if most > self._memory.get(lease.avoid, 0):
                hosts = [host for host in hosts if self._memory[host.node] == most]
            else:
                hosts = [host for host in hosts if host.node != lease.avoid] or hosts
        open_ = [host for host in hosts if host.room > 0]
        return max(open_, key=lambda host: host.room / host.placement.actors, default=None)

    def next(self, queue: Sequence[Lease]) -> tuple[int, Host] | None:
        """Return the first lease of a queue that a host can take, by its place, and the host."""
        if not any(host.room > 0 for host in self.ready):
            return None
        return next(((i, host) for i, lease in enumerate(queue) if (host := self.taker(lease)) is not None), None)
