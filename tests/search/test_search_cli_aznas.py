"""`zcpipe search --algorithm aznas`: over a table, live, and one clear line for what cannot be."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from search_problems import search_command

from zcpipe import open_table
from zcpipe.rank import linear_rank
from zcpipe.search import LiveScores, front
from zcpipe.search.algorithms import aznas as aznas_proposals
from zcpipe.search.aznas import FLOPS, HISTORY, PICKS
from zcpipe.search.costs import FRONT
from zcpipe.spaces import get_space

MBV2 = get_space("mbv2")


@pytest.fixture
def command(searched):
    """Return a command; options given as ``name=None`` are left out, those given as "" are flags."""

    def make(out, **options):
        given = {
            "space": "nasbench201",
            "algorithm": "aznas",
            "scores": searched,
            "proposals": "random",  # mutations are hardly ever among 64 cells
            "budget": 40,
            "batch": 16,
            "out": out,
            **options,
        }
        return search_command(given)

    return make


@pytest.fixture
def live(command):
    """Return a small live search of networks of mbv2."""

    def make(out, **options):
        small = {
            "space": "mbv2",
            "scores": "live",
            "proposals": None,
            "proxies": "expressivity,trainability,params",
            "budget": 6,
        }
        return command(out, **{**small, "batch": 3, "batch_size": 2, "resolution": 32, **options})

    return make


def files(out):
    """What was found, but for the seconds that it took."""
    return [pq.read_table(out / name).drop_columns("seconds") for name in (HISTORY, PICKS, FRONT)]


def test_over_a_table(zcpipe, command, truth, tmp_path):
    out = tmp_path / "out"
    options = {"seeds": 2, "front": "macs,params", "truth": truth, "target": "val", "report": "test"}
    code, said, told = zcpipe(*command(out, **options, json=""))
    assert (code, told) == (0, "")
    found = json.loads(said)
    assert (found["algorithm"], found["budget"], found["seeds"], found["failed"]) == ("aznas", 40, 2, 0)
    assert (found["target"], found["report"]) == ("val", "test")
    known = {row["arch"]: row for row in pq.read_table(truth).to_pylist()}
    tests = []
    for pick in found["picks"]:
        assert (pick["accuracy"], pick["report"]) == (known[pick["arch"]]["val"], known[pick["arch"]]["test"])
        tests.append(pick["report"])
    assert found["best_accuracy_mean"] == pytest.approx(np.mean(tests))
    assert found["best_accuracy_se"] == pytest.approx(np.std(tests, ddof=1) / np.sqrt(2))
    history, picks, fronts = (pq.read_table(out / name) for name in (HISTORY, PICKS, FRONT))
    assert [pick["arch"] for pick in found["picks"]] == picks["arch"].to_pylist()
    assert [row["arch"] for row in found["front"]] == fronts["arch"].to_pylist()
    first = history.filter(pa.compute.equal(history["seed"], 0))
    ways = {"aggregate": "higher", "macs": "lower", "params": "lower"}
    on = front({name: first[name].to_numpy().astype(np.float64) for name in ways}, ways)
    assert [row["arch"] for row in found["front"] if row["seed"] == 0] == first["arch"].take(on).to_pylist()
    code, said, told = zcpipe(*command(out, **options))
    lines = [line.split("\t") for line in said.splitlines()]
    assert code == 0 and len(lines) == 3
    assert lines[0] == ["seed", "scored", "number", "aggregate", "val", "test", "params", "macs", "arch"]
    assert told.startswith(f"{out}: 80 candidates scored, 0 failed, over 2 seeds; ")
    assert f"in {FRONT}; test {found['best_accuracy_mean']:.3f} +- " in told


def test_without_a_truth_nothing_is_said_of_accuracies(zcpipe, command, tmp_path):
    code, said, _ = zcpipe(*command(tmp_path / "out", json=""))
    found = json.loads(said)
    assert code == 0
    assert [found[name] for name in ("target", "report", "best_accuracy_mean", "best_accuracy_se")] == [None] * 4
    assert "accuracy" not in found["picks"][0]


def test_picks_that_have_no_truth_are_said(zcpipe, command, truth, tmp_path):
    empty = tmp_path / "empty.parquet"
    rows = pq.read_table(truth)
    pq.write_table(pa.table({"arch": rows["arch"], "val": pa.nulls(len(rows), pa.float64())}), empty)
    code, said, told = zcpipe(*command(tmp_path / "out", truth=empty, target="val"))
    assert code == 0
    assert said.splitlines()[1].split("\t")[4] == "-"
    assert told.startswith("note: 1 pick without a value of 'val' in the truth\n")
    found = json.loads(zcpipe(*command(tmp_path / "out", truth=empty, target="val", json=""))[1])
    assert (found["picks"][0]["accuracy"], found["best_accuracy_mean"]) == (None, None)


def test_aggregate_and_proxies(zcpipe, command, searched, tmp_path):
    """Draws without replacement go through the whole table: the pick is its best."""
    options = {"aggregate": "linear", "proxies": "snip,params", "budget": 64}
    code, said, _ = zcpipe(*command(tmp_path / "out", **options, json=""))
    (pick,) = json.loads(said)["picks"]
    rows = open_table(searched)
    values = rows.values(["snip", "params"])
    expected = linear_rank(values, rows.directions(["snip", "params"]))
    assert code == 0
    assert (pick["scored"], pick["aggregate"]) == (64, expected.max())
    assert pick["arch"] in rows.to_arrow(["arch"])["arch"].take(np.flatnonzero(expected == expected.max())).to_pylist()


def test_a_population_of_its_own(zcpipe, command, tmp_path):
    assert zcpipe(*command(tmp_path / "out", set="population=12"))[0] == 0
    code, _, told = zcpipe(*command(tmp_path / "out"))
    assert (code, "population is 12 there and 1024 here" in told) == (4, True)


def test_latencies(zcpipe, command, searched, tmp_path):
    archs = open_table(searched).to_arrow(["arch"])["arch"]
    path = tmp_path / "latency.parquet"
    pq.write_table(pa.table({"arch": archs, "ms": np.arange(64.0)}), path)
    options = {"front": "latency,params", "latency": path, "latency_column": "ms"}
    code, said, _ = zcpipe(*command(tmp_path / "out", **options, json=""))
    rows = json.loads(said)["front"]
    assert code == 0 and rows
    assert all(row["latency"] == archs.to_pylist().index(row["arch"]) for row in rows)


def test_live(zcpipe, live, tmp_path):
    out = tmp_path / "out"
    limits = {"max_flops": "450M", "max_layers": 14, "max_params": "9M", "min_params": "1M"}
    code, said, told = zcpipe(*live(out, **limits, json=""))
    assert (code, told) == (0, "")
    found = json.loads(said)
    (pick,) = found["picks"]
    assert pick[FLOPS] == MBV2.published_flops(MBV2.parse(pick["arch"]), "imagenet")
    for row in pq.read_table(out / HISTORY).to_pylist():
        arch = MBV2.parse(row["arch"])
        assert row[FLOPS] <= 450_000_000 and MBV2.num_layers(arch) <= 14 and 1_000_000 <= row["params"] <= 9_000_000
        assert row["status"] == "ok" and row["seconds"] > 0
    code, said, _ = zcpipe(*live(out, **limits))
    assert said.splitlines()[0].split("\t")[3:] == ["aggregate", "params", "macs", FLOPS, "arch"]
    assert zcpipe(*live(tmp_path / "two", **limits, workers=1, timeout=300))[0] == 0
    assert files(tmp_path / "two") == files(out)


def test_live_scores_are_those_of_a_run(zcpipe, live, tmp_path):
    assert zcpipe(*live(tmp_path / "out", budget=2, dataset="cifar10"))[0] == 0
    history = pq.read_table(tmp_path / "out" / HISTORY)
    (tmp_path / "archs").write_text("\n".join(history["arch"].to_pylist()))
    options = ("--proxies", "expressivity,trainability", "--batch-size", 2, "--dataset", "cifar10")
    table = tmp_path / "table"
    assert zcpipe("run", "--space", "mbv2", "--archs", tmp_path / "archs", *options, "--out", table)[0] == 0
    rows = open_table(table).lookup(history["arch"].to_pylist())
    for name in ("expressivity", "trainability", "params", "macs"):
        assert rows[name].to_pylist() == history[name].to_pylist()


def test_candidates_that_fail_are_said(zcpipe, live, tmp_path, monkeypatch):
    space = get_space("nasbenchmacro")
    build = type(space).build

    def fragile(self, arch, *rest, **named):
        if str(arch)[0] == "1":
            raise ValueError("out of luck")
        return build(self, arch, *rest, **named)

    monkeypatch.setattr(type(space), "build", fragile)
    options = {"space": "nasbenchmacro", "proposals": "random", "resolution": 16}
    code, said, told = zcpipe(*live(tmp_path / "out", **options, json=""))
    failed = pq.read_table(tmp_path / "out" / HISTORY)["status"].to_pylist().count("error")
    assert code == 3 and 0 < failed < 6
    assert json.loads(said)["failed"] == failed
    assert told.splitlines()[0].startswith(f"{failed} failed candidates: ") and "out of luck" in told
    monkeypatch.setattr(type(space), "build", build)
    assert zcpipe(*live(tmp_path / "out", **options))[0] == 3  # what was recorded stays as it is


def test_a_search_that_ends_early_says_so(zcpipe, command, tmp_path, monkeypatch):
    monkeypatch.setattr(aznas_proposals, "TRIES", 3000)
    code, said, told = zcpipe(*command(tmp_path / "out", budget=64, max_params="0.5M", json=""))
    assert code == 0
    assert json.loads(said)["picks"][0]["ended"] == "nothing"
    assert told == (
        "note: 1 search ended before the budget was spent: there is no further candidate, or 3,000 proposals in a row "
        "were none\n"
    )


def test_counts_are_whole_numbers_everywhere(zcpipe, command, tmp_path):
    code, said, _ = zcpipe(*command(tmp_path / "out", json=""))
    found = json.loads(said)
    assert code == 0
    assert all(isinstance(row[name], int) for row in found["picks"] + found["front"] for name in ("params", "macs"))


def test_an_interruption_is_told_and_the_same_command_goes_on(zcpipe, live, tmp_path, monkeypatch):
    assert zcpipe(*live(tmp_path / "whole", space="nasbenchmacro", resolution=16))[0] == 0
    take = LiveScores._take

    def interrupted(self, batch):
        take(self, batch)
        raise KeyboardInterrupt

    arguments = live(tmp_path / "out", space="nasbenchmacro", resolution=16)
    with monkeypatch.context() as patched:
        patched.setattr(LiveScores, "_take", interrupted)
        code, said, told = zcpipe(*arguments)
    assert (code, said) == (130, "")
    kept = tmp_path / "out"
    assert told == f"interrupted: what was found so far is kept in {kept}; the same command goes on\n"
    assert zcpipe(*arguments)[0] == 0
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_evolution_says_that_it_stays_in_a_sub_space(zcpipe, live, tmp_path):
    own = {"proxies": "params,macs", "budget": 12, "seeds": 2}
    said = "note: of the 9 sub-spaces of nds evolution searches that of its first random network, the first word of"
    code, _, told = zcpipe(*live(tmp_path / "nds", space="nds", **own, json=""))
    assert (code, said in told, told.count("\n")) == (0, True, 1)
    rows = pq.read_table(tmp_path / "nds" / HISTORY).to_pylist()
    assert len({(row["seed"], row["arch"].split()[0]) for row in rows}) == 2  # one for each seed
    for name, options in (("one", {"space": "nds/vanilla"}), ("random", {"space": "nds", "proposals": "random"})):
        code, _, told = zcpipe(*live(tmp_path / name, **options, **own, json=""))
        assert (code, told) == (0, "")


def test_what_was_never_run_has_not_failed(zcpipe, command, grown, tmp_path):
    out = tmp_path / "out"
    own = {"scores": grown, "proxies": "l2_norm,snip", "budget": 64}
    code, said, told = zcpipe(*command(out, **own, json=""))
    found = json.loads(said)
    assert (code, found["failed"], found["missing"]) == (0, 0, 40)
    note = "note: l2_norm was never run on 40 of 64 architectures of the table; `zcpipe run ... --proxies l2_norm"
    assert told.startswith(note) and told.count("\n") == 1
    rows = pq.read_table(out / HISTORY).to_pylist()
    assert [row["reason"] for row in rows] == ["never run: l2_norm" * (row["l2_norm"] is None) for row in rows]
    assert {row["status"] for row in rows} == {"ok"}
    code, _, told = zcpipe(*command(out, **own))
    assert (code, "64 candidates scored, 0 failed, 40 without what was never run" in told) == (0, True)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted before anything was recorded; the same command begins anew"),
        (OSError(errno.ENOSPC, "No space left on device"), 4, "no space left on device; free some space and relaunch"),
    ],
)
@pytest.mark.parametrize("whole", [0, 1, 2])
def test_ended_while_it_writes_the_same_command_writes_again(
    zcpipe, command, tmp_path, monkeypatch, error, code, said, whole
):
    assert zcpipe(*command(tmp_path / "whole"))[0] == 0
    sync, out = os.fsync, tmp_path / "out"
    left = iter(range(whole))

    def ended(descriptor):  # when so many of the files are whole, and another is not
        if ".writing-" in str(Path(f"/proc/self/fd/{descriptor}").readlink()) and next(left, None) is None:
            raise error
        sync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", ended)
        found, _, told = zcpipe(*command(out))
    assert (found, said in told) == (code, True)
    assert out.exists() == (whole > 0)
    assert zcpipe(*command(out))[0] == 0
    assert files(out) == files(tmp_path / "whole")


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ({"algorithm": "az-nas"}, 2, "unknown algorithm 'az-nas'; did you mean aznas"),
        ({"warmup": "30:3"}, 2, "--warmup is for searches that train models; aznas trains none"),
        ({"moves": "snip"}, 2, "--moves is for searches that train models"),
        ({"known_only": ""}, 2, "--known-only is for searches that train models"),
        ({"batch_size": 4}, 2, "--batch-size is for --scores live; the scores of a table are there"),
        ({"simulate_nodes": 2}, 2, "--simulate-nodes is for --scores live"),
        ({"workers": 2}, 2, "--workers is for --scores live; aznas looks the scores of a table up in this process"),
        ({"set": "pool=3"}, 2, "unknown parameter 'pool'; known: population"),
        ({"proxies": "zen"}, 2, "unknown proxy of the table 'zen'"),
        ({"proxies": "zenn"}, 2, "unknown proxy 'zenn'; did you mean zen"),
        ({"budget": 0}, 2, "invalid search: budget: input should be greater than or equal to 1, got 0"),
        ({"budget": 65}, 2, "a budget of 65 candidates is beyond the table, which has 64"),
        ({"space": "nasbench101"}, 2, "the table of scores is of nasbench201, not of nasbench101"),
        ({"max_flops": "1M"}, 2, "nasbench201 has no published count of FLOPs; limit max_macs"),
        ({"max_layers": 3}, 2, "nasbench201 does not say how many layers"),
        ({"max_macs": "1K"}, 4, "none of all 64 architectures of the table has at most 1,000 multiply-accumulates"),
        (
            {"proposals": "evolution", "max_params": "80K"},
            4,
            "hold hardly any mutations; propose at random (--proposals random)",
        ),
        ({"front": "mac"}, 2, "unknown cost 'mac'; did you mean macs"),
        ({"front": "latency"}, 2, "--front latency, --latency FILE and --latency-column COLUMN go together"),
        ({"latency": "nowhere.parquet"}, 2, "--front latency, --latency FILE and --latency-column COLUMN go together"),
        ({"target": "val"}, 2, "--truth FILE and --target COLUMN go together"),
        ({"report": "val"}, 2, "--report COLUMN needs both"),
        ({"max_seconds": 9}, 2, "--max-seconds is for --scores live; looking the scores of a table up takes no time"),
        ({"scores": "nowhere"}, 4, "nowhere"),
    ],
)
def test_bad_input(zcpipe, command, tmp_path, monkeypatch, options, code, said):
    monkeypatch.setattr(aznas_proposals, "TRIES", 300)
    found, printed, told = zcpipe(*command(tmp_path / "out", **options))
    assert (found, printed) == (code, "")
    assert told.startswith("error: ") and told.count("\n") == 1
    assert said in told


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ({"timeout": 5}, 2, "--timeout is for worker processes; give --workers K or --nodes N as well"),
        ({"workers": 0}, 2, "workers must be at least 1, got 0"),
        ({"workers": 1, "nodes": 1}, 2, "workers of this machine or on nodes; give one of the two"),
        ({"address": "auto"}, 2, "--address is for runs on nodes; give --nodes N as well"),
        ({"dataset": "imagnet"}, 2, "unknown dataset 'imagnet'; did you mean imagenet"),
        ({"inputs": "cifar10:nowhere"}, 4, "nowhere"),
        ({"device": "cuda:99"}, 5, "cuda:99"),
        ({"predicted": "p.parquet"}, 2, "--predicted is for searches that train models"),
        ({"max_seconds": 0}, 2, "invalid search: seconds: input should be greater than 0, got 0"),
        ({"max_flops": "some"}, 2, "--max-flops must be a number such as 450M or 1500000, got 'some'"),
    ],
)
def test_bad_input_of_live_searches(zcpipe, live, tmp_path, options, code, said):
    out = tmp_path / "out"
    found, printed, told = zcpipe(*live(out, **options))
    assert (found, printed) == (code, "")
    assert told.startswith("error: ") and told.count("\n") == 1
    assert said in told
    assert not out.exists()
