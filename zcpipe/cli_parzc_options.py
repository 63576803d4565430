"""Options that the commands of `zcpipe.cli_parzc` share, and what is made of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from zcpipe.errors import UsageError
from zcpipe.signals import terminable

if TYPE_CHECKING:
    from zcpipe.parzc import spec as specs
    from zcpipe.parzc.parallel import Pool
    from zcpipe.table import Table

Truth = Annotated[Path, typer.Option(help="Parquet file with a text column 'arch' and the labels; null is none.")]
Target = Annotated[str, typer.Option(metavar="COLUMN", help="Column of the truth file that is learnt.")]
Statistics = Annotated[
    str | None,
    typer.Option(metavar="NAMES", help="Statistics to learn from, such as snip@layer. (default: all of the table)"),
]
Proxies = Annotated[
    str | None,
    typer.Option(metavar="NAMES", help="Scalar columns to learn from, params and macs too. (default: all)"),
]
Encoding = Annotated[
    Literal["live-rank", "rank", "zscore", "log", "minmax"],
    typer.Option(
        help="How values are encoded: live-rank (0, an empty place, apart, and 1 where all others are equal), rank, "
        "zscore, log, or minmax, near what was published (docs/parzc.md)."
    ),
]
Alignment = Annotated[
    Literal["slots", "packed"],
    typer.Option(help="slots: a feature is a place in the network; packed: live nodes first, near what was published."),
]
Graph = Annotated[bool, typer.Option("--graph", help="Learn from the operations of the cell as well.")]
Predictor = Annotated[
    str,
    typer.Option(
        help="parzc (a Gaussian process and extra trees together), mabn, mabn-published, gaussian-process (which "
        "learns from 4000 labelled architectures at most, also within parzc), extra-trees, boosted-trees or ridge.",
        metavar="NAME",
    ),
]
Parameters = Annotated[
    Path | None, typer.Option(help="JSON file of the predictor's parameters, such as zcpipe parzc tune writes.")
]
Seed = Annotated[int, typer.Option(help="Seed of the draw of architectures and of the training.")]
Workers = Annotated[int | None, typer.Option(help="Train in so many processes. (default: in this one)")]
Nodes = Annotated[int | None, typer.Option(help="Train on so many nodes of a Ray cluster.")]
Address = Annotated[
    str | None, typer.Option(help="With --nodes: the cluster. (default: RAY_ADDRESS, or the one on this machine)")
]
SimulateNodes = Annotated[
    int | None, typer.Option(help="Try nodes out: start so many on this machine, and train on them.")
]
SAMPLES = "a count, or a share of the architectures with labels and features, such as 20%"


def make_spec(
    table: Table,
    statistics: str | None,
    proxies: str | None,
    encoding: specs.Encoding,
    alignment: specs.Alignment,
    graph: bool,
) -> specs.FeatureSpec:
    """Choose features, and say on standard error what was left out; see `choose_spec`."""
    from zcpipe.parzc.choice import choose_spec

    spec, left_out = choose_spec(
        table, _names(statistics), _names(proxies), encoding=encoding, alignment=alignment, graph=graph
    )
    if left_out:
        shares = ", ".join(f"{name} (in {share:.1%})" for name, share in left_out.items())
        typer.echo(
            f"left out, for fewer than 99 % of the rows have values: {shares}; to learn from one all the same name it "
            "and the others, with --statistics or --proxies: rows without are then not predicted",
            err=True,
        )
    return spec


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def make_pool(workers: int | None, nodes: int | None, address: str | None, simulate_nodes: int | None) -> Pool:
    """Say where to train.

    Raises:
        UsageError: options that exclude each other.
    """
    from zcpipe.parzc.parallel import Pool
    from zcpipe.run.nodes.cluster import Cluster

    if nodes is not None and simulate_nodes is not None:
        raise UsageError("--nodes and --simulate-nodes exclude each other; give one")
    if address is not None and simulate_nodes is not None:
        raise UsageError("--simulate-nodes starts a cluster of its own; give --nodes N for the one at --address")
    count = nodes if simulate_nodes is None else simulate_nodes
    if count is None:
        if address is not None:
            raise UsageError("--address is for trainings on nodes; give --nodes N as well")
        return Pool(workers)
    return Pool(workers, Cluster(count, address, simulated=simulate_nodes is not None))


def note_idle(pool: Pool, seeds: int) -> None:
    """Say of a single training that more processes or nodes do nothing for it."""
    if seeds == 1 and (pool.workers is not None or pool.cluster is not None):
        what = "workers" if pool.cluster is None else "nodes"
        typer.echo(f"--seeds 1 is one training, which one process computes: {what} make it no faster", err=True)


@contextmanager
def show_progress(title: str) -> Iterator[Any]:
    """Show how many trainings are done; inside, SIGTERM interrupts like Ctrl-C."""
    from zcpipe.progress import trainings_done

    with terminable(), trainings_done(title) as progress:
        yield progress
