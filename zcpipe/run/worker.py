"""The worker process: ``main`` scores what its supervisor sends over a socket.

It says in memory that both share which unit it executes, so that the supervisor knows when a worker is dead, and sends
rows as Arrow tables, those of a lease or of a second at a time. What a dead worker had not sent is computed again.
It ends with the supervisor: on Linux at once, whatever is being computed; elsewhere when the interpreter is free.
"""

from __future__ import annotations

import ctypes
import gc
import os
import pkgutil
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from queue import SimpleQueue

import torch

from zcpipe.errors import ZcpipeError
from zcpipe.run.cell import Cell
from zcpipe.run.channel import WorkerEnd
from zcpipe.run.executor import Lease
from zcpipe.run.rows import DeviceLostError, Row, SetAsideError, UnitScorer, build
from zcpipe.run.spec import RunSpec
from zcpipe.table.schema import canonical

_PR_SET_PDEATHSIG = 1  # of linux/prctl.h
# A network is some thousand objects without cycles: its last reference frees them, and collecting while it is built
# and scored would only look at what is in use.
_OBJECTS_BETWEEN_COLLECTIONS = 20_000
_SENT_AFTER = 1.0  # seconds after which rows are sent before their lease is done


def main(descriptor: int, memory: int, scorer: str) -> None:
    """Serve the supervisor at the other end of a socket until it closes it.

    Args:
        descriptor: of the socket.
        memory: file descriptor of the cell in which this worker says what it executes.
        scorer: what scores, as ``module:class``.
    """
    _end_with_supervisor(descriptor)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's to handle
    os.set_inheritable(descriptor, False)
    cell = Cell(memory)
    os.close(memory)
    gc.freeze()  # what was imported stays, and is not looked at again
    gc.enable()
    connection = WorkerEnd(socket.socket(fileno=descriptor))
    inbox: SimpleQueue[Lease] = SimpleQueue()
    torch.set_num_threads(1)
    try:
        spec = RunSpec.model_validate_json(connection.receive())
        threading.Thread(target=_listen, args=(connection, inbox), daemon=True).start()
        _serve(connection, spec, pkgutil.resolve_name(scorer), inbox, cell)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(0)


def _serve(connection: WorkerEnd, spec: RunSpec, kind: type[UnitScorer], inbox: SimpleQueue[Lease], cell: Cell) -> None:
    try:
        scorer = kind(spec)
        scorer.warm_up()
        gc.freeze()  # the scorer stays too
        gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
        connection.send(("ready", canonical(build(spec.device))))
        begun = 0
        while True:
            lease = inbox.get()
            _work(connection, scorer, lease, cell, begun)
            begun += len(lease.units)
            cell.rest()
    except ZcpipeError as error:
        connection.send(("refused", error))


def _work(connection: WorkerEnd, scorer: UnitScorer, lease: Lease, cell: Cell, begun: int) -> None:
    """Score a lease. A unit that is set aside is told of by itself, after the rows of those before it."""
    unsent, rows, started = 0, list[Row](), time.perf_counter()
    for ordinal, unit in enumerate(lease.units, begun):
        cell.begin(ordinal)
        aside: SetAsideError | None = None
        try:
            rows += scorer.score(unit, final=lease.alone) if lease.failed is None else scorer.fail(unit, lease.failed)
            unsent += 1
        except SetAsideError as error:
            aside = error
        last = ordinal == begun + len(lease.units) - 1
        seconds = time.perf_counter() - started
        if unsent and (aside or last or seconds > _SENT_AFTER):
            connection.send(("done", (unsent, scorer.tabulate(rows), seconds)))
            unsent, rows, started = 0, [], time.perf_counter()
        if aside:
            connection.send(("aside", aside.failed))
            started = time.perf_counter()
        if isinstance(aside, DeviceLostError):
            os._exit(1)


def _listen(connection: WorkerEnd, inbox: SimpleQueue[Lease]) -> None:
    """Take leases off the socket at once, so that neither side ever waits for the other to read."""
    try:
        while True:
            inbox.put(connection.receive())
    except (EOFError, OSError):
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # a worker that hears nothing more would wait for ever


def _end_with_supervisor(descriptor: int) -> None:
    """Have this process killed when its supervisor dies, which native code that holds the interpreter cannot delay.

    The system does that when the thread dies that started this process: the one that is in `run` until all workers
    have ended.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        supervisor = _peer(descriptor)
        if os.getppid() != supervisor:  # it died before
            os._exit(0)
    else:
        threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def _peer(descriptor: int) -> int:
    """Return the process that made the socket."""
    with socket.socket(fileno=os.dup(descriptor)) as ours:
        credentials = ours.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid: int = struct.unpack("3i", credentials)[0]
    return pid


def _watch(supervisor: int) -> None:
    """End with the supervisor, also where a process that it forked keeps the socket open."""
    while os.getppid() == supervisor:
        time.sleep(1.0)
    os._exit(0)
