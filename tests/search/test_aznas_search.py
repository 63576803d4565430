"""AZ-NAS's searches as a whole: the same however they are computed, interrupted and gone on with."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from zcpipe.errors import DataError, IdentityMismatch, UsageError
from zcpipe.rank import aggregate, top
from zcpipe.run import RunSpec
from zcpipe.search.aznas import HISTORY, PICKS, AzNasSpec, aznas_search
from zcpipe.search.costs import FRONT
from zcpipe.search.journal import NAME
from zcpipe.search.scores import TableScores
from zcpipe.spaces import get_space

MACRO = get_space("nasbenchmacro")
COUNTED = ("params", "macs")  # proxies that cost nothing
SCORED = ("expressivity", "trainability", "params")


def spec(proxies=COUNTED, **fields):
    run = RunSpec(space="nasbenchmacro", dataset="cifar10", proxies=proxies, batch_size=2, resolution=8)
    plain = {"run": run, "budget": 40, "batch": 16, "population": 12, "max_macs": 90_000_000}
    return AzNasSpec.model_validate({**plain, **fields})


def content(directory):
    """All that was found, but for the times that it took."""
    return [pq.read_table(directory / name).drop_columns("seconds") for name in (HISTORY, PICKS, FRONT)]


def test_history_pick_and_front(tmp_path):
    found = aznas_search(spec(seeds=2, seed=4), tmp_path / "s", costs=("macs", "params"))
    history, picks, front = (pq.read_table(tmp_path / "s" / name) for name in (HISTORY, PICKS, FRONT))
    assert history["seed"].to_pylist() == [4] * 40 + [5] * 40 and history["number"].to_pylist() == [*range(40)] * 2
    for seed, pick, told in zip((4, 5), picks.to_pylist(), found.picks(), strict=True):
        rows = history.filter(pa.compute.equal(history["seed"], seed))
        archs = rows["arch"].to_pylist()
        sizes = [MACRO.size(MACRO.parse(arch), "cifar10") for arch in archs]
        assert len(set(archs)) == 40 and all(size.macs <= 90_000_000 for size in sizes)
        columns = {name: np.array([getattr(size, name) for size in sizes], np.float64) for name in COUNTED}
        assert all(rows[name].to_pylist() == values.tolist() for name, values in columns.items())
        ways = dict.fromkeys(COUNTED, "higher")
        expected = aggregate("logrank", columns, ways)
        assert rows["aggregate"].to_pylist() == expected.tolist()
        best = int(top(expected, 1)[0])
        assert pick == rows.slice(best, 1).to_pylist()[0]
        assert (told["number"], told["arch"], told["scored"], told["ended"]) == (best, archs[best], 40, "budget")
        on_front = front.filter(pa.compute.equal(front["seed"], seed))["arch"].to_pylist()
        assert on_front[0] == archs[best] and len(on_front) > 1
    assert found.failed == 0


def test_the_same_on_any_number_of_workers(tmp_path):
    small = spec(SCORED, budget=16, batch=8)
    for name, workers in (("here", None), ("one", 1), ("two", 2)):
        aznas_search(small, tmp_path / name, workers)
    assert content(tmp_path / "here") == content(tmp_path / "one") == content(tmp_path / "two")
    assert np.isfinite(pq.read_table(tmp_path / "two" / HISTORY)["expressivity"].to_numpy()).all()


def test_a_larger_budget_and_more_seeds_go_on(tmp_path):
    for budget, seeds in ((21, 1), (21, 2), (40, 2)):
        aznas_search(spec(budget=budget, seeds=seeds), tmp_path / "grown")
    aznas_search(spec(seeds=2), tmp_path / "whole")
    assert content(tmp_path / "grown") == content(tmp_path / "whole")


@pytest.mark.parametrize("workers", [None, 2])
def test_killed_at_random_moments_it_comes_to_the_same_end(workers, tmp_path):
    whole = spec(SCORED, budget=32, batch=4, population=12)
    aznas_search(whole, tmp_path / "undisturbed")
    out, chance, kills = tmp_path / "killed", random.Random(workers), 0
    (tmp_path / "spec.json").write_text(whole.model_dump_json())
    code = (
        "import sys, pathlib; from zcpipe.search.aznas import *; "
        "aznas_search(AzNasSpec.model_validate_json(pathlib.Path(sys.argv[1]).read_text()), sys.argv[2], "
        f"{workers})"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "spec.json"), str(out)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    while True:
        before = recorded(out)
        with subprocess.Popen(command, env=environment, start_new_session=True) as process:
            while kills < 2 and process.poll() is None and recorded(out) < before + chance.randint(1, 3):
                time.sleep(0.005)
            if kills < 2 and process.poll() is None:
                time.sleep(chance.random() * 0.1)
                process.send_signal(signal.SIGKILL)
                kills += 1
        if process.returncode != -signal.SIGKILL:
            break
    assert process.returncode == 0 and kills == 2
    assert content(out) == content(tmp_path / "undisturbed")


def recorded(out: Path) -> int:
    """How many lines the journal has."""
    return (out / NAME).read_bytes().count(b"\n") if (out / NAME).exists() else 0


def test_what_was_torn_off_is_scored_again(tmp_path):
    aznas_search(spec(), tmp_path / "s")
    before = content(tmp_path / "s")
    journal = tmp_path / "s" / NAME
    journal.write_bytes(journal.read_bytes()[:-7])
    aznas_search(spec(), tmp_path / "s")
    assert content(tmp_path / "s") == before


def test_latencies_make_a_front_of_those_that_have_one(tmp_path):
    found = aznas_search(spec())
    archs = found.searches[0].archs
    known = {arch: float(len(archs) - i) for i, arch in enumerate(archs) if i % 2}
    file = tmp_path / "latency.parquet"
    pq.write_table(pa.table({"arch": list(known), "ms": list(known.values())}), file)
    front = aznas_search(spec(), tmp_path / "s", costs=("latency",), latency=(file, "ms")).fronts().to_pylist()
    assert {row["arch"] for row in front} <= known.keys() and len(front) > 1
    assert all(row["latency"] == known[row["arch"]] for row in front)
    descending = [(row["aggregate"], row["latency"]) for row in front]
    assert descending == sorted(descending, reverse=True), "what is worse is faster"
    assert pq.read_table(tmp_path / "s" / HISTORY)["latency"].null_count == 20


def test_seconds_are_those_that_scoring_took(tmp_path):
    found = aznas_search(spec(seconds=1e-9), tmp_path / "s").searches[0]
    assert (len(found.archs), found.ended) == (16, "seconds"), "the batch that has begun ends"
    assert len(aznas_search(spec(), tmp_path / "s").searches[0].archs) == 40


def test_scores_of_a_table_make_its_architectures_the_candidates(tmp_path):
    archs = [arch for arch in MACRO if not str(arch).startswith("2")]
    sizes = [MACRO.size(arch, "cifar10") for arch in archs]
    columns = {name: np.array([getattr(size, name) for size in sizes], np.float64) for name in COUNTED}
    texts = list(map(str, archs))
    table = TableScores(texts, texts, columns, dict.fromkeys(COUNTED, "higher"))
    found = aznas_search(spec(), tmp_path / "s", table=table).searches[0]
    assert len(found.archs) == 40 and set(found.archs) <= set(texts)
    assert {one.values["macs"] <= 90_000_000 for one in found.scored} == {True}
    columns["params"][1:] = np.nan
    with pytest.raises(IdentityMismatch, match="scores is"):
        aznas_search(spec(), tmp_path / "s", table=table)
    assert aznas_search(spec(), table=table).failed >= 39
    with pytest.raises(UsageError, match="a budget of 4,375 candidates is beyond the table, which has 4,374"):
        aznas_search(spec(budget=4375), table=table)
    with pytest.raises(UsageError, match="unknown proxy of the table 'expressivity'"):
        aznas_search(spec(SCORED), table=table)


@pytest.mark.parametrize("name", ["nasbench101", "mbv2", "autoformer/tiny"])
def test_random_sampling_goes_through_the_table_of_a_sample(name):
    space = get_space(name)
    dataset = next(iter(space.datasets))
    archs = [space.sample(7, i) for i in range(30)]
    sizes = [space.size(arch, dataset) for arch in archs]
    columns = {count: np.array([getattr(size, count) for size in sizes], np.float64) for count in COUNTED}
    table = TableScores(list(map(str, archs)), list(map(space.key, archs)), columns, dict.fromkeys(COUNTED, "higher"))
    run = RunSpec(space=name, dataset=dataset, proxies=COUNTED)
    whole, other = (
        aznas_search(AzNasSpec(run=run, budget=30, proposals="random", seed=seed), table=table).searches[0]
        for seed in (0, 1)
    )
    assert sorted(whole.archs) == sorted(map(str, archs)) == sorted(other.archs) and whole.archs != other.archs
    limits = {"max_params": int(np.median(columns["params"]))}
    within = aznas_search(AzNasSpec(run=run, budget=30, proposals="random", **limits), table=table).searches[0]
    assert (len(within.archs), within.ended) == (15, "nothing")
    with pytest.raises(DataError, match=r"none of all 30 architectures of the table has at most 1 parameters"):
        aznas_search(AzNasSpec(run=run, budget=30, proposals="random", max_params=1), table=table)


def test_random_sampling(tmp_path):
    found = aznas_search(spec(proposals="random", min_params=2_000_000, max_macs=None), tmp_path / "s")
    assert all(one.values["params"] >= 2_000_000 for one in found.searches[0].scored)


def test_where_everything_fails_there_is_no_pick(tmp_path, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise ValueError("not today")

    monkeypatch.setattr(type(MACRO), "build", broken)
    found = aznas_search(spec(SCORED, budget=6, batch=4), tmp_path / "s")
    assert found.picks() == [] and found.failed == 6
    history = pq.read_table(tmp_path / "s" / HISTORY)
    assert set(history["status"].to_pylist()) == {"error"} and history["aggregate"].null_count == 6
    assert "not today" in history["reason"].to_pylist()[0] and history["params"].null_count == 0


def test_a_constraint_that_nothing_meets(tmp_path):
    with pytest.raises(DataError, match=r"none of [\d,]+ proposals in nasbenchmacro has at most 1 multiply"):
        aznas_search(spec(max_macs=1), tmp_path / "s")


def test_another_search_is_refused(tmp_path):
    aznas_search(spec(budget=4), tmp_path / "s")
    with pytest.raises(IdentityMismatch, match="batch is 16 there and 8 here; max_macs is 90000000 there and None"):
        aznas_search(spec(batch=8, max_macs=None), tmp_path / "s")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"budget": 0}, "invalid search: budget: input should be greater than or equal to 1, got 0"),
        ({"budget": 6562}, "a budget of 6,562 candidates is beyond nasbenchmacro, which has 6,561"),
        ({"max_layers": 3}, "does not say how many layers"),
        ({"min_params": 9, "max_params": 8}, "min_params is 9, more than max_params"),
        ({"aggregate": "vote"}, "invalid search: aggregate: "),
        ({"population": 1}, "invalid search: population: "),
    ],
)
def test_refuses_specs_that_mean_nothing(fields, message):
    with pytest.raises(UsageError, match=message):
        spec(**fields)


def test_refuses_options_that_mean_nothing(tmp_path):
    with pytest.raises(UsageError, match="unknown cost 'mac'; did you mean macs"):
        aznas_search(spec(), costs=("mac",))
    with pytest.raises(UsageError, match="a front over latency needs a file"):
        aznas_search(spec(), costs=("latency",))
    with pytest.raises(DataError, match="no such file"):
        aznas_search(spec(), costs=("latency",), latency=(tmp_path / "none", "ms"))
    with pytest.raises(UsageError, match="workers must be at least 1"):
        aznas_search(spec(), tmp_path / "s", workers=0)
    assert not (tmp_path / "s").exists()
