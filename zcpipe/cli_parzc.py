"""The commands that learn rankings; a part of the command line in `zcpipe.cli`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zcpipe import cli_parzc_options as options
from zcpipe.cli_table import Json, TableDir
from zcpipe.errors import UsageError
from zcpipe.printing import finite, print_grid, print_json, reasons_of

if TYPE_CHECKING:
    from zcpipe.parzc.protocol import Row

parzc_app = typer.Typer(
    no_args_is_help=True,
    help="Learn a ranking from the statistics of nodes (ParZC): train on the labels of a few architectures, rank all.",
)


@parzc_app.command(
    epilog="Examples:\n\nzcpipe parzc train tables/nb201 --truth truth.parquet --target cifar10_val_200 --samples 156 "
    "--seeds 3 --out nb201.safetensors\n\nzcpipe parzc train tables/nb201-c100 --truth truth.parquet "
    "--target cifar100_val_200 --predictor mabn --init nb201-mabn.safetensors --out c100.safetensors"
)
def train(
    directory: TableDir,
    truth: options.Truth,
    target: options.Target,
    out: Annotated[Path, typer.Option(help="The model's file to make (safetensors); nothing is overwritten.")],
    samples: Annotated[
        str | None, typer.Option(help=f"Architectures to learn from: {options.SAMPLES}. (default: all labelled ones)")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Train so many times and predict the mean.")] = 1,
    predictor: options.Predictor = "parzc",
    parameters: options.Parameters = None,
    init: Annotated[
        Path | None,
        typer.Option(
            help="Start the networks' weights from this model, of the same features (transfer): with --predictor mabn "
            "a model of mabn, with mabn-published one of that."
        ),
    ] = None,
    statistics: options.Statistics = None,
    proxies: options.Proxies = None,
    encoding: options.Encoding = "live-rank",
    alignment: options.Alignment = "slots",
    graph: options.Graph = False,
    seed: options.Seed = 0,
    workers: options.Workers = None,
    nodes: options.Nodes = None,
    address: options.Address = None,
    simulate_nodes: options.SimulateNodes = None,
    as_json: Json = False,
) -> None:
    """Train a predictor on the labels of some architectures of a table, and write it to a file.

    What is learnt from is drawn at random under the seed; the features' encoding sees all architectures, without their
    labels. The model predicts tables of the same space, data set and recipe.
    """
    from zcpipe.parzc.labels import Labels
    from zcpipe.parzc.model import Model
    from zcpipe.parzc.model import train as train_model
    from zcpipe.parzc.parameters import read_predictor
    from zcpipe.table import open_table
    from zcpipe.table.new import require_new

    learner = read_predictor(predictor, parameters)
    pool = options.make_pool(workers, nodes, address, simulate_nodes)
    options.note_idle(pool, seeds)
    require_new(out)
    start = None if init is None else Model.load(init)
    table = open_table(directory)
    spec = options.make_spec(table, statistics, proxies, encoding, alignment, graph)
    labels = Labels.read(table, truth, target)
    with options.show_progress("training") as progress:
        model = train_model(
            table,
            labels,
            spec,
            learner,
            samples=samples,
            seeds=seeds,
            seed=seed,
            init=start,
            pool=pool,
            progress=progress,
        )
    model.save(out)
    record = {
        "out": str(out),
        "predictor": predictor,
        "target": target,
        "samples": model.training.samples,
        "seeds": seeds,
        "features": len(model.encoder.coordinates),
        "bytes": out.stat().st_size,
    }
    if as_json:
        print_json(record)
        return
    typer.echo(
        f"{out}: {predictor} of {target} from {model.training.samples} architectures, "
        f"{record['features']} features, {seeds} seed(s)"
    )


@parzc_app.command(epilog="Example: zcpipe parzc predict nb201.safetensors tables/nb201 --out predicted.parquet")
def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A file made by zcpipe parzc train.")],
    directory: TableDir,
    out: Annotated[Path, typer.Option(help="The Parquet file to make; nothing is overwritten.")],
    as_json: Json = False,
) -> None:
    """Predict every architecture of a table: index, arch, mean, std, rank (1 is best, ties averaged) and reason.

    std is the standard deviation that the predictor claims for a training's result: docs/parzc.md tells how far each
    is right. Boosted trees and ridge claim none: null. Architectures that lack a feature, because it failed, or have
    places that no architecture had when the model was trained, have null for all three, and the reason says so.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from zcpipe.parzc.model import Model
    from zcpipe.table import open_table
    from zcpipe.table.files import publish
    from zcpipe.table.new import require_new

    require_new(out)
    rows = Model.load(model).predict(open_table(directory))
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd")
    publish(out, memoryview(sink.getvalue()), exclusive=True)
    predicted = len(rows) - rows["mean"].null_count
    reasons = Counter(reason for reason in rows["reason"].to_pylist() if reason is not None)
    if as_json:
        print_json({"out": str(out), "architectures": len(rows), "predicted": predicted, "reasons": reasons})
        return
    typer.echo(f"{out}: {predicted} of {len(rows)} architectures predicted")
    for line in reasons_of(dict(reasons.most_common()), "unpredicted row", "in the column reason"):
        typer.echo(line, err=True)


@parzc_app.command(
    epilog="Examples:\n\nzcpipe parzc evaluate tables/nb201 --truth truth.parquet --target cifar10_test_200 "
    "--train-target cifar10_val_200 --samples 78,156,469 --seeds 10 --workers 2\n\nzcpipe parzc evaluate tables/nb201 "
    "--truth truth.parquet --target cifar10_test_200 --samples 10% --methods mabn,mabn:statistics,baselines"
)
def evaluate(
    directory: TableDir,
    truth: options.Truth,
    target: Annotated[str, typer.Option(metavar="COLUMN", help="Column that the ranking is tested by.")],
    samples: Annotated[str, typer.Option(help=f"Numbers of architectures to learn from, each {options.SAMPLES}.")],
    train_target: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column that is learnt. (default: the target)")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Repeat with so many draws and seeds.")] = 10,
    methods: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="Predictors, with :statistics, :proxies or :both to see part of the features; baselines for extra "
            "trees, boosted trees and ridge on each part.",
        ),
    ] = "parzc,baselines",
    parameters: Annotated[
        list[Path] | None,
        typer.Option(
            help="JSON file of a predictor's parameters, baselines of its name included; for several predictors give "
            "it again."
        ),
    ] = None,
    statistics: options.Statistics = None,
    proxies: options.Proxies = None,
    encoding: options.Encoding = "live-rank",
    alignment: options.Alignment = "slots",
    graph: options.Graph = False,
    workers: options.Workers = None,
    nodes: options.Nodes = None,
    address: options.Address = None,
    simulate_nodes: options.SimulateNodes = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Print all that needs no training, too, not only the best and the sizes.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure how predictors rank architectures that they were not trained on, beside all that needs no training.

    Split "others": all architectures whose key is none of those learnt from; "published": all architectures, those
    learnt from among them. Kendall's tau and Spearman's rho are means over the seeds with their standard errors, of raw
    values, signed; "to trees" is the difference of tau to the best of the tree baselines, seed by seed, above 0 where
    it ranks better; n is the fewest that were tested on. The best without training is chosen among what has values of
    all architectures tested on. Encodings and aggregates see all architectures of the table, without labels.
    """
    from zcpipe.parzc.labels import Labels
    from zcpipe.parzc.parameters import read_methods
    from zcpipe.parzc.protocol import evaluate as evaluate_methods
    from zcpipe.table import open_table

    pool = options.make_pool(workers, nodes, address, simulate_nodes)
    table = open_table(directory)
    spec = options.make_spec(table, statistics, proxies, encoding, alignment, graph)
    asked = read_methods(methods.split(","), parameters or [], spec)
    tested = Labels.read(table, truth, target)
    learnt = tested if train_target is None else Labels.read(table, truth, train_target)
    with options.show_progress("evaluating") as progress:
        rows = evaluate_methods(
            table, tested, learnt, spec, asked, samples.split(","), seeds, pool=pool, progress=progress
        )
    if as_json:
        records = [{**finite(asdict(row)), "seeds": [finite(asdict(one)) for one in row.seeds]} for row in rows]
        print_json(
            {"target": target, "train_target": learnt.target, "spec": spec.model_dump(mode="json"), "rows": records}
        )
        return
    _print_rows(rows, everything)


@parzc_app.command(
    epilog="Example: zcpipe parzc importance tables/nb201 --truth truth.parquet --target cifar10_val_200 "
    "--samples 1000 --figure importance.png --out importance.parquet"
)
def importance(
    directory: TableDir,
    truth: options.Truth,
    target: options.Target,
    samples: Annotated[str, typer.Option(help=f"Architectures to learn from: {options.SAMPLES}.")],
    seeds: Annotated[int, typer.Option(help="Repeat with so many draws and seeds.")] = 10,
    out: Annotated[Path | None, typer.Option(help="Write the numbers to this Parquet file.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Draw them to this file (.png, .pdf or .svg).")] = None,
    statistics: options.Statistics = None,
    proxies: options.Proxies = None,
    encoding: options.Encoding = "live-rank",
    alignment: options.Alignment = "slots",
    graph: options.Graph = False,
    workers: options.Workers = None,
    nodes: options.Nodes = None,
    address: options.Address = None,
    simulate_nodes: options.SimulateNodes = None,
    as_json: Json = False,
) -> None:
    """Measure which places in the networks, and which statistics, boosted trees rank by.

    Gain: the share of all that splits on it gained in training. Permutation: by how much Kendall's tau falls on
    architectures with other keys when it is shuffled among them.
    """
    from zcpipe.parzc.importance import draw_importance, measure_importance, require_figure, tabulate_importance
    from zcpipe.parzc.labels import Labels
    from zcpipe.table import open_table
    from zcpipe.table.files import publish
    from zcpipe.table.new import require_new

    pool = options.make_pool(workers, nodes, address, simulate_nodes)
    for path in (out, figure):
        if path is not None:
            require_new(path)
    if figure is not None:
        require_figure(figure)
        if out is not None and out.resolve() == figure.resolve():
            raise UsageError(f"--out and --figure are both {out}; give two names")
    table = open_table(directory)
    spec = options.make_spec(table, statistics, proxies, encoding, alignment, graph)
    labels = Labels.read(table, truth, target)
    with options.show_progress("training") as progress:
        found = measure_importance(table, labels, spec, samples, seeds, pool=pool, progress=progress)
    drawn = None if figure is None else draw_importance(found, figure.suffix)
    if out is not None:
        publish(out, tabulate_importance(found), exclusive=True)
    if figure is not None and drawn is not None:
        publish(figure, drawn, exclusive=True)
    if as_json:
        print_json({**finite(asdict(found)), "rows": [finite(asdict(row)) for row in found.rows]})
        return
    typer.echo(found.title, err=True)
    strongest = sorted(found.rows, key=lambda row: (row.kind, -row.gain))
    cells = [
        [r.kind, r.name, _with_error(r.gain, r.gain_error), _with_error(r.permutation, r.permutation_error)]
        for r in strongest
        if r.gain > 0
    ]
    print_grid(["kind", "name", "gain", "permutation"], cells)


@parzc_app.command(
    epilog="Example: zcpipe parzc tune tables/nb201 --truth truth.parquet --target cifar10_val_200 --samples 156 "
    "--predictor mabn --trials 50 --out mabn.json"
)
def tune(
    directory: TableDir,
    truth: options.Truth,
    target: options.Target,
    samples: Annotated[str, typer.Option(help=f"Labelled architectures to choose by: {options.SAMPLES}.")],
    predictor: options.Predictor,
    out: Annotated[Path | None, typer.Option(help="Write the best parameters to this JSON file.")] = None,
    trials: Annotated[int, typer.Option(help="How many parameters to try; the first are the defaults.")] = 50,
    folds: Annotated[int, typer.Option(help="Folds of the cross-validation.")] = 3,
    statistics: options.Statistics = None,
    proxies: options.Proxies = None,
    encoding: options.Encoding = "live-rank",
    alignment: options.Alignment = "slots",
    graph: options.Graph = False,
    seed: options.Seed = 0,
    as_json: Json = False,
) -> None:
    """Choose a predictor's parameters with optuna, by cross-validation on the labelled architectures alone.

    What train --samples N draws under the same seed is what is seen; no other label is.
    """
    from zcpipe.parzc.labels import Labels
    from zcpipe.parzc.tuning import tune as choose
    from zcpipe.table import open_table
    from zcpipe.table.files import publish
    from zcpipe.table.new import require_new

    if out is not None:
        require_new(out)
    table = open_table(directory)
    spec = options.make_spec(table, statistics, proxies, encoding, alignment, graph)
    labels = Labels.read(table, truth, target)
    with options.show_progress("tuning") as progress:
        tried = choose(
            table,
            labels,
            spec,
            predictor,
            samples=samples,
            trials=trials,
            folds=folds,
            seed=seed,
            progress=progress,
        )
    best = {"predictor": predictor, **finite(asdict(tried[0]))}
    if out is not None:
        publish(out, (json.dumps(best, indent=2) + "\n").encode(), exclusive=True)
    if as_json:
        print_json({"best": best, "trials": [finite(asdict(one)) for one in tried]})
        return
    where = "" if out is None else f", written to {out}"
    typer.echo(f"best of {len(tried)} by Kendall's tau on what is left out, {{}} being the defaults{where}:", err=True)
    print_grid(["kendall", "parameters"], [[f"{one.kendall:.4f}", json.dumps(one.parameters)] for one in tried[:10]])


def _print_rows(rows: Sequence[Row], everything: bool) -> None:
    best = {(row.samples, row.split): row for row in rows if row.best_free}
    above = [not row.features and _is_above_on_fewer(row, best[row.samples, row.split]) for row in rows]
    told = [
        "best without training" if row.best_free else "above it, on fewer" if is_above else ""
        for row, is_above in zip(rows, above, strict=True)
    ]
    shown = [
        (row, remark)
        for row, remark in zip(rows, told, strict=True)
        if everything or row.features or remark or row.method in ("params", "macs")
    ]
    cells = [
        [
            f"{row.method}:{row.features}" if row.features not in ("", "all") else row.method,
            str(row.samples),
            row.split,
            str(row.n_test),
            _with_error(row.kendall, row.kendall_error),
            _with_error(row.spearman, row.spearman_error),
            _with_error(row.difference, row.difference_error),
            remark,
        ]
        for row, remark in shown
    ]
    print_grid(["method", "samples", "split", "n", "kendall", "spearman", "to trees", "remark"], cells)
    if len(shown) < len(rows):
        typer.echo(f"{len(rows) - len(shown)} more rows that need no training: --all or --json", err=True)


def _is_above_on_fewer(row: Row, best: Row) -> bool:
    """Whether something would be the best without training, whichever its sign means, but lacks values of some."""
    return row.n_test < best.n_test and abs(row.kendall) > abs(best.kendall)


def _with_error(mean: float, error: float) -> str:
    if mean != mean:  # NaN
        return "-"
    return f"{mean:.4f}" if error != error else f"{mean:.4f} +- {error:.4f}"
