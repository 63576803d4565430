"""What becomes of units that ended their workers: who is blamed for a death, and when it is not the units."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace

from zcpipe.errors import CapabilityError, UsageError
from zcpipe.run.executor import Died, Lease
from zcpipe.run.rows import Failed
from zcpipe.run.work import Unit

_STREAK = 20  # units that failed before any did otherwise


class Blame:
    """Judges deaths.

    A unit whose worker dies or sets it aside is tried once more, in a fresh worker and if possible elsewhere; what ends
    that one too is a failure of the unit. One that exceeds its timeout has failed at once. The rows of a failure are
    made by a worker, since asking the space what it knows about an architecture can kill as well.

    Args:
        known: indices of rows that failed in an earlier run: that they fail again says nothing about the others.
    """

    def __init__(self, known: Container[int] = ()) -> None:
        self._known = known
        self._once: set[Unit] = set()
        self._failed: dict[Unit, Failed] = {}
        self._streak: list[Failed] = []
        self._any_good = False

    def judge(self, died: Died) -> Lease | Failed:
        """Return what to do about a unit next, or the failure where its rows cannot be made either.

        Raises:
            UsageError: nothing ends within the timeout.
            CapabilityError: every unit ends its worker, which is then not the units' fault.
        """
        unit, failed = died.unit, died.failed
        if unit in self._failed:
            return self._failed.pop(unit)
        if failed.status != "timeout" and unit not in self._once:
            self._once.add(unit)
            return Lease((unit,), alone=True, avoid=died.place)
        self._once.discard(unit)
        if not any(member in self._known for member in unit.members):
            self._count(failed)
        if failed.status != "timeout":
            failed = replace(failed, message=f"{failed.message}, twice")
        self._failed[unit] = failed
        return Lease((unit,), alone=True, failed=failed)

    def acquit(self, units: tuple[Unit, ...]) -> None:
        """Take note of units that have their rows."""
        for unit in units:
            self._once.discard(unit)
            if self._failed.pop(unit, None) is None:
                self._any_good = True

    def _count(self, failed: Failed) -> None:
        if self._any_good:
            return
        self._streak.append(failed)
        if len(self._streak) < _STREAK:
            return
        if all(one.status == "timeout" for one in self._streak):
            raise UsageError(
                f"the first {_STREAK} architectures gave {failed.message}, and none did otherwise; "
                "give a longer --timeout"
            )
        raise CapabilityError(
            f"the first {_STREAK} architectures ended their workers and none did otherwise, the last one so: "
            f"{failed.message}; score one without --workers to see more"
        )
