"""The study of ParZC, on cells enough to see that it learns, compares, keeps its stages, draws and writes."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from zcpipe import open_table
from zcpipe.parzc.parallel import HERE
from zcpipe.parzc.protocol import Method
from zcpipe.run import RunSpec, Sample, run

PROXIES = ("snip", "grad_norm", "synflow", "num_layers", "expressivity", "progressivity", "trainability", "complexity")
TREES = '{"trees": 10}'
METHODS = [
    Method("parzc", parameters=json.dumps({"members": [["gaussian-process", {}], ["extra-trees", {"trees": 10}]]})),
    Method("mabn", parameters='{"dim": 8, "settings": {"epochs": 2, "members": 1}}'),
    Method("mabn-published", parameters='{"size": 16, "dim": 8, "depth": 1, "settings": {"epochs": 2}}'),
    Method("gaussian-process"),
    Method("extra-trees", "proxies", TREES),
    Method("extra-trees", "both", TREES),
    Method("ridge", "both"),
]
TINY = {"size": 16, "dim": 8, "depth": 1, "dropout": 0.1}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A table of cells of NAS-Bench-201 with accuracies, and the same as one of those of pipelines/spaces.py."""
    place = tmp_path_factory.mktemp("study")
    spec = RunSpec(
        space="nasbench201", dataset="cifar10", proxies=PROXIES, selection=Sample(n=32), batch_size=2, resolution=16
    )
    assert run(spec, place / "cells").failed == 0
    rows = open_table(place / "cells").to_arrow(["arch", "params"])
    good = np.log(rows["params"].to_numpy()) + 0.1 * np.random.default_rng(0).normal(size=len(rows))
    columns = dict.fromkeys(("cifar10_test_200", "cifar10_val_200", "imagenet_test_50"), good)
    pq.write_table(pa.table({"arch": rows["arch"], **columns}), place / "cells-truth.parquet")
    shutil.copytree(place / "cells", place / "spaces" / "darts")
    shutil.copy(place / "cells-truth.parquet", place / "spaces" / "darts-truth.parquet")
    return place


@pytest.fixture
def small(study, monkeypatch):
    """Make what the study measures small, in this process, and count how often it evaluates."""
    stages, ablation, speed = study("parzc_stages"), study("parzc_ablation"), study("parzc_speed")
    counted = []
    evaluate = stages.evaluate
    monkeypatch.setattr(stages, "evaluate", lambda *args, **options: counted.append(1) or evaluate(*args, **options))
    monkeypatch.setattr(stages, "Pool", lambda workers: HERE)
    monkeypatch.setattr(study("parzc"), "parse_methods", lambda names, spec: METHODS)
    monkeypatch.setattr(ablation, "cases", lambda spec: some_cases(ablation, spec))
    monkeypatch.setattr(speed, "PUBLISHED_SIZE", TINY)
    monkeypatch.setattr(speed, "TIMED", ("parzc", "ridge"))
    return counted


def some_cases(ablation, spec):
    base = "extra-trees"
    default = ablation.Case(base, "default", "-", Method(base, parameters=TREES), spec)
    fewer = ablation.Case(base, "trees", "1", Method(base, parameters='{"trees": 1}'), spec)
    packed = ablation.varied(spec, alignment="packed")
    return [default, fewer, ablation.Case(base, "alignment", "packed", Method(base, parameters=TREES), packed)]


def arguments(place, out, *more):
    own = f"--samples 12,16 --seeds 2 --ablation-samples 12 --ablation-seeds 3 --shares 50% --workers 1 --out {out}"
    where = f"--nasbench201 {place}/cells --truth {place}/cells-truth.parquet --spaces {place}/spaces --docs {out}/docs"
    return [*own.split(), *where.split(), *more]


def test_the_page_and_its_numbers(study, small, place, tmp_path):
    study("parzc").main(arguments(place, tmp_path))
    table = pq.read_table(tmp_path / "docs" / "parzc.parquet")
    said = {name.decode(): json.loads(value) for name, value in table.schema.metadata.items()}
    stages = {name: [row for row in table.to_pylist() if row["stage"] == name] for name in said}
    rows = stages["nasbench201"]
    learnt = [row for row in rows if row["taus"] is not None]
    assert len(learnt) == len(METHODS) * 2 * 2  # numbers of labels, splits
    assert {row["samples"] for row in rows} == {12, 16} and {row["split"] for row in rows} == {"others", "published"}
    for row in learnt:
        assert row["kendall"] == pytest.approx(np.mean(row["taus"]))
    assert [row["method"] for row in stages["calibration"][:3]] == ["parzc", "mabn", "gaussian-process"]
    assert {row["population"] for row in stages["spaces"]} == {"darts"}
    assert "there is no table in" in said["spaces"]["missing"]["nasbench101"]
    assert said["nasbench201"]["nasbench201"]["keys"] > 1
    assert {row["method"] for row in stages["speed"]} > {"parzc", "ridge"}
    page = (tmp_path / "docs" / "parzc.md").read_text()
    assert "**not measured**, for there is no table in" in page
    assert all(f"- **{departure}.**" in page for departure in ("Logarithms", "Sums", "Empty places", "Dead layers"))
    assert "| trees | 1 | " in page and "Beside the published code's logs" in page
    assert "nan" not in page.lower().replace("nasbench", "")
    assert (tmp_path / "docs" / "parzc.png").stat().st_size > 10_000


def test_stages_are_kept_and_printed_alone(study, small, place, tmp_path, capsys):
    run_study = study("parzc").main
    run_study(arguments(place, tmp_path, "--stages", "ablation"))
    first = capsys.readouterr().out
    assert first.startswith("## One thing changed at a time") and len(small) == 3
    assert not (tmp_path / "docs").exists()
    run_study(arguments(place, tmp_path, "--stages", "ablation"))
    assert capsys.readouterr().out == first and len(small) == 3
    run_study(arguments(place, tmp_path, "--stages", "ablation", "--ablation-seeds", "2"))
    assert capsys.readouterr().out != first and len(small) == 6


def test_what_differs_from_the_defaults_is_one_thing_each(study):
    ablation, stages = study("parzc_ablation"), study("parzc_stages")
    spec = stages.FeatureSpec(statistics=("snip@layer",), proxies=("params",))
    found = {base: [case for case in ablation.cases(spec) if case.base == base] for base in ("mabn", "parzc")}
    for cases in found.values():
        assert [case.factor for case in cases].count("default") == 1 and cases[0].factor == "default"
        told = {(case.spec, *stages._digest(case.method)) for case in cases}
        assert len(told) == len(cases)  # no case is the default, or another one, under another name
    factors = {case.factor for case in found["mabn"]}
    assert factors >= {"loss", "KL weight", "Bayesian layers", "token mixing", "encoding", "alignment", "members"}


def test_what_helps_exceeds_two_standard_errors(study):
    def row(value, difference, error):
        own = {"factor": "loss", "value": value, "samples": 78}
        return {**own, "difference": difference, "difference_error": error}

    rows = [row("a", 0.021, 0.01), row("b", 0.019, 0.01), row("c", -0.03, 0.01), row("d", 0.0, None)]
    assert study("parzc_sections").verdicts("mabn", rows) == [
        "- Helps (`mabn`): loss a at 78 labels (+0.021).",
        "- Harms (`mabn`): loss c at 78 labels (-0.030).",
        "- Shows no difference at any number of labels (`mabn`): loss b; loss d.",
    ]


def test_a_default_of_a_member_belongs_to_the_key_of_a_stage(study, monkeypatch):
    stages = study("parzc_stages")
    told = stages.parameters("parzc", {"members": [["extra-trees:proxies", {"min_leaf": 2}]]})
    ((name, of_member),) = told["members"]
    assert name == "extra-trees:proxies" and of_member["min_leaf"] == 2 and "trees" in of_member


def test_json_has_a_row_on_a_line(study):
    value = {"a": {"rows": [{"x": 1, "taus": [0.5, None]}, {"x": 2}]}, "b": [1, 2], "c": {}}
    text = study("study").dumped(value)
    assert json.loads(text) == value
    assert '{"x": 1, "taus": [0.5, null]}' in text


def test_stages_and_tables_that_are_not_there(study, place, tmp_path, capsys):
    for more, complaint in ((["--stages", "speeds"], "no stage is called speeds"), ([], "there is no table in")):
        with pytest.raises(SystemExit):
            study("parzc").main([*arguments(place, tmp_path, *more), "--nasbench201", str(tmp_path)])
        assert complaint in capsys.readouterr().err


def test_what_ranks_fewer_architectures_better_is_named_beside(study):
    sections = study("parzc_sections")

    def row(method, kendall, n_test, **more):
        return {"samples": 5, "split": "others", "method": method, "kendall": kendall, "n_test": n_test, **more}

    best = row("a", 0.5, 10, best_free=True)
    worse, learner = row("b", 0.4, 9), row("parzc", 0.9, 9, taus=[0.9])
    assert sections.free_of_fewer([best, worse, learner, row("c", None, 0), row("d", -0.6, 10)], "others") == {}
    lower = row("e", -0.6, 9)
    found = sections.free_of_fewer([best, worse, lower], "others")
    assert found == {5: lower} and sections.of_fewer(found[5]) == "-0.600 `e` of 9"
    assert sections.of_fewer(found.get(7)) == "-"
