"""The agent on a node: worker processes of its own, and one call for each lease.

Ray's process runs no architecture. So an architecture that crashes, hangs or takes all memory ends a worker, whose
death tells exactly which it was, and an agent dies of nothing but its node.
"""

from __future__ import annotations

import hashlib
import math
import os
import platform
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Thread

from zcpipe.ops import build_info
from zcpipe.proxies import resolve
from zcpipe.run import memory
from zcpipe.run.code import code_digest
from zcpipe.run.events import Event, Warned
from zcpipe.run.executor import Died, Lease, Outcome
from zcpipe.run.process import SCORER
from zcpipe.run.spec import RunSpec
from zcpipe.run.work import Unit
from zcpipe.run.workers import WorkersExecutor
from zcpipe.scoring.columns import columns_of
from zcpipe.spaces import get_space
from zcpipe.table.schema import package_version

_PATIENCE = 0.1  # seconds until a lease that came meanwhile is looked for


@dataclass(frozen=True)
class Placement:
    """What the workers of a node get.

    Attributes:
        actors: how many workers there are.
        memory: bytes that each may hold, by default an equal share of the node's.
        per_gpu: how many workers have one GPU together; 0 where they compute on the CPU.
    """

    actors: int
    memory: int | None = None
    per_gpu: int = 0

    @property
    def gpus(self) -> int:
        """How many GPUs they have together."""
        return math.ceil(self.actors / self.per_gpu) if self.per_gpu else 0

    @property
    def needs(self) -> str:
        """What they ask of a node, as text."""
        return f"{self.actors} of its cores and {self.gpus} of its GPUs" if self.gpus else f"{self.actors} of its cores"

    def environments(self, visible: Sequence[str]) -> list[dict[str, str]]:
        """Return the environment of each worker: which of the GPUs that the agent was given it sees.

        Args:
            visible: names of those GPUs, as CUDA_VISIBLE_DEVICES has them.
        """
        if not self.per_gpu:
            return [{"CUDA_VISIBLE_DEVICES": ""} for _ in range(self.actors)]
        return [{"CUDA_VISIBLE_DEVICES": visible[actor // self.per_gpu]} for actor in range(self.actors)]


@dataclass(frozen=True)
class Hello:
    """What an agent says of itself when it is ready.

    Attributes:
        code: what decides values (`zcpipe.run.code.code_digest`).
        layout: of its rows.
        memory: bytes that each of its workers may hold.
    """

    version: str
    python: str
    native: bool
    code: str
    layout: str
    memory: int


def layout(spec: RunSpec) -> str:
    """Name the columns that this process computes for a spec, which elsewhere another version of a proxy may change."""
    columns = columns_of(get_space(spec.space), spec.dataset, resolve(spec.proxies))
    return hashlib.blake2b(repr(columns).encode(), digest_size=16).hexdigest()


@dataclass
class _Ticket:
    lease: Lease
    outcomes: list[Outcome] = field(default_factory=list)
    future: Future[list[Outcome]] = field(default_factory=Future)

    def __post_init__(self) -> None:
        self.missing = len(self.lease.units)

    def add(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self.missing -= 1 if isinstance(outcome, Died) else len(outcome.units)
        if not self.missing:
            self.future.set_result(self.outcomes)


class Agent:
    """Scores leases on the node it is on, in worker processes; Ray makes one of it an actor there.

    Args:
        spec: of the run, as JSON.
        placement: what the workers get.
        timeout: seconds that an architecture may take.
    """

    scorer = SCORER  # what its workers score with; benchmarks have one that only pretends

    def __init__(self, spec: str, placement: Placement, timeout: float) -> None:
        visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        self._spec = RunSpec.model_validate_json(spec)
        self._memory = placement.memory or memory.share(placement.actors)
        self._warnings: SimpleQueue[str] = SimpleQueue()
        self._executor = WorkersExecutor(
            self._spec, placement.environments(visible), timeout, self._memory, self.scorer, self._note
        )
        self._inbox: SimpleQueue[_Ticket] = SimpleQueue()
        Thread(target=self._serve, name="supervisor", daemon=True).start()

    def hello(self) -> Hello:
        """Say what this is; the first call that an agent answers."""
        native = bool(build_info()["native"])
        return Hello(
            package_version(), platform.python_version(), native, code_digest(), layout(self._spec), self._memory
        )

    def answer(self) -> list[str]:
        """Show that this is not frozen, and return the warnings that there have been since."""
        return [self._warnings.get() for _ in range(self._warnings.qsize())]

    def work(self, lease: Lease) -> list[Outcome]:
        """Return the outcomes of a lease's units when all are known. Calls run side by side.

        Raises:
            ZcpipeError: no worker can be started on this node, or what the run needs is not there.
        """
        ticket = _Ticket(lease)
        self._inbox.put(ticket)
        return ticket.future.result()

    def _note(self, event: Event) -> None:
        if isinstance(event, Warned):
            self._warnings.put(event.message)

    def _serve(self) -> None:
        """Mind the workers, which end with this thread."""
        tickets: dict[Unit, _Ticket] = {}
        try:
            while True:
                self._take(tickets)
                for outcome in self._executor.collect(_PATIENCE) if tickets else ():
                    units = (outcome.unit,) if isinstance(outcome, Died) else outcome.units
                    owner = tickets[units[0]]  # what comes together is of one lease
                    for unit in units:
                        del tickets[unit]
                    owner.add(outcome)
        except BaseException as error:
            self._executor.close()
            for ticket in {id(ticket): ticket for ticket in tickets.values()}.values():
                ticket.future.set_exception(error)
            while True:  # later calls are told as well
                self._inbox.get().future.set_exception(error)

    def _take(self, tickets: dict[Unit, _Ticket]) -> None:
        """Hand on what has come in, waiting for it where there is nothing else to do."""
        try:
            while True:
                ticket = self._inbox.get(block=not tickets)
                tickets |= dict.fromkeys(ticket.lease.units, ticket)
                self._executor.submit(ticket.lease)
        except Empty:
            return
