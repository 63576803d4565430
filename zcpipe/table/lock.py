"""Who may write a table: one process at a time, on a disk by the system's lock, in an object store by announcement.

A store has no locks that end with their process. There, who wants to write announces itself by an object of its own
in ``<table>.lock/``, and then looks who else is there. Of two that announce themselves at once the one that looks later
sees the other, so they cannot both go on: whoever sees another that lives withdraws. Who holds the lock announces
itself anew every `RENEWAL` seconds; who was not heard of for `STALE` seconds is dead and its announcement removed.
Times are those of the store, which dates both announcements that are compared, so clocks need not agree. A holder that
could not renew for most of that time, be it because its machine slept, regards the lock as lost by itself, and writes
nothing more.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from zcpipe.errors import DataError
from zcpipe.table.files import disk_errors, each, exists, listing, publish, remove

if TYPE_CHECKING:
    from upath import UPath

    from zcpipe.table.place import Place

RENEWAL = 20.0
STALE = 120.0
# Goes on while the machine sleeps, which time.monotonic does not; on macOS CLOCK_MONOTONIC does and has no other name.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_ATTEMPTS = 6  # when several announce themselves at once


@contextmanager
def hold(directory: Place, header: str, noted: Callable[[], object]) -> Iterator[Callable[[], None]]:
    """Hold the lock of a table.

    Args:
        directory: the table.
        header: name of its header file, which is there and is what is locked on a disk.
        noted: returns the process that the latest run noted.

    Yields:
        A function to be called before anything is written. It raises ``DataError`` once the lock may be another's.

    Raises:
        DataError: another process holds it, or the lock cannot be had.
    """
    if not isinstance(directory, Path):
        with announced(directory) as check:
            yield check
        return
    descriptor = _lock(directory, directory / header, noted)
    try:
        yield lambda: None
    finally:
        os.close(descriptor)


@contextmanager
def announced(directory: UPath) -> Iterator[Callable[[], None]]:
    """Hold the lock of a table in a store, be there a table already or not; yields and raises as `hold` does."""
    with _Announcement(directory).held() as check:
        yield check


# -- on a disk


def _lock(directory: Path, header: Path, noted: Callable[[], object]) -> int:
    """Lock the header file: the one that is there, should a user have removed the table and begun another meanwhile."""
    while True:
        with disk_errors("open", header):
            descriptor = os.open(header, os.O_RDWR | os.O_CLOEXEC)
        try:
            with disk_errors("lock", header):
                _claim(descriptor, directory, noted)
                if os.fstat(descriptor).st_ino == header.stat().st_ino:
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _claim(descriptor: int, directory: Path, noted: Callable[[], object]) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise _refused(directory, f"process {noted()}") from error


def _refused(directory: Place, who: str, otherwise: str = "") -> DataError:
    return DataError(f"{directory} is being written by another zcpipe run ({who}); wait for it or end it{otherwise}")


# -- in a store


@dataclass(frozen=True)
class _Claim:
    """What an announcement says; ``machine`` names where process numbers mean the same, as far as that is known."""

    token: str
    host: str
    machine: str
    process: int
    since: str
    holds: bool = False


@dataclass(frozen=True)
class _Seen:
    path: UPath
    claim: _Claim
    renewed: datetime  # by the store's clock

    def age(self, now: datetime) -> float:
        return max(0.0, (now - self.renewed).total_seconds())

    def lives(self, now: datetime) -> bool:
        return self.age(now) < STALE and not _has_ended(self.claim)


class _Announcement:
    """The lock of a table in a store, as this process has or wants it."""

    def __init__(self, directory: UPath) -> None:
        self._directory = directory
        self._all = directory.with_name(f"{directory.name}.lock")
        since = datetime.now(UTC).isoformat(timespec="seconds")
        self._claim = _Claim(secrets.token_hex(8), socket.gethostname(), _machine(), os.getpid(), since)
        self._own = self._all / f"{self._claim.token}.json"
        self._renewed = 0.0  # by the clock of this process
        self._lost = ""
        self._stop = threading.Event()

    @contextmanager
    def held(self) -> Iterator[Callable[[], None]]:
        """Hold the lock and keep it renewed."""
        try:
            self._acquire()
            renewer = threading.Thread(target=self._renew, name=f"lock of {self._directory}", daemon=True)
            renewer.start()
            try:
                yield self._check
            finally:
                self._stop.set()
                renewer.join()
        finally:
            with suppress(DataError):  # a store that cannot be reached: others find the lock stale before long
                remove(self._own)

    def _acquire(self) -> None:
        for attempt in range(_ATTEMPTS):
            begun = _now()
            self._announce(begun)
            living, dead, now = self._look()
            if not living:
                each(remove, [seen.path for seen in dead])
                self._claim = replace(self._claim, holds=True)
                self._announce(begun)
                return
            remove(self._own)
            if any(seen.claim.holds for seen in living) or attempt == _ATTEMPTS - 1:
                raise self._refused(living, now)
            time.sleep(random.uniform(0.0, 0.1 * 2**attempt))  # noqa: S311 - so that rivals look at different times

    def _announce(self, begun: float) -> None:
        """Announce this process (anew).

        Args:
            begun: when it was about to see that nobody else holds the lock; the machine may have slept since.
        """
        publish(self._own, json.dumps(asdict(self._claim)).encode())
        self._renewed = begun

    def _look(self) -> tuple[list[_Seen], list[_Seen], datetime]:
        """Return the other announcements, of the living and of the dead, and the time of the store."""
        with disk_errors("use", self._all):
            entries = listing(self._all)
        own = entries.pop(self._own.path, None)
        if own is None:
            raise DataError(f"{self._own} disappears as soon as it is written; relaunch the same command")
        now = _modified(own)
        others = []
        for path, entry in entries.items():
            claim = _read(self._all / path.rpartition("/")[2])
            if claim is not None:
                others.append(_Seen(self._all / path.rpartition("/")[2], claim, _modified(entry)))
        return [seen for seen in others if seen.lives(now)], [seen for seen in others if not seen.lives(now)], now

    def _refused(self, living: list[_Seen], now: datetime) -> DataError:
        first = max(living, key=lambda seen: seen.claim.holds)
        who = f"process {first.claim.process} on {first.claim.host}, since {first.claim.since}"
        left = STALE - first.age(now)
        return _refused(self._directory, who, f", or if it was killed relaunch in {left:.0f} s")

    def _renew(self) -> None:
        while not self._stop.wait(RENEWAL):
            begun = _now()
            if self._overdue():
                self._lost = self._lost or "it could not be renewed in time"
                return
            try:
                if not exists(self._own):
                    self._lost = "another run took it over"
                    return
                self._announce(begun)
            except DataError:  # tried again until it is overdue
                continue

    def _overdue(self) -> bool:
        return _now() - self._renewed > 0.75 * STALE

    def _check(self) -> None:
        if self._overdue():
            self._lost = self._lost or "it could not be renewed in time"
        if self._lost:
            raise DataError(f"lost the lock of {self._directory}: {self._lost}; relaunch the same command")


def _now() -> float:
    return time.clock_gettime(_CLOCK)


def _read(path: UPath) -> _Claim | None:
    """Return what an announcement says, nothing if it is gone meanwhile."""
    with disk_errors("read", path):
        try:
            content = path.fs.cat_file(path.path)
        except FileNotFoundError:
            return None
    try:
        return _Claim(**json.loads(content))
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is not the lock of a zcpipe run; move it away") from error


def _modified(entry: dict[str, object]) -> datetime:
    """Return when an object was written, which each client gives another name."""
    found = entry.get("LastModified") or entry.get("updated")
    return found if isinstance(found, datetime) else datetime.fromisoformat(str(found))


def _machine() -> str:
    """Name this boot of this machine and its numbering of processes, nothing where the system does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        return hashlib.blake2b(f"{boot}{Path('/proc/self/ns/pid').readlink()}".encode(), digest_size=8).hexdigest()
    except OSError:
        return ""


def _has_ended(claim: _Claim) -> bool:
    """Whether a process is known to have ended: only where its number can be looked up here."""
    if not claim.machine or claim.machine != _machine():
        return False
    try:
        os.kill(claim.process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
