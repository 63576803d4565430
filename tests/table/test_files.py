"""Publishing files: whole or not at all, and where asked for never over another one."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest

from zcpipe.errors import DataError
from zcpipe.table.files import TEMPORARY, ExistsError, publish, read_parquet

FORK = multiprocessing.get_context("forkserver")


def race(path: Path, number: int, start: object, won: object) -> None:
    start.wait()
    try:
        publish(path, f"{number}".encode() * 10_000, exclusive=True)
    except ExistsError:
        return
    won.put(number)


def test_of_several_processes_exactly_one_makes_a_new_file(tmp_path: Path) -> None:
    for attempt in range(5):
        path, start, won = tmp_path / f"file-{attempt}", FORK.Barrier(4), FORK.Queue()
        processes = [FORK.Process(target=race, args=(path, number, start, won)) for number in range(4)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert path.read_bytes() == f"{won.get(timeout=10)}".encode() * 10_000
        assert won.empty()
    assert not list(tmp_path.glob(f"{TEMPORARY}*"))


def test_what_is_there_is_replaced_only_where_that_is_meant(tmp_path: Path) -> None:
    file = tmp_path / "file"
    publish(file, b"first", exclusive=True)
    with pytest.raises(DataError, match=r"file exists already and is not overwritten; give another name"):
        publish(file, b"second", exclusive=True)
    assert file.read_bytes() == b"first"
    publish(file, b"third")
    assert file.read_bytes() == b"third" and [file] == list(tmp_path.iterdir())


def test_a_leftover_that_the_winner_removed_means_the_race_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, file = os.link, tmp_path / "file"

    def won_by_another(source: Path, target: Path, **options: object) -> None:
        Path(source).unlink()
        if winner:
            file.write_bytes(b"theirs")
        link(source, target, **options)

    monkeypatch.setattr(os, "link", won_by_another)
    winner = False
    with pytest.raises(DataError, match=r"cannot write .*no such file"):
        publish(file, b"ours", exclusive=True)
    winner = True
    with pytest.raises(ExistsError):
        publish(file, b"ours", exclusive=True)
    assert file.read_bytes() == b"theirs"


def test_a_pipe_is_no_part_of_a_table(tmp_path: Path) -> None:
    """To open one is to wait for who may never write to it."""
    os.mkfifo(tmp_path / "shard.parquet")
    with pytest.raises(
        DataError, match=r"shard\.parquet is truncated or damaged \(it is a directory, pipe or device\)"
    ):
        read_parquet(tmp_path / "shard.parquet", lambda file: file.metadata)
