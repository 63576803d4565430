"""Nothing new is written inside a table, whose readers would take it for its rows."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from zcpipe.errors import DataError
from zcpipe.run import RunSpec, describe, run
from zcpipe.run.log import log_events
from zcpipe.run.spec import Range
from zcpipe.search.journal import opened
from zcpipe.table import compact
from zcpipe.table.new import require_outside
from zcpipe.truth.reader import Reader


def spec(*proxies: str) -> RunSpec:
    return RunSpec(
        space="nasbench201", dataset="cifar10", proxies=proxies, batch_size=2, selection=Range(start=0, stop=2)
    )


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table with columns that joined it."""
    out = tmp_path_factory.mktemp("home") / "t"
    for name in ("params", "expressivity"):
        run(spec(name), out)
    return out


def search(place: Path) -> None:
    with opened(place, {}):
        pass


def log(place: Path) -> None:
    with log_events(place):
        pass


def import_truth(place: Path) -> None:
    Reader("mine", "Mine", lambda *_: pa.table({"arch": ["a"]})).import_file("unread", place)


WRITERS: dict[str, Callable[[Path, Path], object]] = {
    "run": lambda place, table: run(spec("params"), place),
    "dry run": lambda place, table: describe(spec("params"), place),
    "compact": lambda place, table: compact(table, place),
    "search": lambda place, table: search(place),
    "truth": lambda place, table: import_truth(place),
    "events": lambda place, table: log(place),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("inside", ["t/new", "t.columns/new", "t.columns/0001/new", "link/new", "t/../t/new"])
def test_a_place_in_a_table_is_refused_and_left_as_it_is(
    table: Path, write: Callable[[Path, Path], object], inside: str
) -> None:
    link = table.with_name("link")
    if not link.exists():
        link.symlink_to(table)
    before = sorted(table.parent.rglob("*"))
    with pytest.raises(DataError, match=rf"new lies in the table {table}(\.columns/0001)?, .* choose another place"):
        write(table.parent / inside, table)
    assert sorted(table.parent.rglob("*")) == before


def test_places_beside_a_table_are_as_good_as_any(table: Path, tmp_path: Path) -> None:
    (tmp_path / "plain.columns").mkdir()
    for place in (table.with_name("u"), table.with_name("t.columns"), tmp_path / "plain.columns" / "u", Path("u")):
        require_outside(place)


def test_what_may_not_be_looked_at_is_no_reason_to_refuse(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else")
    hidden, own = tmp_path / "hidden", tmp_path / "hidden.columns" / "own"
    hidden.mkdir(mode=0o700)
    own.mkdir(parents=True)
    pid = os.fork()
    if pid == 0:
        os.setuid(65534)
        os.chdir("/")
        try:
            require_outside(own / "new")
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
