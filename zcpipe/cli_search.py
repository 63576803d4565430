"""The command that searches; a part of the command line in `zcpipe.cli`."""

from __future__ import annotations

import math
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from zcpipe import cli_run_options as scoring
from zcpipe import cli_search_options as options
from zcpipe.cli_search_aznas import search_aznas
from zcpipe.cli_search_options import AZNAS, LIVE, Live, count_of
from zcpipe.cli_table import Json
from zcpipe.errors import UsageError, unknown_name
from zcpipe.printing import counted, finite, number, print_grid, print_json

if TYPE_CHECKING:
    from zcpipe.search import Budget, Found, Guidance, TruthAccuracy
    from zcpipe.search.algorithms import Method
    from zcpipe.table import Table

EXAMPLES = (
    "Examples:\n\nzcpipe search --space nasbench201 --algorithm evolution --scores tables/nb201 --truth truth.parquet "
    "--target cifar10_val_200 --report cifar10_test_200 --budget 300 --seeds 50 --warmup 3000:64 --warmup-by synflow "
    "--out searches/warm\n\nzcpipe search --space nasbench201 --algorithm evolution --scores tables/nb201 --truth "
    "truth.parquet --target cifar10_val_200 --budget 100 --moves aznas --max-params 500K --workers 2 --out "
    "searches/small --json\n\nzcpipe search --space nasbench201 --algorithm random --scores tables/nb201 --predicted "
    "predicted.parquet --truth truth.parquet --target cifar10_val_200 --budget 50 --warmup 1000:50 --warmup-by parzc "
    "--out searches/learnt\n\nzcpipe search --space nasbench201 --algorithm aznas --scores tables/nb201 --budget 1000 "
    "--front macs,params --truth truth.parquet --target cifar10_test_200 --out searches/aznas\n\nzcpipe search --space "
    "mbv2 --algorithm aznas --scores live --batch-size 16 --resolution 64 --max-flops 450M --max-layers 14 --budget "
    "2000 --workers 2 --out searches/mbv2"
)

_ENDED = {
    "nothing": "no candidate was left to ask for",
    "repeats": "it asked only for models that were trained already, 1000 times in a row",
}
_SHOWN = 10  # picks that are printed


def search(
    context: typer.Context,
    space: scoring.Space,
    algorithm: options.Algorithm,
    scores: options.Scores,
    budget: options.Budget,
    out: options.Out,
    truth: options.Truth = None,
    target: options.Target = None,
    report: options.Report = None,
    seeds: options.Seeds = 1,
    seed: options.Seed = 0,
    warmup: options.WarmUp = None,
    warmup_by: options.WarmUpBy = None,
    moves: options.Moves = None,
    predicted: options.Predicted = None,
    max_macs: options.MaxMacs = None,
    max_params: options.MaxParams = None,
    min_params: options.MinParams = None,
    max_flops: options.MaxFlops = None,
    max_layers: options.MaxLayers = None,
    max_seconds: options.MaxSeconds = None,
    seconds: options.Seconds = None,
    known_only: options.KnownOnly = False,
    settings: options.Settings = None,
    proxies: scoring.Proxies = "aznas",
    proposals: options.Proposals = "evolution",
    batch: options.Batch = 64,
    aggregate: options.Aggregate = "logrank",
    front: options.Front = "macs",
    latency: options.Latency = None,
    latency_column: options.LatencyColumn = None,
    dataset: options.Dataset = None,
    batch_size: scoring.BatchSize = 64,
    resolution: scoring.Resolution = None,
    inputs: scoring.Inputs = "noise",
    device: scoring.Device = "auto",
    workers: options.Workers = None,
    timeout: scoring.Timeout = None,
    memory: scoring.Memory = None,
    nodes: scoring.Nodes = None,
    address: scoring.Address = None,
    actors_per_node: scoring.ActorsPerNode = None,
    gpus_per_actor: scoring.GpusPerActor = 0.0,
    simulate_nodes: scoring.SimulateNodes = None,
    as_json: Json = False,
) -> None:
    """Search for the best architectures, "training" by looking accuracies up or by scores alone (aznas).

    The same command again goes on where it was ended, also with a larger --budget or more --seeds. Of one seed the pick
    is the model with the best target; the mean over the seeds, with its standard error, is of the picks' --report,
    or of their target without that. The front of a seed holds the target of its trained models against --front.

    Warm-up: random trains the best N in order, then others; evolution fills its pool with them; reinforce first rewards
    its controller by the proxy's ranks; predictor begins with a round of them. reinforce searches all spaces but mbv2
    and nds.

    aznas proposes candidates, scores them and ranks them by an aggregate over all so far; its pick is the best by
    that, its budget candidates. Evolution takes parents among the best of all. Live scores are those of zcpipe run with
    seed 0. With --truth it says how accurate its picks are. autoformer wants --proxies aznas_vit.

    Mutations stay in a sub-space of nds: aznas searches that of its first random network, unless --proposals random;
    evolution begins in all of them, and children are of their parents'. --space nds/darts chooses one.

    Parameters for --set: of evolution pool (64) and tournament (10); of reinforce learning_rate (0.01) and momentum
    (0.9); of predictor predictor (boosted-trees), parameters ({}), features (all), round (20), pretrain (0); of aznas
    population (1024), among how many of the best parents are.
    """
    from zcpipe.search import Budget, Limits
    from zcpipe.search.algorithms import method, methods
    from zcpipe.search.journal import NAME as JOURNAL
    from zcpipe.search.scores import require_space
    from zcpipe.spaces import get_space
    from zcpipe.table import open_table

    if algorithm not in (known := [AZNAS, *methods()]):
        raise unknown_name("algorithm", algorithm, known)
    options.require_meaning(context, algorithm, scores)
    options.require_local(out)
    searched = get_space(space)
    accuracy = options.make_accuracy(truth, target, report, seconds)
    limits = {
        "max_macs": count_of("--max-macs", max_macs),
        "max_params": count_of("--max-params", max_params),
        "min_params": count_of("--min-params", min_params),
        "max_flops": count_of("--max-flops", max_flops),
        "max_layers": max_layers,
    }
    if scores == LIVE:
        recipe = {
            "space": space,
            "dataset": dataset or next(iter(searched.datasets)),
            "batch_size": batch_size,
            "resolution": resolution,
            "inputs": inputs,
        }
        held = scoring.bytes_of(memory)
        cluster = scoring.make_cluster(nodes, address, actors_per_node, gpus_per_actor, held, simulate_nodes)
        scoring.require_processes(timeout, memory, workers, cluster)
        source: Live | Table = options.make_live(recipe, device, workers, timeout, held, cluster)
    else:
        source = open_table(scores)
        require_space(source, space)
    costs = options.make_costs(front, latency, latency_column)
    with options.interruptible(out):
        if algorithm == AZNAS:
            fields = {
                "budget": budget,
                "seconds": max_seconds,
                "seeds": seeds,
                "seed": seed,
                "proposals": proposals,
                "batch": batch,
                "aggregate": aggregate,
                **limits,
                **options.parameters_of(settings or [], ["population"]),
            }
            search_aznas(fields, proxies, source, costs, accuracy, out, as_json)
            return
        if accuracy is None:
            raise UsageError(f"{algorithm} is guided by accuracies; give --truth FILE and --target COLUMN")
        if (max_seconds is None) != (seconds is None):
            raise UsageError(
                "--max-seconds needs the column that says how long trainings take, --seconds, and vice versa"
            )
        found, failures = _train(
            space,
            method(algorithm, options.parameters_of(settings or [])),
            accuracy,
            Budget(budget, max_seconds),
            source,
            options.make_guidance(warmup, warmup_by, moves),
            predicted,
            workers,
            limits=Limits(**limits),
            known_only=known_only,
            seeds=seeds,
            seed=seed,
            out=out,
            **costs,
        )
    _note_early(found)
    trained = {trial.arch for outcome in found.outcomes for trial in outcome.trials}
    options.note_unknown(found.costs.unknown(trained), "trained architecture")
    if as_json:
        print_json(_record(found, out, failures))
    else:
        _print(found, out)
    if failures is not None:
        options.exit_if_failed(failures, f"in {out / JOURNAL}")


def _train(
    space: str,
    chosen: Method,
    accuracy: TruthAccuracy,
    budget: Budget,
    source: Live | Table,
    guidance: Guidance,
    predicted: Path | None,
    workers: int | None,
    **others: Any,  # noqa: ANN401 - as `zcpipe.search.search` takes them
) -> tuple[Found, Counter[str] | None]:
    """Search, and say why live scores failed; None where there are no such."""
    from zcpipe.parzc.parallel import HERE, Pool
    from zcpipe.progress import trainings_done
    from zcpipe.search import LiveScores, TableScores, read_scores
    from zcpipe.search import search as search_space
    from zcpipe.search.scores import columns_of

    with ExitStack() as stack:
        by: LiveScores | TableScores | None = None
        if not isinstance(source, Live):
            pool, dataset = Pool(workers), source.identity["dataset"]
            by = read_scores(source, space, guidance, predicted)
            options.note_missing(by)
        else:
            pool, dataset = HERE, source.recipe["dataset"]
            columns = dict.fromkeys(column for name in guidance.names() for column in columns_of(name))
            by = stack.enter_context(source.scores(tuple(columns))) if columns else None
        found = search_space(
            space,
            chosen,
            accuracy,
            budget,
            scores=by,
            guidance=guidance,
            features=source if not isinstance(source, Live) and "features" in chosen.takes else None,
            dataset=dataset,
            pool=pool,
            progress=stack.enter_context(trainings_done("searching")),
            **others,
        )
    return found, by.failures if isinstance(by, LiveScores) else None


def _note_early(found: Found) -> None:
    ends = Counter(outcome.ended for outcome in found.outcomes)
    for ended, why in _ENDED.items():
        if ends[ended]:
            typer.echo(f"note: {counted(ends[ended], 'search')} ended before the budget was spent: {why}", err=True)


def _record(found: Found, out: Path, failures: Counter[str] | None) -> dict[str, Any]:
    record = finite(
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
    )
    record["picks"] = [finite(asdict(pick)) for pick in found.picks]
    record["front"] = [finite(row) for row in found.fronts().to_pylist()]
    return record if failures is None else {**record, "failed": failures.total()}


def _print(found: Found, out: Path) -> None:
    from zcpipe.search.costs import FRONT

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
    trained = sorted(len(outcome.trials) for outcome in found.outcomes)
    models = " to ".join(str(n) for n in dict.fromkeys((trained[0], trained[-1])))
    typer.echo(
        f"{out}: {found.algorithm} reaches {name} {found.best_accuracy_mean:.3f}{error} with {models} trained models, "
        f"over {counted(len(found.outcomes), 'seed')}; {counted(len(found.fronts()), 'model')} in {FRONT}",
        err=True,
    )


def print_status(directory: str, as_json: bool) -> None:
    """Print how far a search is."""
    from zcpipe.search import search_status

    found = search_status(directory)
    if as_json:
        print_json(finite({**asdict(found), "path": str(found.path)}))
        return
    typer.echo(f"{found.path}: {found.algorithm} searches {found.space} on {found.dataset}")
    recorded = [
        (found.scored, "architecture", "scored"),
        (sum(found.trained.values()), "model", "trained"),
        (found.failed, "training", "failed"),
    ]
    nothing = "scores are looked up" if found.picks else "nothing recorded so far"
    typer.echo(", ".join(f"{counted(n, what)} {done}" for n, what, done in recorded if n) or nothing)
    if found.picks:
        typer.echo("the best when a call last came to its end:")
    for pick in found.picks:
        name = "accuracy" if "accuracy" in pick else "aggregate"
        typer.echo(f"seed {pick['seed']}: {name} {number(pick[name])}, {pick['arch']}")
