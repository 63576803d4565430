"""Scores that are computed when they are asked for, once each, by whatever executes runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from zcpipe.errors import DataError, asking, unknown_name
from zcpipe.proxies import resolve
from zcpipe.rank.ranking import DIRECTIONS, Floats
from zcpipe.run.blame import Blame
from zcpipe.run.drive import TIMEOUT, check_options, drive, executors
from zcpipe.run.events import Event
from zcpipe.run.executor import Done, Executor
from zcpipe.run.leases import Leases
from zcpipe.run.rows import Failed, RowFrame
from zcpipe.run.spec import Archs, RunSpec
from zcpipe.run.work import Shard, Unit, plan, text_of
from zcpipe.scoring.columns import columns_of
from zcpipe.search.journal import Journal, Record
from zcpipe.search.scored import Scored
from zcpipe.spaces import get_space
from zcpipe.spaces.asked import index_of, parsed
from zcpipe.spaces.base import Architecture, EnumerableSpace
from zcpipe.table.schema import EVERYTHING

if TYPE_CHECKING:
    from zcpipe.run.nodes.cluster import Cluster

KIND = "live"
"""Of the journal's records that hold a batch."""

MOST = 256
"""Architectures that are recorded together at most, whoever asks for more: what dies with a process is no more."""


class LiveScores:
    """Scores of any architectures of a space, the same bits as ``zcpipe run --archs`` gives them in a table.

    What an earlier process recorded in the journal is not computed again. A batch is recorded whole, in the order
    asked, when all of it is there; so a search that asks the same again after it was killed is told the same.

    Args:
        spec: how to score. What it selects does not matter.
        journal: of the search.
        executor: makes what computes; called when something is to be computed.
        on_event: warned of a batch whose rows were computed by another build.

    Raises:
        UsageError: an unknown space, data set or proxy.
        DataError: the journal holds scores of other proxies.
    """

    def __init__(
        self,
        spec: RunSpec,
        journal: Journal,
        executor: Callable[[], Executor],
        on_event: Callable[[Event], None] = lambda event: None,
    ) -> None:
        self.spec = spec
        self.space = get_space(spec.space)
        if spec.dataset not in self.space.datasets:
            raise unknown_name("dataset", spec.dataset, self.space.datasets)
        columns = columns_of(self.space, spec.dataset, resolve(spec.proxies))
        self._names = [column.name for column in columns if column.kind != "statistic"]
        self._directions = {column.name: column.direction for column in columns if column.direction in DIRECTIONS}
        self._make = executor
        self._executor: Executor | None = None
        self._on_event = on_event
        self._blame = Blame()
        self._builds: set[str] = set()
        self._known: dict[str, Scored] = {}
        self.keep(journal)

    def keep(self, journal: Journal) -> None:
        """Record in a journal from now on, and compute nothing again that it holds.

        Raises:
            DataError: it holds scores of other proxies.
        """
        self._journal = journal
        for record in journal.found:
            if record["kind"] == KIND:
                self._take(record)

    @property
    def directions(self) -> Mapping[str, str]:
        """The proxies and counts, and of each whether "higher" or "lower" values are better."""
        return self._directions

    def identity(self) -> Mapping[str, Any]:
        """Return what decides the scores, as what JSON can hold."""
        return {**self.spec.identity(), "proxies": list(self.spec.proxies)}

    @property
    def failures(self) -> Counter[str]:
        """Why architectures that were asked for, now or in earlier processes, lack scores: how many for each reason."""
        return Counter(one.reason for one in self._known.values() if one.status != "ok")

    def score(self, archs: Sequence[Architecture]) -> dict[str, Floats]:
        """Score architectures; see `zcpipe.search.scores.Scores`.

        Raises what `scored` raises.
        """
        found = self.scored(archs)
        return {name: np.array([one.values[name] for one in found]) for name in self._directions}

    def scored(self, archs: Sequence[Architecture]) -> list[Scored]:
        """Score architectures, those that have none yet in batches of at most `MOST`.

        Args:
            archs: any of the space, perhaps some more than once.

        Returns:
            What was found, in the order asked.

        Raises:
            UsageError: nothing ends within the timeout.
            CapabilityError: nothing can compute.
            DataError: the journal cannot be written.
        """
        texts = [text_of(self.space, arch) for arch in archs]
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        for first in range(0, len(new), MOST):
            batch = self._compute(new[first : first + MOST])
            self._journal.append(batch)
            self._take(batch)
        return [self._known[text] for text in texts]

    def _compute(self, texts: Sequence[str]) -> Record:
        """Compute a batch and return its record: columns, in the order of the texts."""
        for text in texts:
            self._require_member(text)
        work = plan(self.spec.model_copy(update={"selection": Archs(texts=tuple(texts))}))
        shards = work.shards(np.empty(0, np.int64))
        units = tuple(replace(unit, shard=0) for shard in shards for unit in shard.units)
        sink = _Rows(self.spec, self._names, len(texts))
        if self._executor is None:
            self._executor = self._make()
        leases = Leases(iter([Shard(0, units)]), len(texts))
        drive(self._executor, leases, sink, self._blame, self._builds, self._on_event)
        rows = [sink.rows[text] for text in texts]
        return {
            "kind": KIND,
            "archs": list(texts),
            "values": {name: [_number(row.get(name)) for row in rows] for name in self._names},
            "status": [row["status"] for row in rows],
            "reasons": [_reason(row["failures"]) for row in rows],
            "seconds": [row["seconds"] for row in rows],
            "builds": sorted(sink.builds - {""}),  # what ended its workers has none
        }

    def _require_member(self, text: str) -> None:
        """Refuse a text that the space does not lead back to itself: its row would never come."""
        with asking(self.space.name, f"the architecture of {text}"):
            arch = parsed(self.space, text)
            if isinstance(self.space, EnumerableSpace):
                index = index_of(self.space, arch)
                if (there := str(self.space[index])) != text:
                    raise ValueError(f"index returned {index}, where {there} is")

    def _take(self, batch: Record) -> None:
        """Take in a batch as the journal holds it."""
        if set(batch["values"]) != set(self._names):
            there = ", ".join(batch["values"])
            raise DataError(f"the journal holds scores of {there}, not of {', '.join(self._names)}; give another --out")
        self._builds.update(batch["builds"])
        columns = zip(*(batch["values"][name] for name in self._names), strict=True)
        others = (batch[name] for name in ("archs", "status", "reasons", "seconds"))
        for values, text, status, reason, seconds in zip(columns, *others, strict=True):
            self._known[text] = Scored(dict(zip(self._names, values, strict=True)), status, reason, seconds)


@contextmanager
def live_scores(
    spec: RunSpec,
    journal: Journal | None = None,
    workers: int | None = None,
    timeout: float = TIMEOUT,
    on_event: Callable[[Event], None] = lambda event: None,
    *,
    cluster: Cluster | None = None,
    memory: int | None = None,
) -> Iterator[LiveScores]:
    """Score as long as the context lasts; workers start, and nodes are reached, when something is to be computed.

    Args:
        spec: how to score.
        journal: of the search; by default nothing is kept, until `LiveScores.keep` gives one.
        workers: processes on this machine; by default everything is scored in this process.
        timeout: seconds an architecture may take in a worker process.
        on_event: told of nodes and warned of builds.
        cluster: score on the nodes of a Ray cluster instead.
        memory: bytes that a worker process of this machine may hold, by default its share of 90 % of what there is.

    Raises:
        UsageError: an option is out of range, or as `LiveScores`.
        CapabilityError: the device is not there.
        DataError: as `LiveScores`.
    """
    check_options(spec, workers, timeout, cluster)
    with ExitStack() as stack:

        def make() -> Executor:
            executor_for = stack.enter_context(executors(workers, timeout, cluster, memory, on_event))
            return stack.enter_context(closing(executor_for(spec)))

        yield LiveScores(spec, journal or Journal(), make, on_event)


class _Rows:
    """The rows of one batch by architecture, as they come."""

    def __init__(self, spec: RunSpec, names: Sequence[str], count: int) -> None:
        self._frame = RowFrame(spec)
        self._wanted = ["arch", *names, "status", "failures", "seconds"]
        self._count = count
        self.rows: dict[str, Mapping[str, Any]] = {}
        self.builds: set[str] = set()

    @property
    def waiting(self) -> bool:
        return len(self.rows) < self._count

    def expect(self, shard: Shard) -> None:
        """Await what is counted already."""

    def add(self, done: Done) -> None:
        self.builds.add(done.build)
        self.rows |= {row["arch"]: row for row in done.rows.select(self._wanted).to_pylist()}

    def fail(self, unit: Unit, failed: Failed) -> None:
        self.rows |= {row["arch"]: row for row in self._frame.failed(unit, failed)}

    def commit_finished(self) -> None:
        """Leave everything until the batch is whole."""


def _number(value: float | None) -> float:
    return np.nan if value is None else float(value)


def _reason(failures: Sequence[Mapping[str, str]]) -> str:
    """Say in one line what failed; what a process died of is no proxy's failure."""
    said = [
        failure["message"] if failure["proxy"] == EVERYTHING else f"{failure['proxy']}: {failure['message']}"
        for failure in failures
    ]
    return "; ".join(said)
