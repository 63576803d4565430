"""The same function over many tasks: in this process, in others beside it, or on the nodes of a Ray cluster.

Everything is computed with one thread, wherever it is, so that the results are the same to the bit.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from zcpipe.errors import CapabilityError, UsageError, ZcpipeError

if TYPE_CHECKING:
    from zcpipe.run.nodes.cluster import Cluster

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")

Progress = Callable[[int, int], None]
"""Told how many tasks are done, and of how many."""

_GLANCE = 1.0  # seconds between two looks at whether the process that started this one lives


@dataclass(frozen=True)
class Pool:
    """Where tasks are computed.

    Attributes:
        workers: processes on this machine; None to compute in this one.
        cluster: a Ray cluster instead.

    Raises:
        UsageError: both, or fewer than one worker.
    """

    workers: int | None = None
    cluster: Cluster | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise UsageError(f"workers must be at least 1, got {self.workers}")
        if self.workers is not None and self.cluster is not None:
            raise UsageError("--workers is for this machine and --nodes for a cluster; give one")


HERE = Pool()


def each(
    function: Callable[[S, T], R],
    shared: S,
    tasks: Sequence[T],
    pool: Pool = HERE,
    progress: Progress | None = None,
) -> list[R]:
    """Compute ``function(shared, task)`` for each task.

    Args:
        function: of a module, so that other processes find it.
        shared: what all tasks need; it is sent to each process once.
        tasks: what they differ in.
        pool: where to compute.
        progress: told how many are done.

    Returns:
        The results in the order of the tasks.

    Raises:
        ZcpipeError: the first task that fails so ends all.
        CapabilityError: a process died, or there is no such cluster.
    """
    found: dict[int, R] = {}
    for number, result in as_done(function, shared, tasks, pool):
        found[number] = result
        if progress is not None:
            progress(len(found), len(tasks))
    return [found[number] for number in range(len(tasks))]


@contextmanager
def one_thread() -> Iterator[None]:
    """Within, torch and the libraries of linear algebra compute with one thread.

    Raises:
        CapabilityError: the extra ``parzc`` is not installed.
    """
    import torch

    try:
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        raise CapabilityError(
            f"learning needs scikit-learn ({error}); install it with pip install 'zcpipe[parzc]'"
        ) from error
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


Within = Callable[[], AbstractContextManager[None]]


def as_done(
    function: Callable[[S, T], R],
    shared: S,
    tasks: Sequence[T],
    pool: Pool = HERE,
    within: Within = one_thread,
) -> Iterator[tuple[int, R]]:
    """Compute ``function(shared, task)`` for each task, and yield number and result of each as it is done.

    Args and errors are those of `each`; ``within``, a function of a module, makes the context of each call.
    """
    if pool.cluster is not None:
        yield from _on_nodes(function, shared, tasks, pool.cluster, within)
    elif pool.workers is not None and len(tasks) > 1:
        yield from _in_processes(function, shared, tasks, pool.workers, within)
    else:
        yield from _here(function, shared, tasks, within)


def _here(function: Callable[[S, T], R], shared: S, tasks: Sequence[T], within: Within) -> Iterator[tuple[int, R]]:
    for number, task in enumerate(tasks):
        with within():
            result = function(shared, task)
        yield number, result


def _in_processes(
    function: Callable[[S, T], R], shared: S, tasks: Sequence[T], workers: int, within: Within
) -> Iterator[tuple[int, R]]:
    executor = ProcessPoolExecutor(
        min(workers, len(tasks)),
        multiprocessing.get_context("spawn"),
        _begin,
        (function, shared, within, os.getpid()),
    )
    try:
        futures = {executor.submit(_call, task): number for number, task in enumerate(tasks)}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        raise CapabilityError(
            "a worker process died, perhaps of too little memory; use fewer --workers, or none"
        ) from error
    except BaseException:
        for process in list(executor._processes.values()):  # what they compute is of no use any more
            process.kill()
        raise
    finally:
        executor.shutdown(cancel_futures=True)


_held: tuple[Callable[[Any, Any], Any], Any, Within] | None = None  # function, shared, within of a worker process


def _begin(function: Callable[[Any, Any], Any], shared: object, within: Within, supervisor: int) -> None:
    global _held
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the supervisor's to handle
    threading.Thread(target=_watch, args=(supervisor,), daemon=True).start()
    _held = function, shared, within


def _watch(supervisor: int) -> None:
    while os.getppid() == supervisor:
        time.sleep(_GLANCE)
    os._exit(1)


def _call(task: object) -> Any:  # noqa: ANN401 - whatever the function gives
    assert _held is not None  # noqa: S101 - `_begin` ran first
    function, shared, within = _held
    with within():
        return function(shared, task)


def _on_nodes(
    function: Callable[[S, T], R], shared: S, tasks: Sequence[T], cluster: Cluster, within: Within
) -> Iterator[tuple[int, R]]:
    from zcpipe.run.nodes.cluster import connected

    # Unlike a run, most of what computes here keeps nothing of what was done.
    with connected(cluster, "give the command again when the cluster is well"):
        import ray

        held = ray.put(shared)
        remote: Any = ray.remote(num_cpus=1)(_outcome)
        pending = {remote.remote(function, held, task, within): number for number, task in enumerate(tasks)}
        while pending:
            ready, _ = ray.wait(list(pending), num_returns=1)
            outcome = ray.get(ready[0])
            if isinstance(outcome, ZcpipeError):
                raise outcome
            yield pending.pop(ready[0]), outcome


def _outcome(function: Callable[[S, T], R], shared: S, task: T, within: Within) -> R | ZcpipeError:
    """Compute a task; an error of ours is a result, for Ray would wrap it in a traceback."""
    try:
        with within():
            return function(shared, task)
    except ZcpipeError as error:
        return error
