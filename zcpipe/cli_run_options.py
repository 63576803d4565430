"""Options of the commands that score architectures, and what is made of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from zcpipe.errors import UsageError

if TYPE_CHECKING:
    from zcpipe.run.nodes.cluster import Cluster

_LEAST_MEMORY = 512 << 20  # bytes; one that has scored nothing holds about 400 MiB

Space = Annotated[str, typer.Option(help="Search space; see zcpipe spaces.")]
Proxies = Annotated[str, typer.Option(help="Proxies or groups, separated by commas; see zcpipe proxies.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images in the batch.")]
Resolution = Annotated[
    int | None, typer.Option(min=1, help="Side of the images in pixels. (default: the dataset's own)")
]
Inputs = Annotated[
    str, typer.Option(help="noise, or images: cifar10, cifar100, imagenet16 or npz, a colon and their PATH.")
]
Timeout = Annotated[
    float | None, typer.Option(help="Seconds an architecture may take in a worker process. (default: 600)")
]
Memory = Annotated[
    str | None, typer.Option(help="Memory that a worker process may hold, like 4GiB. (default: its share of 90 %)")
]
Nodes = Annotated[int | None, typer.Option(help="Score on so many nodes of a Ray cluster.")]
Address = Annotated[
    str | None, typer.Option(help="With --nodes: the cluster. (default: RAY_ADDRESS, or the one on this machine)")
]
ActorsPerNode = Annotated[
    int | None, typer.Option(help="Scoring processes on each node. (default: by cores, memory and GPUs)")
]
GpusPerActor = Annotated[float, typer.Option(help="Share of a GPU for each: 1, 0.5, 0.25 ...; 0 scores on the CPU.")]
SimulateNodes = Annotated[
    int | None, typer.Option(min=1, help="Try nodes out: start so many on this machine, and score on them.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:<i>.")]


def make_cluster(
    nodes: int | None,
    address: str | None,
    actors_per_node: int | None,
    gpus_per_actor: float,
    memory: int | None,
    simulate_nodes: int | None,
) -> Cluster | None:
    """Return the cluster that is to score, None where it is this machine.

    Raises:
        UsageError: options that exclude each other, or that are for nodes alone.
    """
    from zcpipe.run.nodes.cluster import Cluster

    if nodes is not None and simulate_nodes is not None:
        raise UsageError("--nodes and --simulate-nodes exclude each other; give one")
    if address is not None and simulate_nodes is not None:
        raise UsageError("--simulate-nodes starts a cluster of its own; give --nodes N for the one at --address")
    count = nodes if simulate_nodes is None else simulate_nodes
    if count is None:
        given = {"--address": address, "--actors-per-node": actors_per_node, "--gpus-per-actor": gpus_per_actor}
        if alone := [name for name, value in given.items() if value]:
            raise UsageError(f"{alone[0]} is for runs on nodes; give --nodes N as well")
        return None
    return Cluster(count, address, actors_per_node, gpus_per_actor, memory, simulated=simulate_nodes is not None)


def bytes_of(memory: str | None) -> int | None:
    """Read an amount of memory.

    Raises:
        UsageError: it is none, or less than a worker process holds before it has scored anything.
    """
    from zcpipe.run.memory import parse_bytes

    if memory is None:
        return None
    count = parse_bytes(memory)
    if count < _LEAST_MEMORY:
        raise UsageError(f"--memory {memory} is less than the 512 MiB that a worker process takes itself; try 2GiB")
    return count


def require_processes(timeout: float | None, memory: str | None, workers: int | None, cluster: Cluster | None) -> None:
    """Refuse limits of worker processes where this process scores.

    Raises:
        UsageError: one is given.
    """
    if workers is None and cluster is None:
        for option, value in (("--timeout", timeout), ("--memory", memory)):
            if value is not None:
                raise UsageError(f"{option} is for worker processes; give --workers K or --nodes N as well")
