"""The Pareto front of what searches train: its accuracy against macs, params or a latency."""

import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from search_problems import SPACE, Counting, quality, search_command

from zcpipe import open_table
from zcpipe.errors import DataError, UsageError
from zcpipe.search import Evaluated, search
from zcpipe.search.costs import FRONT, Costs
from zcpipe.search.result import CURVES


def undominated(rows, costs, best=max):
    """The rows that no other beats in accuracy and costs, by the definition."""
    sign = 1 if best is max else -1
    goods = [(sign * row["accuracy"], *(-row[cost] for cost in costs)) for row in rows]

    def beaten(own):
        return any(other != own and all(map(float.__ge__, other, own)) for other in goods)

    goods = [tuple(map(float, good)) for good in goods]
    return {row["arch"] for row, own in zip(rows, goods, strict=True) if not beaten(own)}


def trained(found, seed=0):
    """What was trained under a seed with success, with the size of its network."""
    (outcome,) = (one for one in found.outcomes if one.seed == seed)
    return [
        {**vars(trial), **vars(SPACE.size(SPACE.parse(trial.arch), "cifar10"))}
        for trial in outcome.trials
        if not trial.failure
    ]


def front(found, seed=0):
    return [row for row in found.fronts().to_pylist() if row["seed"] == seed]


@pytest.mark.parametrize("costs", [("macs",), ("params",), ("macs", "params")])
def test_each_seed_has_the_front_of_what_it_trained(tmp_path, costs):
    found = search("nasbenchmacro", "evolution", Counting(), 80, seeds=2, costs=costs, out=tmp_path)
    for seed in (0, 1):
        rows = front(found, seed)
        assert {row["arch"] for row in rows} == undominated(trained(found, seed), costs)
        assert 1 < len(rows) < 80
        assert [row["accuracy"] for row in rows] == sorted((row["accuracy"] for row in rows), reverse=True)
        for row in rows:
            trial = found.outcomes[seed].trials[row["trained"] - 1]
            size = SPACE.size(SPACE.parse(trial.arch), "cifar10")
            assert row == {
                "seed": seed,
                "trained": row["trained"],
                "arch": trial.arch,
                "key": trial.key,
                "accuracy": trial.accuracy,
                "report": trial.report,
                "params": size.params,
                "macs": size.macs,
            }
    assert pq.read_table(tmp_path / FRONT) == found.fronts()


def test_macs_are_the_cost_by_default():
    assert front(search("nasbenchmacro", "random", quality, 40)) == front(
        search("nasbenchmacro", "random", quality, 40, costs=("macs",))
    )


def test_the_pick_is_on_the_front():
    found = search("nasbenchmacro", "reinforce", quality, 40, seeds=3)
    best = {pick.seed: pick.accuracy for pick in found.picks}
    assert [front(found, seed)[0]["accuracy"] for seed in best] == list(best.values())


def test_lower_targets_may_be_better():
    found = search("nasbenchmacro", "random", Evaluated(lambda arch: -quality(arch), "lower"), 60)
    assert {row["arch"] for row in front(found)} == undominated(trained(found), ("macs",), min)
    assert front(found)[0]["accuracy"] == found.picks[0].accuracy


def test_failed_trainings_are_on_no_front():
    whole = search("nasbenchmacro", "random", Counting(), 40)
    failing = {row["arch"] for row in front(whole)}
    found = search("nasbenchmacro", "random", Counting(failing), 40, pass_over=True)
    assert {row["arch"] for row in front(found)} == undominated(trained(found), ("macs",))
    assert not failing & {row["arch"] for row in front(found)}
    nothing = search("nasbenchmacro", "random", Counting(map(str, SPACE)), 3, pass_over=True)
    assert nothing.fronts().num_rows == 0
    assert nothing.fronts().schema == whole.fronts().schema


def test_latencies(tmp_path):
    archs = [str(arch) for arch in SPACE]
    ms = [None if place % 3 else 1e6 / (1 + place) for place in range(len(archs))]
    file = tmp_path / "latency.parquet"
    pq.write_table(pa.table({"arch": archs, "ms": ms, "none": pa.nulls(len(archs), pa.float64())}), file)
    known = {arch: value for arch, value in zip(archs, ms, strict=True) if value is not None}
    costs = {"costs": ("latency", "params"), "latency": (file, "ms")}
    found = search("nasbenchmacro", "random", quality, 90, out=tmp_path / "out", **costs)
    rows = [{**row, "latency": known[row["arch"]]} for row in trained(found) if row["arch"] in known]
    assert {row["arch"]: row["latency"] for row in front(found)} == {
        arch: known[arch] for arch in undominated(rows, ("latency", "params"))
    }
    again = search("nasbenchmacro", "random", quality, 90, out=tmp_path / "out")  # over other costs, nothing is trained
    assert "latency" not in again.fronts().column_names
    with pytest.raises(DataError, match="column 'none' has no values"):
        search("nasbenchmacro", "random", quality, 9, costs=("latency",), latency=(file, "none"))


def test_what_means_nothing_is_refused_before_anything_is_trained(tmp_path):
    counting, below = Counting(), tmp_path / "below.parquet"
    pq.write_table(pa.table({"arch": ["a", "b"], "ms": [1.0, -1.0]}), below)
    for costs, latency, error, said in (
        (("mac",), None, UsageError, "unknown cost 'mac'; did you mean macs"),
        (("latency",), None, UsageError, "a front over latency needs a file"),
        (("macs", "params", "macs"), None, UsageError, "a cost is named twice: macs, params, macs"),
        (("latency",), (below, "ms"), DataError, "column 'ms' has latencies below 0, the first of b"),
        (("macs",), ("file", "ms"), UsageError, "a front over latency needs a file"),
        (("latency",), (tmp_path / "none", "ms"), DataError, "no such file"),
    ):
        with pytest.raises(error, match=said):
            search("nasbenchmacro", "random", counting, 9, costs=costs, latency=latency, out=tmp_path / "out")
    assert not counting.trained and not (tmp_path / "out").exists()


def test_those_without_a_value_or_a_latency_are_left_out():
    costs = Costs(("latency",), {"a": 2.0, "b": 1.0, "c": 3.0})
    values = np.array([1.0, math.nan, 0.0, 5.0, 2.0])
    assert costs.front(values, "higher", ["a", "b", "c", "d", "c"], {}).tolist() == [4, 0]
    assert costs.front(values, "lower", ["a", "b", "c", "d", "c"], {}).tolist() == [2, 0]


# -- the command


@pytest.mark.parametrize("algorithm", ["random", "evolution", "reinforce", "predictor"])
def test_the_command(zcpipe, searched, truth, tmp_path, algorithm):
    out = tmp_path / "out"
    archs = open_table(searched).to_arrow(["arch"])["arch"].to_pylist()
    pq.write_table(pa.table({"arch": archs, "ms": np.arange(64.0)}), tmp_path / "latency.parquet")
    given = {
        "space": "nasbench201",
        "algorithm": algorithm,
        "scores": searched,
        "truth": truth,
        "target": "err",  # of which lower is better
        "report": "test",
        "budget": 24,
        "seeds": 2,
        "front": "latency,params",
        "latency": tmp_path / "latency.parquet",
        "latency_column": "ms",
        "out": out,
        **({"set": "predictor=ridge"} if algorithm == "predictor" else {}),
    }
    code, said, told = zcpipe(*search_command({**given, "json": ""}))
    assert (code, told) == (0, "")
    rows = json.loads(said)["front"]
    assert rows == pq.read_table(out / FRONT).to_pylist()
    curves = pq.read_table(out / CURVES).to_pylist()
    sizes = dict(zip(archs, open_table(searched).to_arrow(["params"])["params"].to_pylist(), strict=True))
    for seed in (0, 1):
        known = [
            {**row, "params": sizes[row["arch"]], "latency": archs.index(row["arch"])}
            for row in curves
            if row["seed"] == seed
        ]
        assert {row["arch"] for row in rows if row["seed"] == seed} == undominated(known, ("latency", "params"), min)
    code, _, told = zcpipe(*search_command(given))
    assert code == 0
    assert told.endswith(f"over 2 seeds; {len(rows)} models in {FRONT}\n")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"front": "mac"}, "unknown cost 'mac'; did you mean macs"),
        ({"front": "latency"}, "--front latency, --latency FILE and --latency-column COLUMN go together"),
        ({"latency_column": "ms"}, "--front latency, --latency FILE and --latency-column COLUMN go together"),
    ],
)
def test_bad_input(zcpipe, searched, truth, tmp_path, options, said):
    plain = {"space": "nasbench201", "algorithm": "random", "scores": searched, "truth": truth, "target": "val"}
    code, printed, told = zcpipe(*search_command({**plain, "budget": 9, "out": tmp_path / "out", **options}))
    assert (code, printed) == (2, "")
    assert told.startswith("error: ") and told.count("\n") == 1 and said in told
    assert not (tmp_path / "out").exists()
