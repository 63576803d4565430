"""`zcpipe search`: what a researcher types, and one clear line for what cannot be."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from search_problems import search_command

from zcpipe import open_table
from zcpipe.search.costs import FRONT
from zcpipe.search.journal import NAME
from zcpipe.search.result import ABOUT, CURVES, PICKS


@pytest.fixture
def command(searched, truth):
    """Return a command; options given as ``name=None`` are left out."""

    def make(out, **options):
        given = {
            "space": "nasbench201",
            "algorithm": "evolution",
            "scores": searched,
            "truth": truth,
            "target": "val",
            "budget": 20,
            "out": out,
            **options,
        }
        return search_command(given)

    return make


def files(out):
    return {name: (out / name).read_bytes() for name in (CURVES, PICKS, FRONT)}


def test_search(zcpipe, command, tmp_path):
    out = tmp_path / "out"
    options = {"report": "test", "seeds": 2, "warmup": "30:8", "warmup_by": "aznas", "moves": "synflow"}
    code, said, told = zcpipe(*command(out, **options, json=""))
    assert code == 0
    found = json.loads(said)
    assert {"algorithm", "budget", "seeds", "best_accuracy_mean", "best_accuracy_se", "picks"} <= found.keys()
    assert (found["algorithm"], found["budget"], found["seeds"]) == ("evolution", 20, 2)
    reports = [pick["report"] for pick in found["picks"]]
    assert found["best_accuracy_mean"] == pytest.approx(sum(reports) / 2)
    assert [pick["arch"] for pick in found["picks"]] == pq.read_table(out / PICKS)["arch"].to_pylist()
    assert pq.read_table(out / CURVES)["trained"].to_pylist() == [*range(1, 21)] * 2
    code, said, told = zcpipe(*command(out, **options))
    lines = [line.split("\t") for line in said.splitlines()]
    assert code == 0
    assert lines[0] == ["seed", "found", "trained", "val", "test", "params", "macs", "arch"]
    assert len(lines) == 3
    assert "evolution reaches test" in told
    assert "with 20 trained models, over 2 seeds" in told


def test_the_files_say_which_search_they_are_of(zcpipe, command, tmp_path):
    assert zcpipe(*command(tmp_path / "out", report="test"))[0] == 0
    for name in (CURVES, PICKS, FRONT):
        about = json.loads(pq.read_schema(tmp_path / "out" / name).metadata[ABOUT.encode()])
        assert about == {
            **{"algorithm": "evolution", "budget": 20, "direction": "higher"},
            **{"target": "val", "report": "test"},
        }


def test_what_is_told_is_how_many_models_were_trained(zcpipe, command, tmp_path):
    options = {"seeds": 5, "max_seconds": 4 * 3600, "seconds": "hours"}
    code, _, told = zcpipe(*command(tmp_path / "out", **options))
    assert code == 0
    assert "with 4 trained models, over 5 seeds" in told  # of an hour each


def test_architectures_without_a_latency_are_counted(zcpipe, command, searched, tmp_path):
    archs = open_table(searched).to_arrow(["arch"])["arch"].to_pylist()
    pq.write_table(pa.table({"arch": archs[:30], "ms": np.arange(30.0)}), tmp_path / "ms.parquet")
    options = {"front": "latency", "latency": tmp_path / "ms.parquet", "latency_column": "ms", "json": ""}
    code, _, told = zcpipe(*command(tmp_path / "out", algorithm="random", **options))
    unknown = set(pq.read_table(tmp_path / "out" / CURVES)["arch"].to_pylist()) - set(archs[:30])
    assert (code, told) == (0, f"note: {len(unknown)} trained architectures without a known latency, on no front\n")


def test_one_seed_has_no_standard_error(zcpipe, command, tmp_path):
    code, said, _ = zcpipe(*command(tmp_path / "out", json=""))
    assert (code, json.loads(said)["best_accuracy_se"]) == (0, None)


def test_workers_change_nothing(zcpipe, command, tmp_path):
    for name, workers in (("one", None), ("two", 2)):
        assert zcpipe(*command(tmp_path / name, seeds=3, workers=workers))[0] == 0
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_limits(zcpipe, command, tmp_path):
    code, _, _ = zcpipe(*command(tmp_path / "out", max_params="0.5M", max_macs="80M", budget=3))
    assert code == 0
    sizes = pq.read_table(tmp_path / "out" / PICKS).to_pylist()
    assert all(row["params"] <= 500_000 and row["macs"] <= 80_000_000 for row in sizes)


def test_parameters_of_the_algorithm(zcpipe, command, tmp_path):
    code, _, told = zcpipe(*command(tmp_path / "out", set="tournament=99"))
    assert code == 2
    assert told == "error: a tournament of 99 needs as large a pool, got 64\n"


def test_a_predictors_output_guides(zcpipe, command, searched, tmp_path):
    archs = open_table(searched).to_arrow(["arch"])["arch"]
    predicted = tmp_path / "predicted.parquet"
    pq.write_table(pa.table({"arch": archs, "mean": pa.array(range(len(archs)), pa.float64())}), predicted)
    guided = {"predicted": predicted, "warmup": "64:1", "warmup_by": "parzc", "algorithm": "random", "budget": 1}
    assert zcpipe(*command(tmp_path / "out", **guided))[0] == 0
    assert pq.read_table(tmp_path / "out" / PICKS)["arch"].to_pylist() == [archs[-1].as_py()]


def test_what_was_never_run_is_told_from_failures(zcpipe, command, grown, tmp_path):
    options = {"scores": grown, "algorithm": "random", "warmup_by": "l2_norm"}
    code, _, told = zcpipe(*command(tmp_path / "out", **options, warmup="64:20", json=""))
    mend = "`zcpipe run ... --proxies l2_norm --out DIR` adds it"
    note = f"note: l2_norm was never run on 40 of 64 architectures of the table; {mend}\n"
    assert (code, told) == (0, note)
    for seed in range(9):  # one of these draws two on which it was never run
        code, _, told = zcpipe(*command(tmp_path / "none", **options, warmup="2:1", seed=seed, json=""))
        if code:
            break
        shutil.rmtree(tmp_path / "none")
    said = f"error: l2_norm has no score for any of 2 architectures; l2_norm was never run on 2 of them: {mend}\n"
    assert (code, told) == (4, note + said)


def test_a_search_that_ends_early_says_why(zcpipe, command, tmp_path):
    parameters = {"budget": 30, "algorithm": "reinforce", "set": "learning_rate=5"}  # it decides after a few rewards
    code, said, told = zcpipe(*command(tmp_path / "out", json="", **parameters))
    assert code == 0
    assert json.loads(said)["picks"][0]["ended"] == "repeats"
    assert told == (
        "note: 1 search ended before the budget was spent: it asked only for models that were trained already, 1000 "
        "times in a row\n"
    )


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ({"space": "nasbench202"}, 2, "unknown space 'nasbench202'; did you mean nasbench201"),
        ({"algorithm": "evolve"}, 2, "unknown algorithm 'evolve'; did you mean evolution"),
        ({"warmup": "30"}, 2, "--warmup M:N and --warmup-by PROXY go together"),
        ({"warmup": "30", "warmup_by": "snip"}, 2, "--warmup must be M:N, two numbers, got '30'"),
        ({"warmup": 5000 * "9" + ":3", "warmup_by": "snip"}, 2, "--warmup must be M:N, two numbers, got '999"),
        ({"warmup": "5:30", "warmup_by": "snip"}, 2, "a warm-up keeps some of those that it scores: got 30 of 5"),
        ({"predicted": "p.parquet"}, 2, "nothing asks for parzc, which is what predictions are called; give --warmup"),
        ({"predicted": "p.parquet", "moves": "snip"}, 2, "or --moves parzc, or leave --predicted out"),
        ({"moves": "sniip"}, 2, "unknown proxy or aggregate 'sniip'; did you mean snip"),
        ({"target": "vall"}, 2, "unknown column 'vall'; did you mean val"),
        ({"target": "hole"}, 4, "1 of 64 candidates have no value of 'hole'"),
        ({"truth": "nowhere.parquet"}, 4, "nowhere.parquet: no such file"),
        ({"budget": 0}, 2, "a budget must be at least 1 trained model, got 0"),
        ({"budget": 65}, 2, "a budget of 65 trained models is beyond the candidates"),
        ({"max_params": "1K"}, 4, "none of all 64 architectures of the table has at most 1,000 parameters"),
        ({"max_macs": "many"}, 2, "--max-macs must be a number such as 450M or 1500000, got 'many'"),
        ({"max_seconds": 5}, 2, "--max-seconds needs the column that says how long trainings take, --seconds"),
        ({"front": " "}, 2, "--front must name costs, separated by commas: some of macs, params, latency"),
        ({"front": "macs,macs"}, 2, "a cost is named twice: macs, macs"),
        ({"moves": "vote"}, 2, "vote is made of synflow, jacob_cov, snip, but there are no scores of jacob_cov"),
        ({"workers": 0}, 2, "workers must be at least 1, got 0"),
        ({"seeds": 0}, 2, "seeds must be at least 1, got 0"),
        ({"seed": 2**63}, 2, "seeds must be less than 2**63, got 1 from 9223372036854775808 on"),
        ({"set": "pool=1" + 20 * "0"}, 2, "invalid parameter of evolution: pool: input should be less than or equal"),
        ({"set": "pool=" + 100_000 * "["}, 2, "invalid parameter of evolution: pool: "),
        ({"set": "pool"}, 2, "--set must be NAME=VALUE, got 'pool'"),
        ({"set": "size=3"}, 2, "invalid parameter of evolution: unknown name 'size'"),
    ],
)
def test_bad_input(zcpipe, command, tmp_path, options, code, said):
    out = tmp_path / "out"
    found, printed, told = zcpipe(*command(out, **options))
    assert (found, printed) == (code, "")
    assert told.startswith("error: ") and told.count("\n") == 1
    assert said in told
    assert not out.exists()  # nothing is begun that means nothing


def test_a_search_is_kept_on_this_machine(zcpipe, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, told = zcpipe(*command("s3://bucket/searches"))
    assert (code, "--out must be a directory of this machine, got s3:/bucket/searches" in told) == (2, True)
    assert not list(tmp_path.iterdir())


def test_a_directory_of_a_table_is_no_place_for_a_search(zcpipe, command, searched):
    code, _, told = zcpipe(*command(searched))
    assert (code, "is not empty and holds no search" in told) == (4, True)


@pytest.mark.parametrize(("workers", "moments"), [(None, ((1, 12), (13, 25))), (2, ((1, 30),))])
def test_killed_anywhere_the_search_is_the_same_to_the_bit(zcpipe, command, tmp_path, workers, moments):
    options = {"seeds": 40, "warmup": "40:10", "warmup_by": "aznas", "moves": "snip"}
    assert zcpipe(*command(tmp_path / "whole", **options))[0] == 0
    arguments = command(tmp_path / "killed", workers=workers, **options)
    assert sum(killed(arguments, tmp_path / "killed" / NAME, random.randint(*moment)) for moment in moments)
    assert zcpipe(*arguments)[0] == 0
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def killed(arguments, journal, records):
    """Run the command line and kill it soon after its journal has so many records; return whether it was in time."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, "-m", "zcpipe", *arguments], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    while process.poll() is None:
        if journal.exists() and journal.read_bytes().count(b"\n") > records:
            time.sleep(random.random() * 0.01)
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.0005)
    _, told = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), told.decode()
    return process.returncode == -signal.SIGKILL
