"""Cutting shards into leases: so short that little is lost with a worker, so long that handing them out is nothing."""

from __future__ import annotations

from collections.abc import Iterator

from zcpipe.run.executor import Lease
from zcpipe.run.work import Shard

_SECONDS = 2.0
_UNITS = 512  # the most, however fast: messages of tens of megabytes leave holes in the supervisor's memory
_PIECES = 4  # into how many leases for each place what is left is cut at least, so that all end at one time


class Leases:
    """Leases of about two seconds, as long as units have lately been taking, and shorter towards the end.

    Args:
        shards: what is to be computed.
        rows: how many rows that is.
    """

    def __init__(self, shards: Iterator[Shard], rows: int) -> None:
        self._shards = shards
        self._shard: Shard | None = None
        self._begin = 0
        self._left = rows
        self._pace: float | None = None  # seconds per unit

    def learn(self, units: int, seconds: float) -> None:
        """Take note that so many units took so long together."""
        pace = seconds / units
        weight = 1 - 0.8**units
        self._pace = pace if self._pace is None else self._pace + weight * (pace - self._pace)

    def next(self, capacity: int) -> tuple[Shard, Lease] | None:
        """Return the next lease and its shard, None when there is no more.

        Args:
            capacity: how many units can be computed at one time.
        """
        if self._shard is None or self._begin == len(self._shard.units):
            self._shard, self._begin = next(self._shards, None), 0
            if self._shard is None:
                return None
        fit = 1 if self._pace is None else min(int(_SECONDS / max(self._pace, 1e-9)), _UNITS)
        units = self._shard.units[self._begin : self._begin + max(1, min(fit, self._left // (_PIECES * capacity)))]
        self._begin += len(units)
        self._left -= sum(len(unit.members) for unit in units)
        return self._shard, Lease(units)
