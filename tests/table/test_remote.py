"""Tables in an object store: the promises of the directory hold there, and what is wrong with the store is named."""

from __future__ import annotations

import io
import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from zcpipe.errors import CapabilityError, DataError, IdentityMismatch, UsageError
from zcpipe.scoring.columns import Column
from zcpipe.table import lock, open_table, status
from zcpipe.table.files import ExistsError, names, publish
from zcpipe.table.groups import Group, next_group, writing
from zcpipe.table.place import locate
from zcpipe.table.schema import Header, encode, to_arrow
from zcpipe.table.store import Store, find_header, locked, read_columns, scan, shard_paths

BUILD = {"native": True, "cpu": "AVX2"}
FORK = multiprocessing.get_context("forkserver")


def header(name: str = "a", seed: int = 0) -> Header:
    columns = (
        Column(name, "proxy", "", "higher", "function", "", ()),
        Column("n", "count", "", "none", "full", "", ()),
    )
    return Header(columns, {"proxies": [name]}, {"space": "s", "recipe": {"repeats": 1}, "seed": seed})


def row(index: int, **values: object) -> dict[str, object]:
    plain = {"index": index, "arch": f"arch-{index}", "key": "k", "space": "s", "n": index, "seconds": 0.1}
    return {**plain, "status": "ok", "failures": [], **values}


def commit(store: Store, shard: int, rows: Sequence[Mapping[str, object]], build: Mapping[str, object]) -> None:
    store.commit(shard, to_arrow(rows, store.header.schema), [build])


def make(uri: str, *shards: list[dict[str, object]]) -> None:
    with locked(locate(uri), header()) as store:
        for number, rows in enumerate(shards):
            commit(store, number, rows, BUILD)


def objects(bucket: str) -> dict[str, bytes]:
    store, name = locate(f"{bucket}/x").fs, bucket.removeprefix("s3://")
    return {path.removeprefix(name): store.cat_file(path) for path in store.find(name)}


# -- naming


@pytest.mark.parametrize("uri", ["memory://a/b", "file:///tmp/a", "hf://a/b", "S3://a/b"])
def test_other_schemes_are_refused(uri: str) -> None:
    for use in (open_table, status):
        with pytest.raises(
            UsageError, match=r"is on no supported storage; give a local path, s3://BUCKET/PREFIX or gs:"
        ):
            use(uri)


@pytest.mark.parametrize("uri", ["s3://a", "s3://a/", "s3:///a", "s3://", "gs://a", "s3://a/b//c"])
def test_a_table_is_a_prefix_in_a_bucket(uri: str) -> None:
    with pytest.raises(UsageError, match="does not name a prefix in a bucket"):
        locate(uri)


def test_a_uri_that_went_through_pathlib_is_not_a_local_directory() -> None:
    with pytest.raises(UsageError, match=r"pathlib spoils URIs \(s3:/a/b\); give s3://BUCKET/PREFIX as text"):
        open_table(Path("s3://a/b"))
    assert locate(Path("a/s3:/b")) == Path("a/s3:/b") == locate("a/s3:/b")


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zcpipe.table.place.find_spec", lambda name: None)
    for uri, mend in (("s3://a/b", r"s3fs; .*'zcpipe\[s3\]'"), ("gs://a/b", r"gcsfs; .*'zcpipe\[gcs\]'")):
        with pytest.raises(CapabilityError, match=mend):
            open_table(uri)


# -- the promises of the directory


def test_rows_come_back(bucket: str) -> None:
    uri = f"{bucket}/deep/t"
    make(uri, [row(4, a=4.0), row(1, a=-np.inf)], [row(2)])
    table = open_table(uri)
    assert table.to_arrow(["index", "a"]).to_pylist() == [
        {"index": 1, "a": -np.inf},
        {"index": 2, "a": None},
        {"index": 4, "a": 4.0},
    ]
    assert table.lookup(["arch-4"], ["n"])["n"].to_pylist() == [4]
    assert (status(uri).rows, status(uri).shards, status(f"{uri}/").path) == (3, 2, uri)
    assert all(name.endswith(".parquet") for name in names(locate(uri))), "any reader takes the prefix itself"
    pandas = pytest.importorskip("pandas")
    assert sorted(pandas.read_parquet(uri, storage_options={"anon": False})["index"]) == [1, 2, 4]


def test_the_files_are_those_of_a_local_table(bucket: str, tmp_path: Path) -> None:
    shards = [[row(i, a=i / 7) for i in range(k, k + 9)] for k in (0, 9)]
    make(f"{bucket}/t", *shards)
    make(str(tmp_path / "t"), *shards)
    local = {f"/t/{path.name}": path.read_bytes() for path in (tmp_path / "t").iterdir()}
    assert objects(bucket) == local


def test_committing_twice_changes_nothing(bucket: str) -> None:
    uri = f"{bucket}/t"
    make(uri, [row(1, a=1.0)])
    before = objects(bucket)
    make(uri, [row(1, a=1.0, seconds=9.0)])
    assert objects(bucket) == before


def test_what_was_committed_meanwhile_is_seen(bucket: str) -> None:
    uri = f"{bucket}/t"
    assert find_header(locate(uri)) is None
    for count in range(1, 4):
        make(uri, *([row(i)] for i in range(count)))
        assert len(open_table(uri)) == count == len(scan(locate(uri), header()).index)


def test_columns_join_beside_the_table(bucket: str) -> None:
    uri = f"{bucket}/t"
    make(uri, [row(1, a=1.0), row(2, a=2.0)])
    with locked(locate(uri), header()) as store:
        place = next_group(store.directory)
        assert str(place) == f"{bucket}/t.columns/0001"
        with writing(store, Group(place, header("b"))) as own:
            commit(own, 0, [row(1, b=3.0)], BUILD)
    assert open_table(uri).to_arrow(["a", "b"]).to_pylist() == [{"a": 1.0, "b": 3.0}, {"a": 2.0, "b": None}]
    assert [group.path for group in status(uri).groups] == [uri, f"{uri}.columns/0001"]
    assert {name.split("/")[1] for name in objects(bucket)} == {"t", "t.columns"}, "locks are gone"


def test_other_identities_and_foreign_things_are_refused(bucket: str) -> None:
    make(f"{bucket}/t", [row(1)])
    before = objects(bucket)
    with (
        pytest.raises(IdentityMismatch, match="seed is 0 there and 3 here"),
        locked(locate(f"{bucket}/t"), header(seed=3)),
    ):
        pass
    with pytest.raises(DataError, match=r"is not empty and not a zcpipe table \(it holds t\)"):
        find_header(locate(f"{bucket}/t").parent)
    with pytest.raises(DataError, match=r"holds no zcpipe table; make it with zcpipe run --out s3://.*/absent"):
        open_table(f"{bucket}/absent")
    assert objects(bucket) == before


def test_damage_is_named(bucket: str) -> None:
    make(f"{bucket}/t", [row(i, a=i / 7) for i in range(99)])
    (name,) = (name for name in objects(bucket) if "shard" in name)
    place = locate(bucket + name)
    content = place.fs.cat_file(place.path)
    for broken in (b"", content[:10], content[:-9], content[:-1], content[: len(content) // 2]):
        publish(place, broken)
        with pytest.raises(DataError, match=r"shard-.*is truncated or damaged .*delete it and relaunch"):
            open_table(f"{bucket}/t")
    flipped = bytearray(content)
    chunk = pq.read_metadata(io.BytesIO(content)).row_group(0).column(4)
    flipped[chunk.data_page_offset + chunk.total_compressed_size - 3] ^= 1
    publish(place, bytes(flipped))
    with pytest.raises(DataError, match="is truncated or damaged"):
        open_table(f"{bucket}/t").to_arrow()


@pytest.mark.parametrize("rows", [9_000, 60_000])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_an_object_that_is_replaced_while_it_is_read_is_not_damaged(
    bucket: str, at: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by --retry-errors: after its size was asked for, or between two requests for parts of it."""
    make(f"{bucket}/t", [row(i, a=i / 7) for i in range(40_000)])
    (file,) = shard_paths(locate(f"{bucket}/t"))
    new = encode(to_arrow([row(i, a=i / 9) for i in range(rows)], header().file_schema(build=BUILD)))
    fetch, asked = file.fs.cat_file, []

    def replaced(*args: object, **options: object) -> bytes:
        asked.append(options)
        if len(asked) == at:
            publish(file, new)
        return fetch(*args, **options)

    monkeypatch.setattr(file.fs, "cat_file", replaced)
    assert read_columns(file, ["index", "a"])["a"].to_pylist() == [i / 9 for i in range(rows)]


def test_an_object_that_is_replaced_all_the_time_is_named(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make(f"{bucket}/t", [row(i) for i in range(9)])
    (file,) = shard_paths(locate(f"{bucket}/t"))
    fetch, rows = file.fs.cat_file, itertools.cycle([9, 9_000])

    def replaced(*args: object, **options: object) -> bytes:
        content = to_arrow([row(i) for i in range(next(rows))], header().file_schema(build=BUILD))
        publish(file, encode(content))
        return fetch(*args, **options)

    monkeypatch.setattr(file.fs, "cat_file", replaced)
    with pytest.raises(DataError, match=r"shard-.* was replaced while it was read, 3 times; try again"):
        read_columns(file, ["index", "a"])


def test_a_new_file_replaces_none(bucket: str) -> None:
    place = locate(f"{bucket}/file")
    won = []

    def race(number: int) -> None:
        try:
            publish(place, f"{number}".encode(), exclusive=True)
        except ExistsError as error:
            assert "exists already and is not overwritten" in str(error)
        else:
            won.append(number)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [f"{number}".encode() for number in won] == [place.fs.cat_file(place.path)]


# -- the lock


def test_a_second_supervisor_is_refused_by_name(bucket: str) -> None:
    place = locate(f"{bucket}/t")
    with locked(place, header()) as store:
        commit(store, 0, [row(1)], BUILD)
        with (
            pytest.raises(DataError, match=rf"another zcpipe run \(process {os.getpid()} on .*relaunch in 1[12]\d s"),
            locked(place, header()),
        ):
            pass
        assert len(names(locate(f"{bucket}/t.lock"))) == 1, "who is refused leaves nothing"
        assert status(str(place)).rows == 1
        with locked(locate(f"{bucket}/other"), header()):
            pass
    make(str(place), [row(2)])
    assert not names(locate(f"{bucket}/t.lock"))


def leave_lock(uri: str, **changed: object) -> None:
    """Leave the announcement of a holder that died, on another machine."""
    dead = {"token": "dead", "host": "elsewhere", "machine": "", "process": 7, "since": "yesterday", "holds": True}
    publish(locate(f"{uri}.lock/dead.json"), json.dumps({**dead, **changed}).encode())


def test_who_is_silent_for_long_is_dead(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_lock(f"{bucket}/t")
    with pytest.raises(DataError, match=r"process 7 on elsewhere, since yesterday\).* relaunch in 1[12]\d s"):
        make(f"{bucket}/t")
    monkeypatch.setattr(lock, "STALE", 0.0)
    with locked(locate(f"{bucket}/t"), header()):
        assert len(names(locate(f"{bucket}/t.lock"))) == 1
    assert not names(locate(f"{bucket}/t.lock"))


def test_who_has_ended_on_this_machine_is_dead_at_once(bucket: str) -> None:
    if not lock._machine():
        pytest.skip("this system does not say whose process numbers are whose")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    leave_lock(f"{bucket}/t", machine=lock._machine(), process=ended.pid)
    make(f"{bucket}/t", [row(1)])
    leave_lock(f"{bucket}/t", machine=lock._machine(), process=os.getpid())
    with pytest.raises(DataError, match=rf"process {os.getpid()} on elsewhere"):
        make(f"{bucket}/t")


def test_a_holder_is_heard_of(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "RENEWAL", 0.2)
    with locked(locate(f"{bucket}/t"), header()):
        (first,) = lock.listing(locate(f"{bucket}/t.lock")).values()
        wait_for(
            lambda: lock.listing(locate(f"{bucket}/t.lock"))[first["name"]]["LastModified"] > first["LastModified"]
        )


def test_a_holder_that_was_taken_over_writes_nothing_more(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "RENEWAL", 0.05)
    with locked(locate(f"{bucket}/t"), header()) as store:
        own = locate(f"{bucket}/t.lock")

        def take_over() -> None:
            """Again and again: an announcement that is under way meanwhile is written after it."""
            with suppress(FileNotFoundError):
                own.fs.rm(own.path, recursive=True)
            time.sleep(0.05)

        with pytest.raises(DataError, match=r"lost the lock of s3://.*: another run took it over; relaunch"):
            wait_for(lambda: store.note_run(), take_over)
        with pytest.raises(DataError, match="lost the lock"):
            commit(store, 0, [row(1)], BUILD)
    assert len(open_table(f"{bucket}/t")) == 0 and not names(own)


def test_a_holder_that_cannot_renew_regards_the_lock_as_lost(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with locked(locate(f"{bucket}/t"), header()) as store:
        monkeypatch.setattr(lock, "STALE", 0.0)
        with pytest.raises(DataError, match="could not be renewed in time; relaunch"):
            commit(store, 0, [row(1)], BUILD)


@pytest.fixture
def sleep(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Put the machine to sleep: the clock that goes on meanwhile is ahead afterwards, the monotonic one is not."""
    if not hasattr(time, "CLOCK_BOOTTIME"):
        pytest.skip("this system has no clock of this name")
    tell, slept = time.clock_gettime, list[float]()
    monkeypatch.setattr(time, "clock_gettime", lambda clock: tell(clock) + sum(slept) * (clock == time.CLOCK_BOOTTIME))
    return slept.append


def test_a_holder_whose_machine_slept_regards_the_lock_as_lost(bucket: str, sleep: Callable[[float], None]) -> None:
    with locked(locate(f"{bucket}/t"), header()) as store:
        sleep(60)
        commit(store, 0, [row(1)], BUILD)
        sleep(60)
        with pytest.raises(DataError, match="could not be renewed in time; relaunch"):
            commit(store, 1, [row(2)], BUILD)
    assert len(open_table(f"{bucket}/t")) == 1


def test_a_machine_that_sleeps_in_the_middle_of_a_renewal(
    bucket: str, sleep: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After it saw that nobody took the lock over, and before it announces itself."""
    renewed = threading.Event()

    monkeypatch.setattr(lock, "RENEWAL", 0.5)
    with locked(locate(f"{bucket}/t"), header()) as store:
        monkeypatch.setattr(lock, "exists", lambda path: sleep(300) or True)
        monkeypatch.setattr(lock, "publish", lambda *args: publish(*args) or renewed.set())
        assert renewed.wait(60)
        with pytest.raises(DataError, match="could not be renewed in time; relaunch"):
            commit(store, 0, [row(1)], BUILD)


def test_a_machine_that_sleeps_while_it_takes_the_lock(
    bucket: str, sleep: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    make(f"{bucket}/t", [row(1)])
    look = lock.listing
    monkeypatch.setattr(lock, "listing", lambda path: [look(path), sleep(300)][0])
    with (
        pytest.raises(DataError, match="could not be renewed in time; relaunch"),
        locked(locate(f"{bucket}/t"), header()) as store,
    ):
        commit(store, 1, [row(2)], BUILD)
    assert len(open_table(f"{bucket}/t")) == 1


def test_clocks_need_not_agree() -> None:
    claim, now = lock._Claim("t", "h", "", 1, "s"), datetime(2001, 1, 1, tzinfo=UTC)
    assert not lock._Seen(locate("x"), claim, now).lives(now + timedelta(seconds=lock.STALE))
    assert lock._Seen(locate("x"), claim, now).lives(now + timedelta(seconds=lock.STALE - 1))
    assert lock._Seen(locate("x"), claim, now).lives(now - timedelta(days=1)), "written after the look began"


def wait_for(condition: Callable[[], object], pause: Callable[[], None] = lambda: time.sleep(0.1)) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "nothing happened for a minute"
        pause()


def supervise(uri: str, number: int, start: object, seen: object, rounds: int) -> None:
    for attempt in range(rounds):
        marker = Path(os.environ["MARKS"]) / f"{attempt}"
        start.wait()
        try:
            with locked(locate(f"{uri}/t{attempt}"), header()) as store:
                marker.touch(exist_ok=False)  # no two are here at once
                commit(store, number, [row(1), row(2)], BUILD) if not scan(
                    store.directory, header()
                ).index.size else None
                marker.unlink()
            seen.put("held")
        except DataError as error:
            seen.put(str(error))
        except BaseException as error:
            seen.put(repr(error))


def test_of_several_supervisors_no_two_hold_the_lock(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARKS", str(tmp_path))
    rounds, count = 5, 3
    start, seen = FORK.Barrier(count), FORK.Queue()
    processes = [
        FORK.Process(target=with_environment, args=(dict(os.environ), supervise, bucket, i, start, seen, rounds))
        for i in range(count)
    ]
    for process in processes:
        process.start()
    answers = [seen.get(timeout=120) for _ in range(rounds * count)]
    for process in processes:
        process.join()
    assert all(answer == "held" or "is being written by another zcpipe run" in answer for answer in answers), answers
    assert answers.count("held") >= rounds
    for attempt in range(rounds):
        assert open_table(f"{bucket}/t{attempt}").to_arrow()["index"].to_pylist() == [1, 2]


def with_environment(environment: dict[str, str], function: Callable[..., None], *args: object) -> None:
    """Call a function in a child of the fork server, whose environment may be of before."""
    os.environ.update(environment)
    function(*args)


# -- stores that do not answer


def test_stores_that_refuse_are_named_with_the_mend(endpoint: str, s3: Callable[..., None]) -> None:
    known = {"ENDPOINT_URL": endpoint, "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "DEFAULT_REGION": "us-east-1"}
    s3(**known)
    for use in (open_table, make):
        with pytest.raises(DataError, match=r"cannot use s3://no-such/t: there is no bucket no-such; create it"):
            use("s3://no-such/t")
        with pytest.raises(DataError, match=r"cannot use s3://No!/t: .*; correct the name of the bucket"):
            use("s3://No!/t")
    for changed, message in (
        (
            {"ENDPOINT_URL": "http://127.0.0.1:9"},
            r"could not connect to the endpoint.*; check the network, the endpoint",
        ),
        ({"ENDPOINT_URL": "nowhere"}, r"invalid endpoint: nowhere; correct .* the settings"),
        ({"PROFILE": "absent"}, r"profile \(absent\) could not be found; correct .* the settings"),
    ):
        s3(**{**known, **changed})
        with pytest.raises(DataError, match=message) as caught:
            make("s3://bucket/t")
        assert "\n" not in str(caught.value)
    s3(ENDPOINT_URL=endpoint, SHARED_CREDENTIALS_FILE=os.devnull)
    with pytest.raises(DataError, match=r"unable to locate credentials; set credentials that may list, read"):
        make("s3://bucket/t")


def test_a_store_that_goes_away_is_not_damage(bucket: str, s3: Callable[..., None]) -> None:
    make(f"{bucket}/t", [row(1)])
    table = open_table(f"{bucket}/t")
    files = [path for path in table._parts[0]._files]
    for path in files:
        path.fs.rm_file(path.path)
    with pytest.raises(DataError, match="has disappeared; open the table again"):
        table.to_arrow()
    for path in files:
        path.fs.cat_file = lambda *args, **options: (_ for _ in ()).throw(OSError("gone"))
        path.fs.info = lambda *args, **options: {"size": 99, "type": "file"}
    with pytest.raises(DataError, match=r"cannot read s3://.*: gone; check the network"):
        table.to_arrow()
