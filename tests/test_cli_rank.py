"""zcpipe rank and zcpipe correlate on what is not a plain table with plain truth."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from zcpipe.rank import population
from zcpipe.spaces import get_space

CELLS = 8
PROXIES = ("synflow", "snip", "jacob_cov", "expressivity", "complexity")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    from zcpipe.run import Range, RunSpec, run

    out = tmp_path_factory.mktemp("rank") / "t"
    cells = Range(start=1000, stop=1000 + CELLS)
    run(RunSpec(space="nasbench201", dataset="cifar10", selection=cells, batch_size=4, proxies=PROXIES), str(out))
    return out


@pytest.fixture
def truth(tmp_path):
    """A loss and an accuracy that order cells the other way round."""
    space, path = get_space("nasbench201"), tmp_path / "truth.parquet"
    values = [float(i) for i in range(CELLS)]
    loss = pa.field("loss", pa.float64(), metadata={"direction": "lower"})
    schema = pa.schema([("arch", pa.string()), loss, ("acc", pa.float64())])
    archs = [str(space[1000 + i]) for i in range(CELLS)]
    pq.write_table(pa.table([archs, values, values[::-1]], schema=schema), path)
    return path


def test_infinite_aggregates_are_text_in_json(zcpipe, table, monkeypatch):
    real = population.aggregate
    monkeypatch.setattr(population, "aggregate", lambda *given: real(*given) * float("inf"))
    code, text, _ = zcpipe("rank", table, "--method", "linear", "--proxies", "complexity", "--json")
    assert code == 0
    assert {row["score"] for row in json.loads(text)["rows"]} == {"inf"}


def test_two_aggregates_of_one_name_are_refused(zcpipe, table, truth):
    both = ("--aggregate", "two=complexity,snip", "--aggregate", "two=synflow")
    code, out, err = zcpipe("correlate", table, "--truth", truth, "--target", "acc", *both)
    assert (code, out) == (2, "")
    assert "'two' twice" in err


def test_truth_that_is_better_the_lower_is_told_of(zcpipe, table, truth):
    def kendall(target):
        code, text, err = zcpipe("correlate", table, "--truth", truth, "--target", target, "--json")
        assert code == 0
        return {row["name"]: row["kendall"] for row in json.loads(text)["rows"]}, err

    by_accuracy, said = kendall("acc")
    assert "lower" not in said
    by_loss, said = kendall("loss")
    assert "loss is the better the lower" in said
    assert by_loss["complexity"] == -by_accuracy["complexity"]


def test_a_vote_over_too_many_pairs_is_left_out_and_said(zcpipe, table, truth, monkeypatch):
    correlate = ("correlate", table, "--truth", truth, "--target", "acc")
    assert "vote\t" in zcpipe(*correlate)[1]
    monkeypatch.setattr(population, "VOTED_AT_MOST", CELLS - 1)
    code, out, err = zcpipe(*correlate)
    assert code == 0
    assert "vote\t" not in out
    assert f"vote is left out: it compares every pair of {CELLS} architectures" in err


def test_files_of_any_name_can_be_told_of(zcpipe, tmp_path):
    out = str(tmp_path / "z\udcff.parquet")
    code, text, err = zcpipe("truth", "import", "nasbenchmacro", _macro(tmp_path), "--out", out)
    assert (code, err) == (0, "")
    assert "z\\udcff.parquet" in text


def _macro(folder):
    path = folder / "nas-bench-macro_cifar10.json"
    accuracies = [45.31999969482422, 45.32999801635742, 45.439998626708984]
    entry = {"test_acc": accuracies, "mean_acc": sum(accuracies) / 3, "std": 0.054364862390541085}
    path.write_text(json.dumps({"00000000": {**entry, "params": 387882, "flops": 7713280}}))
    return path


def test_methods_that_there_are_are_named_with_those_of_parzc(zcpipe, table):
    code, _, err = zcpipe("rank", table, "--method", "foo")
    assert code == 2
    assert "parzc-sinusoidal" in err and "logrank" in err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("snip", "--plan", "aznas"), "leave snip out"),
        (("snip", "--protocol", "fused"), "--protocol is for --plan"),
    ],
)
def test_options_of_the_list_of_proxies_that_would_do_nothing_are_refused(zcpipe, options, says):
    code, out, err = zcpipe("proxies", *options)
    assert (code, out) == (2, "") and says in err


@pytest.mark.parametrize("command", [("run", "--space", "nasbench201", "--sample", "1", "--out", ""), ("rank", "")])
def test_an_empty_text_is_no_directory(zcpipe, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = zcpipe(*command)
    assert code == 2 and "an empty text names no place" in err
    assert not list(tmp_path.iterdir())
