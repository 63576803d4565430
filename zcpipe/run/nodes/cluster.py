"""Reaching a Ray cluster, or starting a small one on this machine to try things out."""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from zcpipe.errors import CapabilityError, UsageError
from zcpipe.run import memory
from zcpipe.run.nodes.agent import Placement
from zcpipe.signals import kept

if TYPE_CHECKING:
    from types import ModuleType

_CONNECTION = 10.0  # seconds in which the head must answer
_ADMISSION = 30.0  # seconds in which the nodes must be there
_FAREWELL = 10.0  # seconds in which a cluster with a head is left
_LEAST_MEMORY = 1 << 30  # bytes for each actor, unless it may hold more
_RESUME = "finished shards are committed, and the same command goes on when the cluster is well"


@dataclass(frozen=True)
class Cluster:
    """Which nodes a run is to use and how.

    Attributes:
        nodes: how many.
        address: of the cluster; by default RAY_ADDRESS, or the one that runs on this machine.
        actors_per_node: scoring processes on each; by default as many as the node has cores, fewer where it has less
            than 1 GiB (or ``memory_per_actor``) of memory for each, or what its GPUs take.
        gpus_per_actor: share of a GPU that each gets: 1, or 1/2, 1/3 ...; 0 to compute on the CPU.
        memory_per_actor: bytes that each may hold; by default an equal share of 90 % of the node's memory.
        simulated: start the nodes on this machine instead, each with its share of the cores and the memory.

    Raises:
        UsageError: a number is out of its range.
    """

    nodes: int
    address: str | None = None
    actors_per_node: int | None = None
    gpus_per_actor: float = 0.0
    memory_per_actor: int | None = None
    simulated: bool = False

    def __post_init__(self) -> None:
        for what, number in (("nodes", self.nodes), ("actors per node", self.actors_per_node)):
            if number is not None and number < 1:
                raise UsageError(f"{what} must be at least 1, got {number}")
        share = self.gpus_per_actor
        if share and not (0 < share <= 1 and abs(1 / share - round(1 / share)) < 0.02):
            raise UsageError(f"GPUs per actor must be 1 or a whole part of one (0.5, 0.33, 0.25 ...), got {share:g}")

    @property
    def per_gpu(self) -> int:
        """How many actors have a GPU together, 0 where they compute on the CPU."""
        return round(1 / self.gpus_per_actor) if self.gpus_per_actor else 0

    def device(self, asked: str) -> str:
        """Return the device on which each actor computes: the one GPU that it sees, or the CPU.

        Args:
            asked: ``auto``, or what must agree with that.

        Raises:
            UsageError: it does not.
        """
        device = "cuda:0" if self.gpus_per_actor else "cpu"
        if asked not in ("auto", device, device.partition(":")[0]):
            raise UsageError(
                f"--device {asked} does not fit a run on nodes, where --gpus-per-actor says whether GPUs are used; "
                "leave --device out"
            )
        return device

    def placement(self, resources: dict[str, float]) -> Placement:
        """Return what the actors of a node get that has such resources (``CPU``, ``GPU``, ``memory`` in bytes).

        Raises:
            CapabilityError: it has too few GPUs.
        """
        each = max(_LEAST_MEMORY, self.memory_per_actor or 0)
        most = max(1, min(int(resources.get("CPU", 1)), int(resources.get("memory", 0) // each)))
        if self.per_gpu:
            most = int(resources.get("GPU", 0)) * self.per_gpu
            if most < (self.actors_per_node or 1):
                raise CapabilityError(
                    f"{self.actors_per_node or 1} actors of {self.gpus_per_actor:g} GPUs each do not fit a node with "
                    f"{resources.get('GPU', 0):g}; use fewer --actors-per-node or a smaller --gpus-per-actor"
                )
        own = self.memory_per_actor
        if own is None and self.simulated:
            own = memory.share(self.nodes * (self.actors_per_node or most))
        return Placement(self.actors_per_node or most, own, self.per_gpu)

    def misfit(self, resources: dict[str, float]) -> CapabilityError | None:
        """Return why a node that has such resources cannot take its actors, if it cannot."""
        try:
            self.placement(resources)
        except CapabilityError as error:
            return error
        return None


@contextmanager
def connected(cluster: Cluster, mend: str = _RESUME) -> Iterator[None]:
    """Be connected with the cluster, which has all the nodes that were asked for.

    Args:
        cluster: which.
        mend: what is kept and what to do where it fails while it is used; by default what a run says.

    Raises:
        CapabilityError: Ray is not installed, there is no cluster at the address, it does not take us, it has too few
            nodes, or it fails while it is used.
    """
    if cluster.simulated and not os.environ.get("RAY_AUTH_MODE"):  # Ray looks when it is imported
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    ray = _import()
    with _simulated(cluster) if cluster.simulated else _existing(cluster) as address:
        _reach(address)
        try:
            with kept():  # Ray would exit, with a stack dump and a code of its own
                ray.init(
                    address=address,
                    namespace="zcpipe",
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                    configure_logging=False,
                )
        except (ConnectionError, ValueError, RuntimeError, TimeoutError, ray.exceptions.RayError) as error:
            raise CapabilityError(_refused(address, error)) from error
        try:
            _admit(ray, cluster)
            yield
        except ray.exceptions.RayError as error:
            raise CapabilityError(f"the Ray cluster fails: {_in_one_line(error)}; {mend}") from error
        finally:
            _leave(ray)


def alive(ray: Any) -> list[dict[str, Any]]:  # noqa: ANN401 - a module
    """Return the nodes that are alive and have something to compute with, as Ray describes them."""
    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]


def _import() -> ModuleType:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TQDM_PATCH_PRINT", "0")  # print stays Python's own
    try:
        import ray
    except ImportError as error:
        raise CapabilityError(f"runs on nodes need Ray ({error}); install it with pip install 'zcpipe[ray]'") from error
    return ray


@contextmanager
def _existing(cluster: Cluster) -> Iterator[str]:
    """Leave a cluster as it is, and say where it is."""
    yield cluster.address or os.environ.get("RAY_ADDRESS") or "auto"


@contextmanager
def _simulated(cluster: Cluster) -> Iterator[str]:
    """Start nodes on this machine that only who has their token can use, and end them."""
    from ray import cluster_utils

    from zcpipe.run.process import worker_environment

    os.environ["PYTHONPATH"] = worker_environment()["PYTHONPATH"]  # what this process imports, they can
    cores = max(1, (os.cpu_count() or 1) // cluster.nodes)
    size: dict[str, Any] = {"num_cpus": max(cores, cluster.actors_per_node or 1), "object_store_memory": 128 << 20}
    # Nobody reads their logs or has them grow: two processes less on a machine that is to score.
    alone = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
    noted = _Noted()
    nodes: Any = cluster_utils.Cluster(initialize_head=True, head_node_args={**size, **alone})
    noted.put_back(nodes.address)
    try:
        for _ in range(cluster.nodes - 1):
            nodes.add_node(**size)
        yield nodes.address
    finally:
        noted = _Noted()
        nodes.shutdown()
        noted.put_back("")


class _Noted:
    """Which cluster is this machine's own, as Ray notes it: one that is only tried out, too, and none when it ends."""

    def __init__(self) -> None:
        utils: Any = import_module("ray._private.utils")
        utils.logger.setLevel(logging.WARNING)  # it says that there was another
        self._file = Path(utils.get_ray_address_file(None))
        self._before = self._read()

    def put_back(self, noted: str) -> None:
        """Have noted what was before, where this is noted now; nobody else's cluster is touched."""
        if self._read().decode(errors="replace") != noted:
            return
        with suppress(OSError):  # it only spares who looks for a cluster to name it
            if self._before:
                self._file.write_bytes(self._before)
            else:
                self._file.unlink(missing_ok=True)

    def _read(self) -> bytes:
        try:
            return self._file.read_bytes()
        except OSError:
            return b""


def _reach(address: str) -> None:
    """Find out in seconds that nothing is at an address, which takes Ray minutes."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal()):
        if address != "auto":
            raise UsageError(f"the address of a Ray cluster is HOST:PORT, got {address!r}")
        return
    try:
        socket.create_connection((host, int(port)), _CONNECTION).close()
    except (OSError, OverflowError) as error:
        raise CapabilityError(_refused(address, error)) from error


def _admit(ray: Any, cluster: Cluster) -> None:  # noqa: ANN401 - a module
    """Wait for as many nodes as are wanted that can take what is wanted of each."""
    deadline = time.monotonic() + _ADMISSION
    while True:
        there = alive(ray)
        misfits = [error for node in there if (error := cluster.misfit(node["Resources"])) is not None]
        fitting = len(there) - len(misfits)
        if fitting >= cluster.nodes:
            return
        if time.monotonic() > deadline:
            if misfits and len(there) >= cluster.nodes:
                raise CapabilityError(
                    f"{cluster.nodes} nodes were asked for and {fitting} of {len(there)} fit: {misfits[0]}"
                )
            raise CapabilityError(
                f"{cluster.nodes} nodes were asked for and {len(there)} are alive in the cluster; add nodes with "
                f"ray start --address, or use --nodes {max(1, len(there))}"
            )
        time.sleep(0.5)


def _leave(ray: Any) -> None:  # noqa: ANN401 - a module
    """Leave a cluster, which without its head may take for ever."""
    leaving = Thread(target=ray.shutdown, name="leave", daemon=True)
    leaving.start()
    leaving.join(_FAREWELL)
    if leaving.is_alive():
        atexit.unregister(ray.shutdown)


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")[:200]


def _refused(address: str, error: Exception) -> str:
    """Say in one line why there is no connection and what to do about it."""
    said = " ".join(str(error).split()).rstrip(".")
    if "uthentication" in said or "token" in said:
        return (
            f"the Ray cluster at {address} does not take us: {said[:200]}; give this process the cluster's token "
            "(RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH)"
        )
    if "ersion" in said:
        return f"the Ray cluster at {address} runs other versions than this process: {said[:300]}; use the same"
    return (
        f"no Ray cluster at {address}: {said[:200]}; start one with ray start --head, name it with --address, "
        "or try nodes out with --simulate-nodes; a cluster that uses tokens must be given its token (RAY_AUTH_TOKEN or "
        "RAY_AUTH_TOKEN_PATH)"
    )
