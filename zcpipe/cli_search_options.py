"""Options of the command in `zcpipe.cli_search`: which mean something for which search, and what is made of them."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from zcpipe.errors import UsageError, unknown_name
from zcpipe.printing import counted, reasons_of
from zcpipe.signals import terminable

if TYPE_CHECKING:
    from zcpipe.run import RunSpec
    from zcpipe.run.nodes.cluster import Cluster
    from zcpipe.search import Guidance, LiveScores, TableScores, TruthAccuracy

AZNAS, LIVE = "aznas", "live"

Algorithm = Annotated[
    str, typer.Option(metavar="NAME", help="random, evolution, reinforce or predictor, which train; or aznas.")
]
Scores = Annotated[
    str,
    typer.Option(
        metavar="TABLE|live",
        help="A table made by zcpipe run, or its URI: its architectures are searched. live: candidates are the whole "
        "space, and scored when the search asks.",
    ),
]
Truth = Annotated[
    Path | None,
    typer.Option(help="Parquet file with a text column 'arch' and the accuracies; aznas needs none, it only reports."),
]
Target = Annotated[str | None, typer.Option(metavar="COLUMN", help="Column of the truth file that guides the search.")]
Budget = Annotated[
    int,
    typer.Option(metavar="N", help="Models to train, those of one key once; or candidates that aznas scores."),
]
Out = Annotated[Path, typer.Option(metavar="DIR", help="Directory for what is found, as Parquet files.")]
Report = Annotated[
    str | None, typer.Option(metavar="COLUMN", help="Column that is only reported, such as test accuracy.")
]
Seeds = Annotated[int, typer.Option(metavar="K", help="Search so many times.")]
Seed = Annotated[int, typer.Option(help="Seed of the first search; the others follow it.")]
WarmUp = Annotated[
    str | None, typer.Option(metavar="M:N", help="Score M random candidates and train the best N first.")
]
WarmUpBy = Annotated[
    str | None, typer.Option(metavar="PROXY", help="Proxy or aggregate that orders those M; see zcpipe aggregates.")
]
Moves = Annotated[
    str | None,
    typer.Option(
        metavar="PROXY",
        help="Proxy or aggregate by which evolution takes a parent's best neighbour; one child in four is random.",
    ),
]
Predicted = Annotated[
    Path | None,
    typer.Option(help="A file that zcpipe parzc predict made for the table: a further proxy, called parzc."),
]
MaxMacs = Annotated[str | None, typer.Option(metavar="X", help="Multiply-accumulates at most, such as 450M.")]
MaxParams = Annotated[str | None, typer.Option(metavar="X", help="Parameters at most, such as 1.5M.")]
MinParams = Annotated[str | None, typer.Option(metavar="X", help="Parameters at least.")]
MaxFlops = Annotated[
    str | None,
    typer.Option(metavar="X", help="FLOPs at most, as the space's published searches count them (mbv2)."),
]
MaxLayers = Annotated[int | None, typer.Option(metavar="N", help="Layers at most, as mbv2 counts them.")]
MaxSeconds = Annotated[
    float | None,
    typer.Option(metavar="S", help="Begin no training, or batch of aznas, once so many seconds are spent on them."),
]
Seconds = Annotated[
    str | None, typer.Option(metavar="COLUMN", help="With --max-seconds: the truth's column of training times.")
]
KnownOnly = Annotated[bool, typer.Option("--known-only", help="Leave out candidates that have no truth.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="A parameter of the algorithm, such as pool=32; repeatable."),
]
Proposals = Annotated[Literal["evolution", "random"], typer.Option(help="aznas: how it proposes candidates.")]
Batch = Annotated[
    int, typer.Option(metavar="N", help="aznas: candidates that are proposed together; it decides what is found.")
]
Aggregate = Annotated[Literal["logrank", "linear"], typer.Option(help="aznas: how ranks are aggregated.")]
Front = Annotated[
    str,
    typer.Option(
        metavar="COSTS",
        help="Costs of the Pareto front of accuracies, of aggregates in aznas: some of macs, params, latency.",
    ),
]
Latency = Annotated[
    Path | None, typer.Option(help="With --front latency: Parquet file with a text column 'arch' and the latencies.")
]
LatencyColumn = Annotated[str | None, typer.Option(metavar="COLUMN", help="Column of the file of latencies.")]
Dataset = Annotated[str | None, typer.Option(help="live: shape of the task. (default: the space's first)")]
Workers = Annotated[
    int | None,
    typer.Option(help="Search in so many processes; live: score in so many. (default: in this one)"),
]

_OF_AZNAS = {"proxies", "proposals", "batch", "aggregate"}
_OF_TRAINING = {"warmup", "warmup_by", "moves", "predicted", "seconds", "known_only"}
_OF_TABLES = {"predicted", "known_only"}
_OF_SCORING = {
    *("batch_size", "resolution", "inputs", "device", "timeout", "memory"),
    *("nodes", "address", "actors_per_node", "gpus_per_actor", "simulate_nodes"),
}

_DIGITS = 19  # of numbers that are beyond any space
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/")
_UNITS = {"K": 10**3, "M": 10**6, "G": 10**9}


def require_meaning(context: typer.Context, algorithm: str, scores: str) -> None:
    """Refuse options that mean nothing for a search.

    Raises:
        UsageError: one is given; the message names it.
    """
    flags = {option.name: option.opts[0] for option in context.command.params if option.name is not None}
    sources = {name: context.get_parameter_source(name) for name in flags}
    given = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]

    def refuse(names: Set[str], why: str) -> None:
        if found := [flags[name] for name in given if name in names]:
            raise UsageError(f"{found[0]} {why}")

    if algorithm == AZNAS:
        refuse(_OF_TRAINING, "is for searches that train models; aznas trains none")
    else:
        refuse({"proxies"}, "is for aznas; other searches score by what --warmup-by and --moves name")
        refuse(_OF_AZNAS, f"is for --algorithm aznas; {algorithm} makes nothing of it")
    if scores == LIVE:
        refuse(_OF_TABLES, "is for a table of scores; with --scores live candidates are the whole space")
        if algorithm != AZNAS and not {"warmup_by", "moves"} & set(given):
            refuse(_OF_SCORING | {"workers"}, "is for scores, of which neither --warmup-by nor --moves asks for any")
    else:
        refuse(_OF_SCORING | {"dataset"}, "is for --scores live; the scores of a table are there")
        if algorithm == AZNAS:
            refuse({"workers"}, "is for --scores live; aznas looks the scores of a table up in this process")
            refuse({"max_seconds"}, "is for --scores live; looking the scores of a table up takes no time")


@dataclass(frozen=True)
class Live:
    """How live scores are computed, and what with."""

    recipe: Mapping[str, Any]  # what a run's spec has besides its proxies
    workers: int | None
    timeout: float
    memory: int | None
    cluster: Cluster | None

    def spec(self, proxies: Sequence[str]) -> RunSpec:
        """Return how proxies are scored."""
        from zcpipe.run import RunSpec

        return RunSpec.model_validate({**self.recipe, "proxies": tuple(proxies)})

    def scores(self, proxies: Sequence[str]) -> AbstractContextManager[LiveScores]:
        """Return scores of proxies that keep nothing until they are given a journal."""
        from zcpipe.search import live_scores

        spec = self.spec(proxies)
        return live_scores(spec, None, self.workers, self.timeout, tell, cluster=self.cluster, memory=self.memory)


def tell(event: object) -> None:
    """Say on standard error what happens to nodes, and what warns."""
    from zcpipe.run.events import Left, Warned

    if isinstance(event, Warned):
        typer.echo(f"warning: {event.message}", err=True)
    elif isinstance(event, Left):
        typer.echo(f"node {event.node} is gone: {event.reason}", err=True)


def make_guidance(warmup: str | None, warmup_by: str | None, moves: str | None) -> Guidance:
    """Say what scores do for a search that trains.

    Raises:
        UsageError: half of a warm-up, or one that is none.
    """
    from zcpipe.search import Guidance

    if (warmup is None) != (warmup_by is None):
        raise UsageError(
            "--warmup M:N and --warmup-by PROXY go together; for example --warmup 3000:64 --warmup-by nwot"
        )
    scored, separator, kept = (warmup or "0:0").partition(":")
    if not (separator and all(part.isdecimal() and len(part) < _DIGITS for part in (scored, kept))):
        raise UsageError(f"--warmup must be M:N, two numbers, got {warmup!r:.60}; for example --warmup 3000:64")
    return Guidance(int(scored), int(kept), warmup_by, moves)


def count_of(option: str, text: str | None) -> int | None:
    """Read a number such as 450M.

    Raises:
        UsageError: it is none.
    """
    if text is None:
        return None
    unit = _UNITS.get(text[-1:].upper(), 1)
    try:
        value = float(text[:-1] if unit > 1 else text) * unit
        if math.isfinite(value):
            return round(value)
    except ValueError:
        pass
    raise UsageError(f"{option} must be a number such as 450M or 1500000, got {text!r:.60}")


def parameters_of(settings: Sequence[str], known: Sequence[str] | None = None) -> dict[str, Any]:
    """Read parameters of an algorithm.

    Args:
        settings: such as ``pool=32``.
        known: the names that there are; None where the algorithm itself refuses others.

    Raises:
        UsageError: a text that is none, or another name.
    """
    parsed = {}
    for setting in settings:
        name, separator, value = setting.partition("=")
        if not (name and separator):
            raise UsageError(f"--set must be NAME=VALUE, got {setting!r}; for example --set pool=32")
        if known is not None and name not in known:
            raise unknown_name("parameter", name, known)
        try:
            parsed[name] = json.loads(value)
        except (ValueError, RecursionError):
            parsed[name] = value
    return parsed


def make_accuracy(
    truth: Path | None, target: str | None, report: str | None, seconds: str | None
) -> TruthAccuracy | None:
    """Read the accuracies, where there are any.

    Raises:
        UsageError: half of what names them, or no such column.
        DataError: as `TruthAccuracy`.
    """
    from zcpipe.search import TruthAccuracy

    if (truth is None) != (target is None) or (report is not None and target is None):
        raise UsageError("--truth FILE and --target COLUMN go together, and --report COLUMN needs both")
    return None if truth is None or target is None else TruthAccuracy(truth, target, report, seconds)


def make_live(
    recipe: Mapping[str, Any],
    device: str,
    workers: int | None,
    timeout: float | None,
    memory: int | None,
    cluster: Cluster | None,
) -> Live:
    """Say how live scores are computed.

    Raises:
        CapabilityError: the device is not there.
    """
    from zcpipe.run import TIMEOUT
    from zcpipe.run.device import resolve_device

    there = resolve_device(device) if cluster is None else cluster.device(device)
    return Live({**recipe, "device": there}, workers, TIMEOUT if timeout is None else timeout, memory, cluster)


def make_costs(front: str, latency: Path | None, column: str | None) -> dict[str, Any]:
    """Say what fronts are over, as searches take it: costs, and a file of latencies and its column.

    Raises:
        UsageError: latencies of which something is missing.
    """
    names = [name.strip() for name in front.split(",") if name.strip()]
    if len({latency is not None, column is not None, "latency" in names}) > 1:
        raise UsageError("--front latency, --latency FILE and --latency-column COLUMN go together")
    if not names:
        raise UsageError("--front must name costs, separated by commas: some of macs, params, latency")
    return {"costs": names, "latency": None if latency is None or column is None else (latency, column)}


def require_local(out: Path) -> None:
    """Refuse storage that is not this machine's.

    Raises:
        UsageError: the directory is an address.
    """
    if _ADDRESS.match(str(out)):
        raise UsageError(f"--out must be a directory of this machine, got {out}: a search is not kept elsewhere")


@contextmanager
def interruptible(out: Path) -> Iterator[None]:
    """Say of a search that is interrupted what is kept of it; inside, SIGTERM interrupts like Ctrl-C."""
    try:
        with terminable():
            yield
    except KeyboardInterrupt:
        if _has_recorded(out):
            typer.echo(f"interrupted: what was found so far is kept in {out}; the same command goes on", err=True)
        else:
            typer.echo("interrupted before anything was recorded; the same command begins anew", err=True)
        raise typer.Exit(130) from None


def _has_recorded(out: Path) -> bool:
    """Whether a search has recorded more than its identity; one that only looks scores up never does."""
    from zcpipe.search.journal import NAME

    try:
        return (out / NAME).read_bytes().count(b"\n") > 1
    except OSError:
        return False


def note_missing(scores: TableScores) -> None:
    """Say on how many of a table's architectures a proxy was never run: that is no failure, but no score either."""
    from zcpipe.search.scores import run_of

    for name, rows in scores.missing.items():
        if n := int(rows.sum()):
            typer.echo(
                f"note: {name} was never run on {n} of {counted(len(rows), 'architecture')} of the table; "
                f"{run_of([name])} adds it",
                err=True,
            )


def note_unknown(unknown: int, what: str) -> None:
    """Say how many have no latency where a front is over it."""
    if unknown:
        typer.echo(f"note: {counted(unknown, what)} without a known latency, on no front", err=True)


def exit_if_failed(failures: Counter[str], where: str) -> None:
    """Say why candidates lack scores, if any do, and end as a run with failed rows does."""
    if failures:
        for line in reasons_of(dict(failures.most_common()), "failed candidate", where):
            typer.echo(line, err=True)
        raise typer.Exit(3)
