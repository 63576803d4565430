"""The study of searches, on cells enough to see that it searches, counts, keeps its cases, draws and writes."""

import itertools
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from zcpipe import open_table
from zcpipe.run import Archs, RunSpec, run
from zcpipe.search.loop import Trial
from zcpipe.spaces.nasbench201 import Cell

PROXIES = ("snip", "grad_norm", "synflow", "num_layers", "expressivity", "progressivity", "trainability", "complexity")
GOAL = 0.9  # of accuracies from 0 to 1, in the order of the sizes


@pytest.fixture
def study(study, monkeypatch):
    """Import a module of pipelines/ as the script beside it does, with predictors that are quick."""
    stages = study("search_stages")
    trees = {"predictor": "extra-trees", "parameters": {"trees": 5}, "round": 10}
    monkeypatch.setitem(stages.PARAMETERS, "predictor", trees)
    monkeypatch.setattr(stages, "LEARNER", "ridge")
    monkeypatch.setattr(stages, "AT_ONCE", 2)
    for name in stages.PREDICTORS.keys() - {"gaussian-process", "mabn-pretrained"}:
        monkeypatch.delitem(stages.PREDICTORS, name)
    small = {"dim": 8, "settings": {"epochs": 2, "members": 1}}
    pretrained = {"predictor": "mabn", "parameters": small, "round": 10, "pretrain": 20}
    monkeypatch.setitem(stages.PREDICTORS, "mabn-pretrained", (pretrained, "synflow"))
    return study


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A table of cells that are one another's neighbours, and accuracies by their sizes."""
    place = tmp_path_factory.mktemp("study")
    cells = [Cell(edges) for edges in itertools.product(("skip_connect", "nor_conv_3x3"), repeat=6)]
    spec = RunSpec(
        space="nasbench201",
        dataset="cifar10",
        proxies=PROXIES,
        selection=Archs(texts=tuple(map(str, cells))),
        batch_size=2,
        resolution=16,
    )
    assert run(spec, place / "cells").failed == 0
    rows = open_table(place / "cells").to_arrow(["arch", "params", "key"])
    sizes = rows["params"].to_numpy() + 1e-3 * np.unique(rows["key"].to_numpy(), return_inverse=True)[1]
    places = np.unique(sizes, return_inverse=True)[1]
    good = places / places.max()
    pq.write_table(pa.table({"arch": rows["arch"], "val": good, "test": good}), place / "truth.parquet")
    return place


def arguments(place, out, *more):
    where = f"--table {place}/cells --truth {place}/truth.parquet --target val --report test --goal {GOAL}"
    own = (
        f"--seeds 3 --budget 30 --predictor-budget 25 --predictor-seeds 2 --scored 40 --kept 12 --labels 12 --out {out}"
    )
    return [*where.split(), *own.split(), "--docs", str(out / "docs"), *more]


def test_the_page_and_its_numbers(study, place, tmp_path, monkeypatch):
    search, stages = study("search"), study("search_stages")
    search.main(arguments(place, tmp_path))
    record = json.loads((tmp_path / "docs" / "search.json").read_text())
    rows = record["rows"]
    assert [(row["algorithm"], row["role"], row["guide"]) for row in rows] == [
        (case.algorithm, case.role, case.guide) for case in stages.cases()
    ]
    assert len(rows) == 4 + 4 * 4 + 4 + 3  # plain, random's and evolution's, reinforce's, predictor's
    for row in rows:
        assert len(row["mean"]) == row["budget"] == (25 if row["algorithm"] == "predictor" else 30)
        assert all(0 <= value <= 1 for value in row["mean"])
        assert row["mean"] == sorted(row["mean"])  # the target is what is reported
    by_case = {(row["algorithm"], row["role"], row["guide"]): row for row in rows}
    warm = by_case["random", "warm-up", "synflow"]
    assert warm["median"] < by_case["random", "", ""]["median"]  # synflow grows with the size
    assert warm["speed_up"] == pytest.approx(by_case["random", "", ""]["median"] / warm["median"])
    learnt = by_case["random", "warm-up", "parzc-learnt"]
    assert learnt["mean"][:12] == by_case["random", "", ""]["mean"][:12]  # its labels are the first of random search
    page = (tmp_path / "docs" / "search.md").read_text()
    assert "| `evolution` | both: AZ-NAS |" in page and "nan" not in page and "None" not in page
    assert (tmp_path / "docs" / "search.png").stat().st_size > 10_000
    monkeypatch.setattr(stages, "search_space", lambda *args, **options: pytest.fail("nothing is searched again"))
    search.main(arguments(place, tmp_path))
    assert json.loads((tmp_path / "docs" / "search.json").read_text()) == record


def test_some_algorithms_alone(study, place, tmp_path, capsys):
    study("search").main(arguments(place, tmp_path, "--algorithms", "random"))
    assert capsys.readouterr().out.startswith("5 results are kept in")
    assert not (tmp_path / "docs").exists()
    cases = ["random", *(f"random-warm-up-{guide}" for guide in study("search_stages").GUIDES)]
    names = {path.name for path in tmp_path.glob("*.json")}
    assert names == {f"{case}-{first}.json" for case in cases for first in (0, 2)}


def test_when_the_best_by_validation_is_good(study):
    stages = study("search_stages")
    trials = [
        Trial("a", "a", 1.0, 7.0),
        Trial("b", "b", 3.0, 5.0),
        Trial("c", "c", 2.0, 9.0),
        Trial("d", "d", 4.0, 8.0),
    ]
    steps = stages.steps_of(trials, 4)
    assert steps == [[1, 7.0], [2, 5.0], [4, 8.0]]
    curve = stages.curve([steps, [[2, 6.0]]], 5)
    assert np.array_equal(curve, [[7, 5, 5, 8, 8], [np.nan, 6, 6, 6, 6]], equal_nan=True)
    assert stages.reached(curve, 7.5).tolist() == [4, np.inf]


def test_how_many_times_as_fast(study):
    search = study("search")
    same = search.speed_up(np.full(9, 40.0), np.full(9, 10.0))
    assert same == {"speed_up": 4.0, "speed_up_low": 4.0, "speed_up_high": 4.0}
    never = np.full(9, np.inf)
    assert search.speed_up(never, np.full(9, 10.0)) == dict.fromkeys(same)  # beyond all numbers
    assert set(search.speed_up(np.full(9, 10.0), never).values()) == {0.0}
    assert set(search.speed_up(never, never).values()) == {1.0}


def test_a_sign_test_counts_seeds(study):
    search = study("search")
    without, scored = np.full(10, 40.0), np.array([10.0] * 8 + [40.0, np.inf])
    assert search.sign_test(without, scored) == {"sooner": 8, "later": 1, "p": pytest.approx(20 / 512)}
    assert search.sign_test(without, without) == {"sooner": 0, "later": 0, "p": 1.0}


def test_only_what_is_clear_is_said_to_be_sooner_or_later(study):
    report = study("search_report")
    plain = {"algorithm": "random", "role": "", "guide": "", "budget": 300, "seeds": 10, "median": 40}
    plain["reached"] = [40] * 10
    common = {**plain, "role": "warm-up", "median": 10, "speed_up": 4.0}
    rows = [
        plain,
        {**common, "guide": "synflow", "sooner": 10, "later": 0, "p": 0.002},
        {**common, "guide": "aznas", "sooner": 7, "later": 3, "p": 0.34},
        {**common, "guide": "parzc-free", "sooner": 0, "later": 10, "p": 0.002, "median": None, "reached": [None] * 10},
        {**common, "guide": "parzc-learnt", "sooner": 9, "later": 1, "p": 0.02},  # one of four comparisons
    ]
    (said,) = report._sentences("random", {"rows": rows})
    assert "Clearly sooner: a warm-up by synflow, after 10 models (10 of 10 seeds), 4.0 times as fast." in said
    assert "Clearly later: a warm-up by ParZC without training, in 0 of 10 seeds within 300 models." in said
    assert said.endswith("No clear difference: a warm-up by AZ-NAS; a warm-up by ParZC of labels.")
