"""`zcpipe search --scores live`: warm-ups and moves by scores that are computed when they are asked for."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from search_problems import search_command

from zcpipe.search import LiveScores
from zcpipe.search.costs import FRONT
from zcpipe.search.journal import NAME
from zcpipe.search.result import CURVES, PICKS
from zcpipe.spaces import get_space

MACRO = get_space("nasbenchmacro")


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    """The whole space; val grows with the parameters, half is known of every other network only."""
    path = tmp_path_factory.mktemp("live") / "truth.parquet"
    val = [float(MACRO.size(arch, "cifar10").params) for arch in MACRO]
    half = [None if place % 2 else value for place, value in enumerate(val)]
    pq.write_table(pa.table({"arch": [str(arch) for arch in MACRO], "val": val, "half": half}), path)
    return path


@pytest.fixture
def command(truth):
    """Return a command; options given as ``name=None`` are left out."""

    def make(out, **options):
        given = {
            "space": "nasbenchmacro",
            "algorithm": "evolution",
            "scores": "live",
            "truth": truth,
            "target": "val",
            "budget": 6,
            "warmup": "5:3",
            "warmup_by": "expressivity",
            "batch_size": 2,
            "resolution": 16,
            "out": out,
            **options,
        }
        return search_command(given)

    return make


def files(out):
    return {name: (out / name).read_bytes() for name in (CURVES, PICKS, FRONT)}


def test_a_warm_up_and_moves_by_live_scores(zcpipe, command, tmp_path):
    options = {"set": "pool=4", "moves": "params", "max_params": "3M"}
    settings = ("--set", "tournament=2", "--json")
    code, said, _ = zcpipe(*command(tmp_path / "out", **options), *settings)
    found = json.loads(said)
    assert code == 0
    assert (found["algorithm"], found["budget"], found["failed"]) == ("evolution", 6, 0)
    curves = pq.read_table(tmp_path / "out" / CURVES).to_pylist()
    assert len(curves) == 6 and all(row["accuracy"] <= 3_000_000 for row in curves)
    assert zcpipe(*command(tmp_path / "two", **options, workers=1), *settings)[0] == 0
    assert files(tmp_path / "two") == files(tmp_path / "out")


def test_the_warm_up_trains_the_best_by_the_scores_of_a_table(zcpipe, command, tmp_path):
    assert zcpipe(*command(tmp_path / "live", budget=3, algorithm="random"))[0] == 0
    drawn = json.loads((tmp_path / "live" / NAME).read_text().splitlines()[1][9:])["archs"]
    (tmp_path / "archs").write_text("\n".join(drawn))
    recipe = ("--batch-size", 2, "--resolution", 16, "--proxies", "expressivity")
    table = tmp_path / "table"
    assert zcpipe("run", "--space", "nasbenchmacro", "--archs", tmp_path / "archs", *recipe, "--out", table)[0] == 0
    values = dict(zip(*(pq.read_table(table)[name].to_pylist() for name in ("arch", "expressivity")), strict=True))
    trained = pq.read_table(tmp_path / "live" / CURVES)["arch"].to_pylist()
    assert len(drawn) == 5
    assert trained == sorted(drawn, key=lambda arch: -values[arch])[:3]


def test_without_scores_the_whole_space_is_searched(zcpipe, command, tmp_path):
    plain = {"warmup": None, "warmup_by": None, "batch_size": None, "resolution": None}
    code, said, _ = zcpipe(*command(tmp_path / "out", algorithm="random", **plain, json=""))
    assert code == 0
    assert "failed" not in json.loads(said)


def test_failed_scores_are_said(zcpipe, command, tmp_path, monkeypatch):
    build = type(MACRO).build

    def fragile(self, arch, *rest, **named):
        if str(arch)[0] == "1":
            raise ValueError("out of luck")
        return build(self, arch, *rest, **named)

    monkeypatch.setattr(type(MACRO), "build", fragile)
    code, said, told = zcpipe(*command(tmp_path / "out", budget=4, warmup="6:2", json=""))
    failed = json.loads(said)["failed"]
    assert code == 3 and 0 < failed < 6
    assert told.splitlines()[0].startswith(f"{failed} failed candidate") and "out of luck" in told
    monkeypatch.setattr(type(MACRO), "build", build)
    again, repeated, _ = zcpipe(*command(tmp_path / "out", budget=4, warmup="6:2", json=""))
    assert (again, json.loads(repeated)) == (3, json.loads(said))


def test_interrupted_and_gone_on_with(zcpipe, command, tmp_path, monkeypatch):
    assert zcpipe(*command(tmp_path / "whole"))[0] == 0
    take = LiveScores._take

    def interrupted(self, batch):
        take(self, batch)
        raise KeyboardInterrupt

    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(LiveScores, "_take", interrupted)
        patched.setattr("zcpipe.search.live.MOST", 2)
        code, said, told = zcpipe(*command(out))
    assert (code, said) == (130, "")
    assert told == f"interrupted: what was found so far is kept in {out}; the same command goes on\n"
    assert (out / NAME).read_bytes().count(b"\n") == 2  # the identity and two of the five that the warm-up scores
    assert zcpipe(*command(out))[0] == 0
    assert files(out) == files(tmp_path / "whole")


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ({"batch": 3}, 2, "--batch is for --algorithm aznas; evolution makes nothing of it"),
        ({"max_flops": "1M"}, 2, "nasbenchmacro has no published count of FLOPs; limit max_macs"),
        ({"proxies": "snip"}, 2, "--proxies is for aznas; other searches score by what --warmup-by and --moves name"),
        ({"known_only": ""}, 2, "--known-only is for a table of scores"),
        ({"predicted": "p.parquet"}, 2, "--predicted is for a table of scores"),
        (
            {"warmup": None, "warmup_by": None},
            2,
            "--batch-size is for scores, of which neither --warmup-by nor --moves",
        ),
        ({"warmup_by": "zenn"}, 2, "unknown proxy 'zenn'; did you mean zen"),
        ({"algorithm": "predictor"}, 2, "predictor learns from features of a table's architectures"),
        ({"target": None}, 2, "--truth FILE and --target COLUMN go together"),
        (
            {"target": None, "truth": None},
            2,
            "evolution is guided by accuracies; give --truth FILE and --target COLUMN",
        ),
        ({"budget": 9999}, 2, "a budget of 9999 trained models is beyond the candidates"),
        ({"dataset": "imagenet"}, 2, "unknown dataset 'imagenet'; known: cifar10"),
        ({"target": "half", "algorithm": "random", "budget": 99}, 4, "has no value of 'half' for"),
    ],
)
def test_bad_input(zcpipe, command, tmp_path, options, code, said):
    found, printed, told = zcpipe(*command(tmp_path / "out", **options))
    assert (found, printed) == (code, "")
    assert told.startswith("error: ") and told.count("\n") == 1
    assert said in told
