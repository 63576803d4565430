"""The command that makes tables; a part of the command line in `zcpipe.cli`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from zcpipe import cli_run_options as options
from zcpipe.cli_table import Json
from zcpipe.errors import UsageError
from zcpipe.printing import counted, print_json, print_plan, reasons_of
from zcpipe.signals import terminable

if TYPE_CHECKING:
    from zcpipe.spaces import Architecture, Space

EXAMPLES = (
    "Examples:\n\nzcpipe run --space nasbench201 --sample 100 --workers 2\n\n"
    "zcpipe run --space nasbench201 --out tables/nb201 --dry-run\n\n"
    "zcpipe run --space nasbench201 --proxies nwot,snip --inputs cifar10:data/cifar-10-batches-py --sample 100\n\n"
    "zcpipe run --space nasbench201 --nodes 8 --out tables/nb201 --events run.jsonl"
)


def run(
    space: options.Space,
    proxies: options.Proxies = "aznas",
    out: Annotated[
        str | None, typer.Option(help="The table's directory, or s3://... (default: runs/<space>-<identity>)")
    ] = None,
    sample: Annotated[int | None, typer.Option(help="Score the first N random draws under the seed.")] = None,
    range_: Annotated[str | None, typer.Option("--range", metavar="A:B", help="Score indices A to B-1.")] = None,
    archs: Annotated[
        Path | None, typer.Option(help="Score a file's architectures, one a line; or official JSON files.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Shape of the task. (default: that of official files, or the space's first)")
    ] = None,
    batch_size: options.BatchSize = 64,
    resolution: options.Resolution = None,
    inputs: options.Inputs = "noise",
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights, inputs and probes.")] = 0,
    repeats: Annotated[
        int, typer.Option(min=1, help="Score so many times with other randomness; store mean and _sd.")
    ] = 1,
    workers: Annotated[int | None, typer.Option(help="Worker processes. (default: score in this process)")] = None,
    timeout: options.Timeout = None,
    memory: options.Memory = None,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Score rows anew whose status is error, timeout or memory.")
    ] = False,
    nodes: options.Nodes = None,
    address: options.Address = None,
    actors_per_node: options.ActorsPerNode = None,
    gpus_per_actor: options.GpusPerActor = 0.0,
    simulate_nodes: options.SimulateNodes = None,
    events: Annotated[Path | None, typer.Option(help="Append what happens to this file, a JSON object a line.")] = None,
    protocol: Annotated[Literal["paper", "fused"], typer.Option(help="Whose recipes.")] = "paper",
    device: options.Device = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; touch nothing.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    as_json: Json = False,
) -> None:
    """Score architectures into a table. The same command again resumes; further rows or proxies join the table."""
    from zcpipe import run as runs
    from zcpipe.proxies import resolve
    from zcpipe.run.device import resolve_device
    from zcpipe.scoring.plan import reads_data
    from zcpipe.spaces import get_space

    chosen, asked = get_space(space), resolve(proxies)
    held = options.bytes_of(memory)
    cluster = options.make_cluster(nodes, address, actors_per_node, gpus_per_actor, held, simulate_nodes)
    options.require_processes(timeout, memory, workers, cluster)
    patience = runs.TIMEOUT if timeout is None else timeout
    selection, trained_on = _selection(sample, range_, archs, chosen)
    spec = runs.RunSpec.model_validate(
        {
            "space": space,
            "dataset": dataset or (trained_on[0] if len(trained_on) == 1 else next(iter(chosen.datasets))),
            "proxies": tuple(proxy.name for proxy in asked),
            "selection": selection,
            "batch_size": batch_size,
            "resolution": resolution,
            "inputs": inputs,
            "seed": seed,
            "repeats": repeats,
            "protocol": protocol,
            "device": resolve_device(device) if cluster is None else cluster.device(device),
        }
    )
    if len(trained_on) > 1:
        typer.echo(f"note: {archs} is of {' and '.join(trained_on)}; all are built for {spec.dataset}", err=True)
    if spec.inputs_content and not reads_data(asked, spec.protocol):
        names = ", ".join(spec.proxies)
        typer.echo(f"note: none of {names} reads --inputs; zcpipe proxies --plan says what each pass sees", err=True)
    if dry_run:
        described = runs.describe(spec, out, workers, patience, cluster=cluster, retry_errors=retry_errors)
        print_json(described) if as_json else print_plan(described)
        return
    try:
        with terminable(), runs.show_progress(quiet=quiet) as show, runs.log_events(events) as log:

            def tell(event: runs.Event) -> None:
                show(event)
                log(event)

            summary = runs.run(
                spec,
                out,
                workers,
                patience,
                tell,
                cluster=cluster,
                memory=held,
                retry_errors=retry_errors,
            )
    except KeyboardInterrupt:
        typer.echo("interrupted: finished shards are committed; the same command goes on", err=True)
        raise typer.Exit(130) from None
    if as_json:
        print_json({**asdict(summary), "path": str(summary.path), "failed": summary.failed})
    else:
        counts = ", ".join(f"{count} {status}" for status, count in summary.by_status.items())
        planned = counted(summary.planned, "architecture")
        typer.echo(f"{summary.path}: {planned} ({counts}), {summary.new} new")
    if summary.failed:
        for line in reasons_of(summary.reasons):
            typer.echo(line, err=True)
        raise typer.Exit(3)


def _selection(
    sample: int | None, range_: str | None, archs: Path | None, space: Space[Architecture]
) -> tuple[Any, tuple[str, ...]]:
    """Return what to score, and the data sets that official files are of."""
    from zcpipe.run import All, Archs, Range, Sample

    if sum(option is not None for option in (sample, range_, archs)) > 1:
        raise UsageError("--sample, --range and --archs exclude each other; give one")
    if sample is not None:
        return Sample(n=sample), ()
    if archs is not None:
        official = archs.suffix == ".json" or archs.is_dir()
        return Archs.from_official(archs, space) if official else (Archs.from_file(archs), ())
    if range_ is not None:
        start, separator, stop = range_.partition(":")
        if not (separator and start.isdecimal() and stop.isdecimal()):
            raise UsageError(f"--range must be A:B with two indices, got {range_!r}; for example --range 0:1000")
        return Range(start=int(start), stop=int(stop)), ()
    return All(), ()
