"""`zcpipe parzc`: what a researcher types, and one clear line for what cannot be."""

import dataclasses
import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from zcpipe import open_table
from zcpipe.errors import DataError

FEATURES = ("--statistics", "snip@layer,synflow@layer", "--proxies", "params,snip,expressivity")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Parameters that make trees and networks quick."""
    place = tmp_path_factory.mktemp("parameters")
    settings = {"epochs": 3, "mc_samples": 2, "members": 1}
    for name, parameters in (
        ("extra-trees", {"trees": 10}),
        ("mabn", {"dim": 4, "depth": 1, "settings": settings}),
        ("parzc", {"members": [["extra-trees", {"trees": 5}], ["ridge", {}]]}),
    ):
        (place / f"{name}.json").write_text(json.dumps({"predictor": name, "parameters": parameters}))
    return place


def test_train_and_predict(zcpipe, directory, truth, small, tmp_path):
    model, out = tmp_path / "model.safetensors", tmp_path / "predicted.parquet"
    common = ("--truth", truth, "--target", "val", *FEATURES)
    code, said, _ = zcpipe(
        "parzc", "train", directory, *common, "--samples", "25%", "--seeds", 2, "--parameters", small / "parzc.json",
        "--out", model, "--json",
    )  # fmt: skip
    assert code == 0
    assert json.loads(said)["samples"] == 12
    code, said, _ = zcpipe("parzc", "predict", model, directory, "--out", out)
    assert (code, said) == (0, f"{out}: 48 of 48 architectures predicted\n")
    rows = pq.read_table(out)
    assert rows.column_names == ["index", "arch", "mean", "std", "rank", "reason"]
    assert rows["arch"].to_pylist() == open_table(directory).to_arrow(["arch"])["arch"].to_pylist()
    code, _, said = zcpipe("parzc", "predict", model, directory, "--out", out)
    assert code == 4
    assert said == f"error: {out}: exists already and is not overwritten; give another name or remove it\n"


def test_processes_that_do_nothing_for_a_single_training_are_told_of(zcpipe, directory, truth, tmp_path):
    common = ("parzc", "train", directory, "--truth", truth, "--target", "val", *FEATURES, "--predictor", "ridge")
    code, _, told = zcpipe(*common, "--workers", 2, "--out", tmp_path / "one")
    assert (code, told) == (
        0, "--seeds 1 is one training, which one process computes: workers make it no faster\n",
    )  # fmt: skip
    assert zcpipe(*common, "--workers", 2, "--seeds", 2, "--out", tmp_path / "two")[::2] == (0, "")
    assert zcpipe(*common, "--out", tmp_path / "plain")[::2] == (0, "")


def test_transfer(zcpipe, directory, truth, small, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    common = ("parzc", "train", directory, "--truth", truth, "--target", "val", *FEATURES, "--predictor", "mabn")
    common += ("--parameters", small / "mabn.json")
    assert zcpipe(*common, "--out", first)[0] == 0
    assert zcpipe(*common, "--init", first, "--out", second)[0] == 0
    assert first.read_bytes() != second.read_bytes()


def test_evaluate(zcpipe, directory, truth, small):
    common = ("parzc", "evaluate", directory, "--truth", truth, "--target", "test", "--train-target", "val", *FEATURES)
    options = ("--methods", "ridge,extra-trees:both", "--parameters", small / "extra-trees.json", "--samples", "12,16")
    code, said, _ = zcpipe(*common, *options, "--seeds", 2, "--json")
    assert code == 0
    found = json.loads(said)
    assert (found["target"], found["train_target"]) == ("test", "val")
    row = found["rows"][0]
    assert {"method", "samples", "split", "n_test", "kendall", "kendall_error", "spearman", "seeds"} <= row.keys()
    assert [(r["samples"], r["split"]) for r in found["rows"] if r["method"] == "ridge"] == [
        (12, "others"), (12, "published"), (16, "others"), (16, "published"),
    ]  # fmt: skip
    code, said, told = zcpipe(*common, *options, "--seeds", 2)
    lines = [line.split("\t") for line in said.splitlines()]
    assert lines[0][:5] == ["method", "samples", "split", "n", "kendall"]
    assert lines[1][4] == f"{row['kendall']:.4f} +- {row['kendall_error']:.4f}"
    assert sum(line[-1] == "best without training" for line in lines) == 4
    assert "more rows that need no training: --all or --json" in told
    assert len(zcpipe(*common, *options, "--seeds", 2, "--all")[1].splitlines()) == 1 + len(found["rows"])


def test_what_is_above_the_best_without_training_on_fewer_is_shown_beside(capsys):
    from zcpipe.cli_parzc import _print_rows
    from zcpipe.parzc.protocol import Row

    def row(method, kendall, n_test, best=False):
        plain = {field.name: math.nan for field in dataclasses.fields(Row)}
        own = {"method": method, "features": "", "samples": 9, "split": "others", "kendall": kendall, "n_test": n_test}
        return Row(**{**plain, **own, "best_free": best})

    _print_rows([row("a", 0.5, 20, best=True), row("b", -0.6, 19), row("c", 0.4, 19), row("d", 0.4, 20)], False)
    said, told = capsys.readouterr()
    lines = [line.split("\t") for line in said.splitlines()]
    assert [(line[0], line[-1]) for line in lines[1:]] == [("a", "best without training"), ("b", "above it, on fewer")]
    assert "2 more rows" in told


def test_importance(zcpipe, directory, truth, tmp_path):
    out, figure = tmp_path / "importance.parquet", tmp_path / "importance.svg"
    common = ("parzc", "importance", directory, "--truth", truth, "--target", "val", *FEATURES, "--samples", 16)
    code, said, _ = zcpipe(*common, "--seeds", 1, "--out", out, "--figure", figure, "--json")
    assert code == 0
    assert pq.read_table(out).num_rows == len(json.loads(said)["rows"])
    assert figure.read_text().startswith("<?xml")


def test_importance_without_an_order_to_learn_is_told(zcpipe, directory, tmp_path):
    archs = open_table(directory).to_arrow(["arch"])["arch"]
    pq.write_table(pa.table({"arch": archs, "val": [91.0, 91.0, *[90.0] * 46]}), tmp_path / "truth.parquet")
    common = ("--truth", tmp_path / "truth.parquet", "--target", "val", *FEATURES, "--samples", 12, "--seeds", 3)
    code, said, told = zcpipe("parzc", "importance", directory, *common, "--json")
    assert code == 0
    found = json.loads(said)
    assert found["unordered"] > 0
    assert {row["gain"] for row in found["rows"]} == {None}
    code, said, told = zcpipe("parzc", "importance", directory, *common)
    assert (code, said.splitlines()) == (0, ["kind\tname\tgain\tpermutation"])
    assert "There is no number, for" in told


@pytest.mark.parametrize(
    ("out", "figure", "message"),
    [("a.parquet", "a.xyz", "no figure of that kind can be drawn; name it .png"), ("a.svg", "a.svg", "are both")],
)
def test_figures_that_cannot_be_are_refused_before_the_work(zcpipe, directory, tmp_path, out, figure, message):
    common = ("parzc", "importance", directory, "--truth", tmp_path / "absent", "--target", "val", "--samples", 16)
    code, _, told = zcpipe(*common, "--out", tmp_path / out, "--figure", tmp_path / figure)
    assert (code, told.count("\n")) == (2, 1)
    assert message in told


def test_a_figure_that_fails_leaves_no_numbers_behind(zcpipe, directory, truth, tmp_path, monkeypatch):
    def failing(*arguments):
        raise DataError("it cannot be drawn")

    monkeypatch.setattr("zcpipe.parzc.importance.draw_importance", failing)
    common = ("parzc", "importance", directory, "--truth", truth, "--target", "val", *FEATURES, "--samples", 16)
    code, _, told = zcpipe(*common, "--seeds", 1, "--out", tmp_path / "a.parquet", "--figure", tmp_path / "a.svg")
    assert (code, told) == (4, "error: it cannot be drawn\n")
    assert not list(tmp_path.iterdir())


def test_two_files_of_one_predictors_parameters_are_refused(zcpipe, directory, truth, small):
    common = ("parzc", "evaluate", directory, "--truth", truth, "--target", "test", *FEATURES, "--samples", "12")
    twice = ("--parameters", small / "extra-trees.json") * 2
    code, _, told = zcpipe(*common, "--methods", "extra-trees", *twice)
    assert code == 2
    assert "has parameters of extra-trees, as another file has; give one file of each predictor" in told


def test_tune_and_use_what_was_chosen(zcpipe, directory, truth, tmp_path):
    out = tmp_path / "ridge.json"
    common = (directory, "--truth", truth, "--target", "val", *FEATURES, "--samples", 20, "--predictor", "ridge")
    code, said, _ = zcpipe("parzc", "tune", *common, "--trials", 2, "--out", out, "--json")
    assert code == 0
    assert json.loads(out.read_text()) == json.loads(said)["best"]
    assert zcpipe("parzc", "train", *common, "--parameters", out, "--out", tmp_path / "model")[0] == 0


@pytest.mark.parametrize("predictor", ["ridge", "extra-trees", "boosted-trees", "gaussian-process"])
def test_tune_takes_every_seed_that_train_takes(zcpipe, directory, truth, predictor):
    common = (directory, "--truth", truth, "--target", "val", *FEATURES, "--samples", 20, "--predictor", predictor)
    code, _, told = zcpipe("parzc", "tune", *common, "--trials", 2, "--seed", 2**63 - 1)
    assert (code, told.startswith("best of 2 by")) == (0, True), told
    code, _, told = zcpipe("parzc", "tune", *common, "--trials", 2, "--seed", 2**63)
    assert (code, told) == (2, "error: seeds must be less than 2**63, got 1 from 9223372036854775808 on\n")


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--target", "few"), 4, "9 of the table's 48 architectures have a value of 'few'"),
        (("--target", "constant"), 4, "target 'constant' is constant (90) over all 48"),
        (("--target", "tset"), 2, "unknown column 'tset'; did you mean test"),
        (("--target", "val", "--samples", "9"), 4, "9 labelled architectures are too few to learn from"),
        (("--target", "val", "--samples", "99"), 4, "99 samples were asked for, but 48 architectures"),
        (("--target", "val", "--samples", "many"), 2, "samples must be counts or shares such as 78 or 20%"),
        (("--target", "val", "--predictor", "mabm"), 2, "unknown predictor 'mabm'; did you mean mabn"),
        (("--target", "val", "--statistics", "grasp@layer"), 2, "the table lacks grasp@layer; `zcpipe run"),
        (("--target", "val", "--statistics", "snap@layer"), 2, "unknown statistic 'snap@layer'"),
        (("--target", "val", "--seeds", "0"), 2, "seeds must be at least 1"),
        (("--target", "val", "--seed", "-1"), 2, "seed must be at least 0, got -1"),
        (("--target", "val", "--workers", "0"), 2, "workers must be at least 1"),
        (("--target", "val", "--workers", "2", "--nodes", "2"), 2, "--workers is for this machine"),
        (("--target", "val", "--address", "a:1"), 2, "--address is for trainings on nodes"),
        (("--target", "val", "--simulate-nodes", "2", "--address", "a:1"), 2, "starts a cluster of its own; give --no"),
    ],
)
def test_what_cannot_be_trained_is_said_in_one_line(zcpipe, directory, truth, tmp_path, options, code, message):
    out = tmp_path / "model"
    got, said, told = zcpipe(
        "parzc", "train", directory, "--truth", truth, "--predictor", "ridge", "--out", out, *options
    )
    assert (got, said) == (code, "")
    assert message in told
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert not out.exists()


def test_truth_of_another_space_is_refused(zcpipe, directory, tmp_path):
    pq.write_table(pa.table({"arch": ["a", "b"], "val": [1.0, 2.0]}), tmp_path / "foreign.parquet")
    options = ("--truth", tmp_path / "foreign.parquet", "--target", "val", "--out", tmp_path / "model")
    code, _, told = zcpipe("parzc", "train", directory, *options)
    assert code == 4
    assert "the truth file knows none of the table's architectures" in told


def test_models_that_do_not_fit_are_refused(zcpipe, directory, tables, truth, tmp_path):
    model = tmp_path / "model"
    options = ("--truth", truth, "--target", "val", "--predictor", "ridge", "--out", model)
    assert zcpipe("parzc", "train", directory, *options)[0] == 0
    code, _, told = zcpipe("parzc", "predict", model, tables / "other", "--out", tmp_path / "out")
    assert code == 4
    assert "this one is of recipe batch_size 3; train another" in told
    model.write_bytes(model.read_bytes()[:-5])
    code, _, told = zcpipe("parzc", "predict", model, directory, "--out", tmp_path / "out")
    assert code == 4
    assert "is truncated, damaged or no safetensors file" in told


@pytest.mark.parametrize(("content", "code"), [("{", 4), ("[]", 4), ('{"trees": 0}', 2), ('{"predictor": "mabn"}', 2)])
def test_parameters_that_are_none(zcpipe, directory, truth, tmp_path, content, code):
    (tmp_path / "p.json").write_text(content)
    options = ("--predictor", "extra-trees", "--parameters", tmp_path / "p.json", "--out", tmp_path / "model")
    got, _, told = zcpipe("parzc", "train", directory, "--truth", truth, "--target", "val", *options)
    assert got == code
    assert told.count("\n") == 1


def test_a_library_that_is_not_there_is_named_with_its_extra(zcpipe, directory, truth, tmp_path, monkeypatch):
    import sys

    common = (directory, "--truth", truth, "--target", "val", *FEATURES)
    for module, command in (
        ("sklearn.ensemble", ("train", *common, "--predictor", "extra-trees", "--out", tmp_path / "model")),
        ("xgboost", ("importance", *common, "--samples", "12")),
        ("optuna", ("tune", *common, "--samples", "12", "--predictor", "ridge")),
        ("safetensors", ("predict", tmp_path / "model", directory, "--out", tmp_path / "out")),
    ):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            code, _, told = zcpipe("parzc", *command)
        assert code == 5, told
        assert "pip install 'zcpipe[parzc]'" in told
