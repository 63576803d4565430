"""The worker process: ``main`` scores what its supervisor sends over a socket.

It announces each unit before it starts it, so that the supervisor knows which one was executing when a worker dies, and
says what is known of it without its network: asking the space for that is not safe in the supervisor.
It ends with the supervisor: on Linux at once, whatever is being computed; elsewhere when the interpreter is free.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import socket
import struct
import sys
import threading
import time
from multiprocessing.connection import Connection
from queue import SimpleQueue

import torch

from zcpipe.errors import ZcpipeError
from zcpipe.run.executor import Lease
from zcpipe.run.rows import UnitScorer
from zcpipe.run.spec import RunSpec

_PR_SET_PDEATHSIG = 1  # of linux/prctl.h
# A network is some thousand objects without cycles: its last reference frees them, and collecting while it is built
# and scored would only look at what is in use.
_OBJECTS_BETWEEN_COLLECTIONS = 20_000


def main(descriptor: int) -> None:
    """Serve the supervisor at the other end of a socket until it closes it."""
    _end_with_supervisor(descriptor)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's to handle
    os.set_inheritable(descriptor, False)
    gc.freeze()  # what was imported stays, and is not looked at again
    gc.enable()
    connection = Connection(descriptor)
    inbox: SimpleQueue[Lease] = SimpleQueue()
    torch.set_num_threads(1)
    try:
        spec = RunSpec.model_validate_json(connection.recv())
        threading.Thread(target=_listen, args=(connection, inbox), daemon=True).start()
        _serve(connection, spec, inbox)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(0)


def _serve(connection: Connection, spec: RunSpec, inbox: SimpleQueue[Lease]) -> None:
    try:
        scorer = UnitScorer(spec)
    except ZcpipeError as error:
        connection.send(("refused", error))
        return
    gc.freeze()  # the scorer stays too
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
    connection.send(("ready", None))
    while True:
        for unit in inbox.get():
            connection.send(("started", unit))
            begun = time.perf_counter()
            connection.send(("counted", scorer.count(unit)))
            rows = scorer.score(unit)
            connection.send(("finished", (unit, rows, time.perf_counter() - begun)))


def _listen(connection: Connection, inbox: SimpleQueue[Lease]) -> None:
    """Take leases off the socket at once, so that neither side ever waits for the other to read."""
    try:
        while True:
            inbox.put(connection.recv())
    except (EOFError, OSError):
        os._exit(0)


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
