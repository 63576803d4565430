"""Which nodes a cluster has, asked beside the run: a head that was lost never answers, nor says that it does not."""

from __future__ import annotations

import time
from threading import Event, Thread
from typing import Any

from zcpipe.errors import CapabilityError
from zcpipe.run.nodes.cluster import alive

_BETWEEN = 1.0  # seconds between two questions
_SILENCE = 30.0  # seconds without an answer after which the head is lost; Ray ends the whole process after 60
_STRIDE = 4.0  # seconds that may count between two looks: this process may have been stopped, as by Ctrl-Z
_FAREWELL = 5.0  # seconds in which a question is answered when the watch ends


class Watch:
    """Asks a cluster's head again and again which nodes are alive, in a thread of its own.

    Args:
        ray: the module, connected with the cluster.
    """

    def __init__(self, ray: Any) -> None:  # noqa: ANN401 - a module
        self._ray = ray
        self._nodes: list[dict[str, Any]] = []
        self._answered = False  # since it was last looked
        self._looked = time.monotonic()
        self._silent = 0.0  # seconds without an answer in which this process ran
        self._said = ""  # by Ray instead of an answer
        self._ended = Event()
        self._thread = Thread(target=self._ask, name="watch", daemon=True)
        self._thread.start()

    def nodes(self) -> list[dict[str, Any]]:
        """Return the nodes as the head last told them, none before it has.

        Raises:
            HeadLostError: it has not answered for half a minute.
        """
        now = time.monotonic()
        self._silent = 0.0 if self._answered else self._silent + min(now - self._looked, _STRIDE)
        self._answered, self._looked = False, now
        if self._silent > _SILENCE:
            raise HeadLostError(
                f"the head of the Ray cluster has not answered for {_SILENCE:.0f} s{self._said}: it was lost; finished "
                "shards are committed, and the same command goes on when a cluster is there"
            )
        return self._nodes

    def close(self) -> None:
        """Ask no more."""
        self._ended.set()
        if self._silent <= _SILENCE:
            self._thread.join(_FAREWELL)  # Ray would start a cluster of its own for a question after its shutdown

    def _ask(self) -> None:
        while not self._ended.is_set():
            try:
                self._nodes = alive(self._ray)
                self._answered = True
                self._said = ""
            except Exception as error:
                self._said = f" ({' '.join(str(error).split())[:200]})"
            self._ended.wait(_BETWEEN)


class HeadLostError(CapabilityError):
    """A cluster without the process that holds it together, which Ray can neither leave nor survive in order."""

    abrupt = True
