"""Amounts of memory: as they are written, and what workers may hold."""

from __future__ import annotations

import os

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
