"""The command that searches; a part of the command line in `zcpipe.cli`."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zcpipe.cli_table import Json
from zcpipe.errors import UsageError
from zcpipe.printing import counted, finite, number, print_grid, print_json
from zcpipe.signals import terminable

if TYPE_CHECKING:
    from zcpipe.search import Found, Guidance

EXAMPLES = (
    "Examples: zcpipe search --space nasbench201 --algorithm evolution --scores tables/nb201 --truth truth.parquet "
    "--target cifar10_val_200 --report cifar10_test_200 --budget 300 --seeds 50 --warmup 3000:64 --warmup-by synflow "
    "--out searches/warm | zcpipe search --space nasbench201 --algorithm evolution --scores tables/nb201 --truth "
    "truth.parquet --target cifar10_val_200 --budget 100 --moves aznas --max-params 500K --workers 2 --out "
    "searches/small --json | zcpipe search --space nasbench201 --algorithm random --scores tables/nb201 --predicted "
    "predicted.parquet --truth truth.parquet --target cifar10_val_200 --budget 50 --warmup 1000:50 --warmup-by parzc "
    "--out searches/learnt"
)

_UNITS = {"K": 10**3, "M": 10**6, "G": 10**9}
_ENDED = {
    "nothing": "no candidate was left to ask for",
    "repeats": "it asked only for models that were trained already, 1000 times in a row",
}
_SHOWN = 10  # picks that are printed


def search(
    space: Annotated[str, typer.Option(help="Search space; see zcpipe spaces.")],
    algorithm: Annotated[str, typer.Option(metavar="NAME", help="random, evolution or reinforce.")],
    scores: Annotated[
        str,
        typer.Option(metavar="TABLE", help="A table made by zcpipe run, or its URI: its architectures are searched."),
    ],
    truth: Annotated[Path, typer.Option(help="Parquet file with a text column 'arch' and the accuracies.")],
    target: Annotated[str, typer.Option(metavar="COLUMN", help="Column of the truth file that guides the search.")],
    budget: Annotated[int, typer.Option(metavar="N", help="Models to train; architectures of one key count once.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Directory for curves.parquet and picks.parquet.")],
    report: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column that is only reported, such as test accuracy.")
    ] = None,
    seeds: Annotated[int, typer.Option(metavar="K", help="Search so many times.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the first search; the others follow it.")] = 0,
    warmup: Annotated[
        str | None, typer.Option(metavar="M:N", help="Score M random candidates and train the best N first.")
    ] = None,
    warmup_by: Annotated[
        str | None, typer.Option(metavar="PROXY", help="Proxy or aggregate that orders those M; see zcpipe aggregates.")
    ] = None,
    moves: Annotated[
        str | None,
        typer.Option(
            metavar="PROXY",
            help="Proxy or aggregate by which evolution takes a parent's best neighbour; one child in four is random.",
        ),
    ] = None,
    predicted: Annotated[
        Path | None,
        typer.Option(help="A file that zcpipe parzc predict made for the table: a further proxy, called parzc."),
    ] = None,
    max_macs: Annotated[
        str | None, typer.Option(metavar="X", help="Multiply-accumulates at most, such as 450M.")
    ] = None,
    max_params: Annotated[str | None, typer.Option(metavar="X", help="Parameters at most, such as 1.5M.")] = None,
    max_seconds: Annotated[
        float | None, typer.Option(metavar="S", help="Begin no training once so many seconds are spent on them.")
    ] = None,
    seconds: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="With --max-seconds: the truth's column of training times.")
    ] = None,
    known_only: Annotated[bool, typer.Option("--known-only", help="Leave out candidates that have no truth.")] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A parameter of the algorithm, such as pool=32; repeatable."),
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Search in so many processes. (default: in this one)")] = None,
    as_json: Json = False,
) -> None:
    """Search a table's architectures for the most accurate, "training" by looking accuracies up (simulated search).

    Of one seed the pick is the model with the best target; the mean over the seeds is of what is reported of the picks.
    The same command again goes on where it was ended. evolution has the parameters pool (64) and tournament (10),
    reinforce learning_rate (0.01) and momentum (0.9). A warm-up of evolution fills the pool, one of reinforce rewards
    the controller by the proxy's ranks first.
    """
    from zcpipe.parzc.parallel import Pool
    from zcpipe.progress import trainings_done
    from zcpipe.search import Budget, Limits, TruthAccuracy, read_scores
    from zcpipe.search import search as search_space
    from zcpipe.search.algorithms import method
    from zcpipe.spaces import get_space
    from zcpipe.table import open_table

    if (max_seconds is None) != (seconds is None):
        raise UsageError("--max-seconds needs the column that says how long trainings take, --seconds, and vice versa")
    searched, chosen = get_space(space), method(algorithm, _parameters(settings or []))
    guidance = _guidance(warmup, warmup_by, moves)
    limits = Limits(params=_count("--max-params", max_params), macs=_count("--max-macs", max_macs))
    spent = Budget(budget, max_seconds)
    pool = Pool(workers)
    accuracy = TruthAccuracy(truth, target, report, seconds)
    table = open_table(scores)
    looked_up = read_scores(table, space, guidance, predicted)
    try:
        with terminable(), trainings_done("searching") as progress:
            found = search_space(
                searched,
                chosen,
                accuracy,
                spent,
                scores=looked_up,
                guidance=guidance,
                limits=limits,
                dataset=table.identity["dataset"],
                known_only=known_only,
                seeds=seeds,
                seed=seed,
                out=out,
                pool=pool,
                progress=progress,
            )
    except KeyboardInterrupt:
        typer.echo("interrupted: what is finished is kept; the same command goes on", err=True)
        raise typer.Exit(130) from None
    _note_early(found)
    if as_json:
        print_json(_record(found, out))
    else:
        _print(found, out)


def _guidance(warmup: str | None, warmup_by: str | None, moves: str | None) -> Guidance:
    from zcpipe.search import Guidance

    if (warmup is None) != (warmup_by is None):
        raise UsageError(
            "--warmup M:N and --warmup-by PROXY go together; for example --warmup 3000:64 --warmup-by nwot"
        )
    scored, separator, kept = (warmup or "0:0").partition(":")
    if not (separator and scored.isdecimal() and kept.isdecimal()):
        raise UsageError(f"--warmup must be M:N, two numbers, got {warmup!r}; for example --warmup 3000:64")
    return Guidance(int(scored), int(kept), warmup_by, moves)


def _count(option: str, text: str | None) -> int | None:
    if text is None:
        return None
    unit = _UNITS.get(text[-1:].upper(), 1)
    try:
        value = float(text[:-1] if unit > 1 else text) * unit
        if math.isfinite(value):
            return int(value)
    except ValueError:
        pass
    raise UsageError(f"{option} must be a number such as 450M or 1500000, got {text!r}")


def _parameters(settings: Sequence[str]) -> dict[str, Any]:
    parsed = {}
    for setting in settings:
        name, separator, value = setting.partition("=")
        if not (name and separator):
            raise UsageError(f"--set must be NAME=VALUE, got {setting!r}; for example --set pool=32")
        try:
            parsed[name] = json.loads(value)
        except ValueError:
            parsed[name] = value
    return parsed


def _note_early(found: Found) -> None:
    ends = Counter(outcome.ended for outcome in found.outcomes)
    for ended, why in _ENDED.items():
        if ends[ended]:
            typer.echo(f"note: {counted(ends[ended], 'search')} ended before the budget was spent: {why}", err=True)


def _record(found: Found, out: Path) -> dict[str, Any]:
    return finite(
        {
            "out": str(out),
            "algorithm": found.algorithm,
            "target": found.target,
            "report": found.report,
            "budget": found.budget,
            "seeds": len(found.outcomes),
            "best_accuracy_mean": found.best_accuracy_mean,
            "best_accuracy_se": found.best_accuracy_se,
        }
    ) | {"picks": [finite(asdict(pick)) for pick in found.picks]}


def _print(found: Found, out: Path) -> None:
    name = found.report or found.target
    better = sorted(found.picks, key=lambda pick: pick.accuracy, reverse=found.direction == "higher")
    print_grid(
        ["seed", "found", "trained", found.target, *([found.report] if found.report else []), "params", "macs", "arch"],
        [
            [
                *map(str, (pick.seed, pick.found, pick.trained)),
                number(pick.accuracy),
                *([number(pick.report)] if found.report else []),
                *map(str, (pick.params, pick.macs)),
                pick.arch,
            ]
            for pick in better[:_SHOWN]
        ],
    )
    if len(better) > _SHOWN:
        typer.echo(f"{len(better) - _SHOWN} more picks in {out}, or with --json", err=True)
    error = "" if math.isnan(found.best_accuracy_se) else f" +- {found.best_accuracy_se:.3f}"
    typer.echo(
        f"{out}: {found.algorithm} reaches {name} {found.best_accuracy_mean:.3f}{error} with {found.budget} trained "
        f"models, over {counted(len(found.outcomes), 'seed')}",
        err=True,
    )
