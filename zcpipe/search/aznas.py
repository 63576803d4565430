"""AZ-NAS's searches as a whole: from a spec to a history, its best architecture and its Pareto front."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, ValidationError, model_validator

from zcpipe.errors import UsageError, asking, first_fault, unknown_name
from zcpipe.parzc.labels import require_seeds
from zcpipe.parzc.parallel import Progress
from zcpipe.proxies import resolve
from zcpipe.rank.ranking import Floats
from zcpipe.rank.selection import Positions
from zcpipe.run.drive import TIMEOUT, check_options
from zcpipe.run.events import Event
from zcpipe.run.spec import RunSpec
from zcpipe.run.work import key_of
from zcpipe.scoring.columns import COUNTS
from zcpipe.search.algorithms.aznas import AzNas
from zcpipe.search.candidates import TableCandidates
from zcpipe.search.costs import FRONT, LATENCY, Costs
from zcpipe.search.journal import opened
from zcpipe.search.limits import Limits
from zcpipe.search.live import live_scores
from zcpipe.search.result import PICKS, write_tables
from zcpipe.search.scored import LookedUp, Scored, Scorer
from zcpipe.search.scores import TableScores
from zcpipe.spaces import get_space
from zcpipe.spaces.asked import length_of
from zcpipe.spaces.base import Architecture, EnumerableSpace, PublishedFlops

if TYPE_CHECKING:
    from zcpipe.run.nodes.cluster import Cluster

HISTORY = "history.parquet"
FLOPS = "published_flops"
"""The column of what the space's published searches count, where there are such (`PublishedFlops`)."""


class AzNasSpec(BaseModel):
    """All that decides what a search finds.

    Attributes:
        run: how candidates are scored; its proxies are aggregated, what it selects does not matter.
        budget: candidates that are scored for each seed; those whose scoring fails count, infeasible ones do not.
        seconds: no batch begins once so many are spent on scoring, one candidate after the other; None for any number.
        seeds: how many searches.
        seed: of the first; the others follow it.
        proposals: "evolution", or "random" sampling.
        batch: candidates that are proposed together, and scored by whatever works in parallel. The best are found anew
            after each batch, so that it is part of what decides.
        population: evolution takes parents among the best ``population - 1`` of the history.
        aggregate: "logrank" or "linear".
        max_macs: of a candidate; None for any number, as for the others.
        max_params: of a candidate.
        min_params: of a candidate.
        max_layers: of a candidate, as its space counts them.
        max_flops: of a candidate, as published searches of its space count them.

    Raises:
        UsageError: a field is missing, unknown or out of its range, the budget is beyond the space, or the space does
            not say what a limit needs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: RunSpec
    budget: int = Field(default=100_000, ge=1)
    seconds: float | None = Field(default=None, gt=0)
    seeds: int = Field(default=1, ge=1)
    seed: int = Field(default=0, ge=0)
    proposals: Literal["evolution", "random"] = "evolution"
    batch: int = Field(default=64, ge=1)
    population: int = Field(default=1024, ge=2)
    aggregate: Literal["logrank", "linear"] = "logrank"
    max_macs: int | None = None
    max_params: int | None = None
    min_params: int | None = None
    max_layers: int | None = None
    max_flops: int | None = None

    @model_validator(mode="wrap")
    @classmethod
    def _in_one_line(cls, data: Any, handler: ModelWrapValidatorHandler[AzNasSpec]) -> AzNasSpec:  # noqa: ANN401
        try:
            spec = handler(data)
        except ValidationError as error:
            raise UsageError(f"invalid search: {first_fault(error)}") from None
        require_seeds(spec.seeds, spec.seed)
        space = get_space(spec.run.space)
        if isinstance(space, EnumerableSpace) and spec.budget > (length := length_of(space)):
            raise UsageError(
                f"a budget of {spec.budget:,} candidates is beyond {space.name}, which has {length:,} "
                "architectures; each is scored once"
            )
        if spec.run.dataset not in space.datasets:
            raise unknown_name("dataset", spec.run.dataset, space.datasets)
        resolve(spec.run.proxies)
        spec.limits.check(space)
        return spec

    @property
    def limits(self) -> Limits:
        """What candidates must be within."""
        return Limits(self.max_macs, self.max_params, self.min_params, self.max_layers, self.max_flops)

    def identity(self, table: TableScores | None = None) -> dict[str, Any]:
        """Return what all histories of one directory share: all but how far they go."""
        scoring = {**self.run.identity(), "proxies": list(self.run.proxies)}
        if table is not None:
            scoring["table"] = table.digest({*self.run.proxies, *COUNTS})
        fields = ("seed", "proposals", "batch", "population", "aggregate")
        own = {name: getattr(self, name) for name in fields}
        return {"kind": "aznas", "scores": scoring, **own, **asdict(self.limits)}


@dataclass(frozen=True)
class Searched:
    """One search.

    Attributes:
        seed: of its proposals.
        archs: the texts of the candidates, in the order of proposal, [n].
        scored: what came of each.
        aggregate: of each, over all of them; NaN where a proxy failed or was never run.
        best: the position of the best, the first of equal ones; None where no candidate has all proxies.
        front: the positions of the Pareto front, the best first.
        tries: proposals, of which the others were infeasible or candidates already.
        ended: why it ended: of the "budget", for its "seconds", or because "nothing" was left to propose.
    """

    seed: int
    archs: Sequence[str]
    scored: Sequence[Scored]
    aggregate: Floats
    best: int | None
    front: Positions
    tries: int
    ended: str

    @property
    def failed(self) -> int:
        """How many candidates lack a proxy that failed."""
        lacking = zip(self.scored, np.isnan(self.aggregate).tolist(), strict=True)
        return sum(lacks and one.status != "ok" for one, lacks in lacking)

    @property
    def missing(self) -> int:
        """How many other candidates lack a proxy, since it was never run."""
        return int(np.isnan(self.aggregate).sum()) - self.failed


@dataclass(frozen=True)
class AzNasFound:
    """The searches of several seeds, and the costs that fronts were made of."""

    spec: AzNasSpec
    searches: Sequence[Searched]
    costs: Costs

    @property
    def failed(self) -> int:
        """How many candidates lack a proxy that failed, in all searches."""
        return sum(one.failed for one in self.searches)

    @property
    def missing(self) -> int:
        """How many others lack one that was never run, in all searches."""
        return sum(one.missing for one in self.searches)

    def picks(self) -> list[dict[str, Any]]:
        """Return the best architecture of each seed as a record that JSON can hold.

        ``seed``, ``scored`` and ``tries`` (how many candidates and proposals), ``ended``, ``number`` (which candidate
        it is, from 0), ``arch``, ``key``, ``aggregate``, proxies and counts, `FLOPS` among them where the space has
        them.
        """
        return [
            {
                "seed": one.seed,
                "scored": len(one.archs),
                "tries": one.tries,
                "ended": one.ended,
                "number": one.best,
                "arch": one.archs[one.best],
                "key": self._keys(self._parsed([one.archs[one.best]]))[0],
                "aggregate": float(one.aggregate[one.best]),
                **one.scored[one.best].values,
                **{name: _whole(one.scored[one.best].values[name]) for name in COUNTS},
                **{name: flops[0] for name, flops in self._flops(self._parsed([one.archs[one.best]])).items()},
            }
            for one in self.searches
            if one.best is not None
        ]

    def history(self) -> pa.Table:
        """Return all candidates of all seeds in the order of proposal."""
        return self._rows([(one, np.arange(len(one.archs))) for one in self.searches])

    def fronts(self) -> pa.Table:
        """Return the candidates on the front of each seed, best aggregate first."""
        return self._rows([(one, one.front) for one in self.searches])

    def write(self, directory: Path) -> None:
        """Write `HISTORY`, `PICKS` and `FRONT`, each whole or not at all.

        Raises:
            DataError: the disk is full or gone.
        """
        best = [(one, np.array([] if one.best is None else [one.best], np.int64)) for one in self.searches]
        tables = {HISTORY: self.history(), PICKS: self._rows(best), FRONT: self.fronts()}
        write_tables(directory, tables, {"algorithm": "aznas", **self.spec.model_dump(mode="json")})

    def _parsed(self, texts: Sequence[str]) -> list[Architecture]:
        space = get_space(self.spec.run.space)
        with asking(space.name, "the architectures of its texts"):
            return [space.parse(text) for text in texts]

    def _keys(self, archs: Sequence[Architecture]) -> list[str]:
        space = get_space(self.spec.run.space)
        return [key_of(space, arch) for arch in archs]

    def _flops(self, archs: Sequence[Architecture]) -> dict[str, list[float]]:
        """Return the column `FLOPS`, nothing where the space has no such count."""
        space = get_space(self.spec.run.space)
        if not isinstance(space, PublishedFlops):
            return {}
        with asking(space.name, "the published FLOPs of its architectures"):
            return {FLOPS: [space.published_flops(arch, self.spec.run.dataset) for arch in archs]}

    def _rows(self, chosen: Sequence[tuple[Searched, Positions]]) -> pa.Table:
        """Return candidates at positions of searches, with all that is known about them."""
        scored = [one.scored[i] for one, positions in chosen for i in positions.tolist()]
        texts = [one.archs[i] for one, positions in chosen for i in positions.tolist()]
        archs = self._parsed(texts)
        seeds = [one.seed for one, positions in chosen for _ in positions]
        proxies = [name for name in self.spec.run.proxies if name not in COUNTS]
        columns: dict[str, pa.Array] = {
            "seed": pa.array(seeds, pa.int64()),
            "number": pa.array([i for _, positions in chosen for i in positions.tolist()], pa.int64()),
            "arch": pa.array(texts, pa.string()),
            "key": pa.array(self._keys(archs), pa.string()),
            "aggregate": _floats([x for one, positions in chosen for x in one.aggregate[positions].tolist()]),
            **{name: _floats([one.values[name] for one in scored]) for name in proxies},
            **{name: _floats([one.values[name] for one in scored]).cast(pa.int64()) for name in COUNTS},
            **{name: _floats(values) for name, values in self._flops(archs).items()},
        }
        if self.costs.latencies:
            columns[LATENCY] = _floats(self.costs.latency(texts))
        columns["status"] = pa.array([one.status for one in scored], pa.string())
        columns["reason"] = pa.array([one.reason for one in scored], pa.string())
        columns["seconds"] = _floats([one.seconds for one in scored])
        return pa.table(columns)


def aznas_search(
    spec: AzNasSpec,
    out: Path | str | None = None,
    workers: int | None = None,
    timeout: float = TIMEOUT,
    on_event: Callable[[Event], None] = lambda event: None,
    *,
    cluster: Cluster | None = None,
    memory: int | None = None,
    table: TableScores | None = None,
    costs: Sequence[str] = ("macs",),
    latency: tuple[Path | str, str] | None = None,
    progress: Progress | None = None,
) -> AzNasFound:
    """Search. The same call again goes on where one was ended, to the same end bit for bit, however it is computed.

    A call with a larger budget or more seeds goes on, too.

    Args:
        spec: what, how, how far.
        out: a directory for what was scored, `HISTORY`, `PICKS` and `FRONT`; None to keep nothing.
        workers: processes on this machine that score; by default everything is scored in this process.
        timeout: seconds a candidate may take in a worker process.
        on_event: told of nodes, and warned.
        cluster: score on the nodes of a Ray cluster instead.
        memory: bytes that a worker process of this machine may hold, by default its share of 90 % of what there is.
        table: where scores are looked up instead; its architectures alone are candidates. Random proposals are drawn
            from them; of mutations few are, where the table is of a sample.
        costs: what the front holds the aggregate against: some of `zcpipe.search.costs.COSTS`.
        latency: a Parquet file of latencies, which has architectures in a column ``arch``, and its column. Candidates
            that it does not know are not on the front.
        progress: told (candidates scored so far, candidates in all).

    Returns:
        What every seed found.

    Raises:
        UsageError: an option means nothing here.
        DataError: no proposal is within the limits; ``out`` or the latencies are damaged, foreign or unwritable.
        IdentityMismatch: ``out`` holds another search.
        CapabilityError: the device is not there, workers cannot be started, or the cluster cannot be used.
        KeyboardInterrupt: whole batches are kept.
    """
    against = Costs.of(costs, latency)
    if table is None:
        check_options(spec.run, workers, timeout, cluster)  # before a directory is made
    directory = None if out is None else Path(out)
    searches: list[Searched] = []

    def told(scored: int) -> None:
        if progress is not None:
            progress(len(searches) * spec.budget + scored, spec.seeds * spec.budget)

    space = get_space(spec.run.space)
    with ExitStack() as stack:
        if table is not None and spec.budget > len(set(table.texts)):
            raise UsageError(
                f"a budget of {spec.budget:,} candidates is beyond the table, which has {len(set(table.texts)):,} "
                "architectures; each is a candidate once"
            )
        looked_up = None if table is None else LookedUp(table, spec.run.proxies)
        among = None
        if table is not None:
            among = TableCandidates(space, table, spec.run.dataset)
            TableCandidates(space, table, spec.run.dataset, spec.limits)  # says what there is if nothing is within
        journal = stack.enter_context(opened(directory, spec.identity(table)))
        scores: Scorer = looked_up or stack.enter_context(
            live_scores(spec.run, journal, workers, timeout, on_event, cluster=cluster, memory=memory)
        )
        for seed in range(spec.seed, spec.seed + spec.seeds):
            searches.append(_search(spec, seed, scores, among, against, told))
        found = AzNasFound(spec, searches, against)
        if directory is not None:
            found.write(directory)
    return found


def _search(
    spec: AzNasSpec,
    seed: int,
    scores: Scorer,
    among: TableCandidates[Any] | None,
    costs: Costs,
    told: Callable[[int], None],
) -> Searched:
    directions = {name: scores.directions[name] for name in spec.run.proxies}
    algorithm = AzNas(
        get_space(spec.run.space),
        spec.run.dataset,
        directions,
        seed=seed,
        proposals=spec.proposals,
        population=spec.population,
        aggregate=spec.aggregate,
        limits=spec.limits,
        among=among,
    )
    found: list[Scored] = []
    spent, ended = 0.0, "budget"
    while len(found) < spec.budget:
        if spec.seconds is not None and spent >= spec.seconds:
            ended = "seconds"
            break
        wanted = min(spec.batch, spec.budget - len(found))
        archs = algorithm.propose(wanted)
        if archs:
            scored = scores.scored(archs)
            algorithm.tell({name: np.array([one.values[name] for one in scored]) for name in directions})
            found += scored
            spent += sum(one.seconds for one in scored)
            told(len(found))
        if len(archs) < wanted:
            ended = "nothing"
            break
    texts = [str(arch) for arch in algorithm.archs]
    aggregate = algorithm.history.aggregate()
    best = algorithm.history.best(1)
    counts = {name: [one.values[name] for one in found] for name in COUNTS}
    on_front = costs.front(aggregate, "higher", texts, counts)
    return Searched(
        seed, texts, found, aggregate, int(best[0]) if len(best) else None, on_front, algorithm.tries, ended
    )


def _whole(count: float) -> int | float:
    return count if math.isnan(count) else int(count)


def _floats(values: Sequence[float]) -> pa.Array:
    return pa.array(values, pa.float64(), from_pandas=True)  # NaN becomes null
