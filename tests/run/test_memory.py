"""Amounts of memory: as they are written, and what workers may hold."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import psutil
import pytest

from zcpipe.errors import UsageError
from zcpipe.run.memory import format_bytes, parse_bytes, resident, share, total


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("4GiB", 4 << 30),
        ("4g", 4 << 30),
        ("512 MB", 512 << 20),
        ("1.5GiB", 3 << 29),
        ("800000", 800_000),
        ("7KB", 7168),
    ],
)
def test_amounts_are_read_as_people_write_them(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "4 apples", "0", "0.1B", "1e9", "4GiBx", "٤GiB"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no amount of memory; write it like 4GiB"):
        parse_bytes(text)


def test_amounts_are_written_for_people() -> None:
    assert [format_bytes(n) for n in (12, 2048, 3 << 20, 1500 << 20)] == ["12 B", "2 KiB", "3 MiB", "1.46 GiB"]


def test_workers_share_what_there_is() -> None:
    assert 0 < 2 * share(2) <= total()
    assert resident(os.getpid()) > 10 << 20 and resident(2**22 + 1) == 0


NONE = "9223372036854771712"  # what version 1 says where there is no limit
OTHERS = "tmpfs rw", "proc proc rw", "ext4 /dev/sda1 rw,errors=remount-ro"


def mount(place: Path, what: str, root: str = "/") -> str:
    return f"35 31 0:32 {root} {place} rw,relatime shared:9 - {what}"


@pytest.mark.parametrize(
    ("groups", "root", "limits", "found"),
    [
        ("0::/a/b", "/", {"2/a/b": "max", "2/a": "300 MiB", "2": "max"}, 300),
        ("0::/a/b", "/", {"2/a/b": "200 MiB", "2/a": "300 MiB"}, 200),
        ("0::/", "/", {"2": "200 MiB", "2/a": "100 MiB"}, 200),
        ("9:pids:/p\n4:memory:/a/b\n0::/", "/", {"1/a/b": NONE, "1/a": "300 MiB", "1": NONE, "1/p": "100 MiB"}, 300),
        ("4:cpu,memory:/a/b\n0::/c", "/", {"1/a/b": "200 MiB", "1/a": "300 MiB", "2/c": "100 MiB"}, 100),
        ("4:memory:/docker/1f", "/docker/1f", {"1": "300 MiB"}, 300),  # a container in the names of its host
        ("4:memory:/docker/1f", "/elsewhere", {"1": "300 MiB", "1/docker/1f": "100 MiB"}, 300),
        ("4:memory:/a\n0::/a", "/", {"1/a": NONE, "2/a": "max"}, None),
        ("1:name=systemd:/a", "/", {"1/a": "100 MiB", "2/a": "100 MiB"}, None),
    ],
)
def test_a_container_has_what_its_control_groups_leave_it(
    groups: str, root: str, limits: dict[str, str], found: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = [
        *(mount(Path("/else", str(number)), what) for number, what in enumerate(OTHERS)),
        mount(tmp_path / "pids", "cgroup none rw,pids"),
        mount(tmp_path / "1", "cgroup cgroup rw,cpu,memory", root),
        mount(tmp_path / "2", "cgroup2 cgroup2 rw,nsdelegate"),
    ]
    for group, limit in limits.items():
        (tmp_path / group).mkdir(parents=True, exist_ok=True)
        file = tmp_path / group / {"1": "memory.limit_in_bytes", "2": "memory.max"}[group[0]]
        file.write_text(f"{int(limit[:3]) << 20 if limit.endswith('MiB') else limit}\n")
    (tmp_path / "cgroup").write_text(f"{groups}\n")
    (tmp_path / "mountinfo").write_text("\n".join(mounts) + "\n")
    monkeypatch.setattr("zcpipe.run.memory._PROCESS", tmp_path)
    assert total() == (psutil.virtual_memory().total if found is None else found << 20)


def test_where_there_are_no_control_groups_all_memory_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zcpipe.run.memory._PROCESS", tmp_path)
    assert total() == psutil.virtual_memory().total


def test_that_the_system_gives_no_further_file_is_no_fault_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(psutil, "Process", refuse)
    assert resident(os.getpid()) == 0
