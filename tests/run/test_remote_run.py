"""Runs into an object store: the rows of a local table, whatever is killed, and every command on them."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import time
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pytest
from small_runs import content
from typer.testing import CliRunner

from zcpipe.cli import app
from zcpipe.errors import DataError
from zcpipe.run import RunSpec, Sample, describe, run
from zcpipe.table import open_table, status
from zcpipe.table.files import names
from zcpipe.table.place import locate
from zcpipe.table.store import read_columns, shard_paths

FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["zcpipe.run"])


def spec(**fields: object) -> RunSpec:
    plain = {"space": "hazards", "dataset": "tiny", "proxies": ("expressivity", "trainability"), "batch_size": 4}
    return RunSpec.model_validate({**plain, "classes_per_shard": 4, **fields})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    out = tmp_path_factory.mktemp("undisturbed") / "table"
    run(spec(), out)
    return content(out)


def launch(out: str, workers: int | None, ready: Path, environment: Mapping[str, str]) -> None:
    os.environ.update(environment)
    run(spec(), out, workers=workers, on_event=lambda event: ready.touch())


@pytest.mark.parametrize(("workers", "kills"), [(None, 4), (1, 1)])
def test_killed_at_random_moments_and_relaunched(
    workers: int | None, kills: int, bucket: str, tmp_path: Path, undisturbed: pa.Table
) -> None:
    out, moments = f"{bucket}/runs/table", random.Random(20)
    environment = {**os.environ, "HAZARD_ELSE": "nap"}
    for attempt in range(kills):
        ready = tmp_path / f"ready-{attempt}"
        process = FORK.Process(target=launch, args=(out, workers, ready, environment))
        process.start()
        while not ready.exists() and process.is_alive():
            time.sleep(0.005)
        time.sleep(moments.uniform(0.0, 0.5) if workers is None else moments.uniform(2.0, 5.0))
        process.kill()
        process.join()
        sizes = [len(read_columns(path, ["index"])) for path in shard_paths(locate(out))]
        assert set(sizes) <= {8}, "a killed run leaves whole shards only"
    assert run(spec(), out).by_status == {"ok": 24}
    assert content(out).equals(undisturbed)
    assert not names(locate(f"{out}.lock"))


def test_a_second_run_is_refused_while_one_goes_on(bucket: str) -> None:
    out, refused = f"{bucket}/table", list[str]()

    def second(event: object) -> None:
        if not refused:
            with pytest.raises(DataError, match=rf"another zcpipe run \(process {os.getpid()} on ") as caught:
                run(spec(), out)
            refused.append(str(caught.value))

    assert run(spec(), out, on_event=second).new == 24
    assert refused
    assert run(spec(), out).new == 0


def test_growth_and_columns_that_join(bucket: str, tmp_path: Path) -> None:
    for out in (f"{bucket}/t", tmp_path / "t"):
        run(spec(selection=Sample(n=5)), out)
        run(spec(proxies=("progressivity",), selection=Sample(n=9)), out)
        assert run(spec(selection=Sample(n=9)), out).new == 4
        assert status(out).complete and describe(spec(), out)["done"] == 9
    assert content(f"{bucket}/t").equals(content(tmp_path / "t"))


def test_every_command_takes_a_uri(bucket: str, tmp_path: Path) -> None:
    def zcpipe(*words: str) -> str:
        result = CliRunner().invoke(app, words, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    options = ["--space", "hazards", "--batch-size", "4", "--device", "cpu", "-q"]
    found = json.loads(zcpipe("run", *options, "--out", f"{bucket}/t", "--json"))
    assert (found["path"], found["new"]) == (f"{bucket}/t", 24)
    assert json.loads(zcpipe("run", *options, "--out", f"{bucket}/t", "--dry-run", "--json"))["done"] == 24
    assert json.loads(zcpipe("status", f"{bucket}/t", "--json"))["rows"] == 24
    run(spec(proxies=tuple(open_table(f"{bucket}/t").spec["proxies"])), tmp_path / "t")
    pa.parquet.write_table(open_table(tmp_path / "t").to_arrow(["arch", "macs"]), tmp_path / "truth.parquet")
    truth = ["--truth", str(tmp_path / "truth.parquet"), "--target", "macs"]
    for words in (["rank"], ["correlate", *truth]):
        assert zcpipe(*words, f"{bucket}/t") == zcpipe(*words, str(tmp_path / "t"))
