"""A new table that appears whole or not at all, with its groups of columns.

On a disk it is written beside its place and renamed. A store cannot rename a prefix: there its objects are written in
place, its header last, without which it is no table, and whoever fails removes what it wrote.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zcpipe.table.files import TEMPORARY, disk_errors, sync_directory
from zcpipe.table.groups import companion
from zcpipe.table.lock import announced
from zcpipe.table.new import require_nothing

if TYPE_CHECKING:
    from upath import UPath

    from zcpipe.table.place import Place

NO_SPACE = "free some space, or choose another --out, and give the same command again"


@dataclass(frozen=True)
class Draft:
    """Where the parts of a new table are written until it appears.

    Attributes:
        table: the table, with its groups beside it.
        scratch: a local directory for anything else.
        check: raises where the table may be another's by now.
    """

    table: Place
    scratch: Path
    check: Callable[[], None]


@contextmanager
def draft(out: Place) -> Iterator[Draft]:
    """Let a new table be written. It appears when the block ends; where the block raises nothing remains.

    Raises:
        DataError: there is something already, the place is in a table, or it cannot be written.
    """
    if isinstance(out, Path):
        with _on_disk(out) as new:
            yield new
    else:
        with _in_store(out) as new:
            yield new


@contextmanager
def _on_disk(out: Path) -> Iterator[Draft]:
    require_nothing(out)
    final = out.resolve()
    absent = [path for path in final.parents if not path.exists()]
    with disk_errors("create", out):
        final.parent.mkdir(parents=True, exist_ok=True)
    try:
        with disk_errors("create", out):
            staging = Path(tempfile.mkdtemp(prefix=TEMPORARY, suffix=".part", dir=final.parent))
        try:
            table, scratch = staging / "table", staging / "scratch"
            with disk_errors("create", out, NO_SPACE):
                for directory in (table, scratch):
                    directory.mkdir()
            yield Draft(table, scratch, lambda: None)
            _appear(table, final)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except BaseException:
        for path in absent:
            with suppress(OSError):  # somebody else put something there meanwhile
                path.rmdir()
        raise


def _appear(table: Path, final: Path) -> None:
    """Rename a table and its groups; a rename replaces an empty directory and no other."""
    columns, beside = (Path(f"{companion(place)}") for place in (table, final))
    with disk_errors("write", final, "something is there by now; choose another --out"):
        joined = columns.exists()
        if joined:
            columns.rename(beside)
        try:
            table.rename(final)
        except OSError:
            if joined:
                shutil.rmtree(beside)
            raise
        sync_directory(final.parent)


@contextmanager
def _in_store(out: UPath) -> Iterator[Draft]:
    with announced(out) as check, tempfile.TemporaryDirectory(prefix="zcpipe-") as scratch:
        require_nothing(out)
        try:
            yield Draft(out, Path(scratch), check)
        except BaseException:
            check()  # what is there is ours
            with disk_errors("clean", out):
                for prefix in (f"{out.path}.columns", out.path):
                    for path in out.fs.find(prefix):
                        out.fs.rm_file(path)
            raise
