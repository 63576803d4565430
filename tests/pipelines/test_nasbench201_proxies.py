"""The study of all proxies: chooses without looking at what it is judged on, compares as told, repeats nothing."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from zcpipe import get_space, open_table
from zcpipe.errors import IdentityMismatch
from zcpipe.run import RunSpec, Sample, run
from zcpipe.scoring.columns import Column
from zcpipe.scoring.rows import ClassScorer
from zcpipe.table.schema import Header, to_arrow
from zcpipe.table.store import locked

DOCS = Path(__file__).parents[2] / "docs"
SPACE = get_space("nasbench201")
CELLS = [SPACE.sample(0, i) for i in range(60)]
SIZES = np.array([SPACE.size(cell, "cifar10").params for cell in CELLS], dtype=float)
GENERATOR = np.random.default_rng(4)
ACCURACY = 60 + 30 * (SIZES.argsort().argsort() / len(CELLS)) + GENERATOR.normal(size=len(CELLS))
SYNTHETIC = {
    "expressivity": ACCURACY + 20 * GENERATOR.normal(size=60),
    "progressivity": ACCURACY + 20 * GENERATOR.normal(size=60),
    "trainability": ACCURACY + 20 * GENERATOR.normal(size=60),
    "complexity": SIZES,
    "synflow": ACCURACY + GENERATOR.normal(size=60),
    "jacob_cov": ACCURACY + 10 * GENERATOR.normal(size=60),
    "snip": np.where(np.arange(60) == 3, np.nan, ACCURACY),
    "constant": np.zeros(60),
}


@pytest.fixture
def truth(tmp_path):
    path = tmp_path / "truth.parquet"
    columns = {"cifar10_test_200": ACCURACY, "cifar10_val_200": ACCURACY + GENERATOR.normal(size=60)}
    pq.write_table(pa.table({"arch": [str(cell) for cell in CELLS], **columns}), path)
    return path


@pytest.fixture
def population(study, truth, tmp_path):
    return study("nasbench201_population").load(make_table(tmp_path / "population", further=("constant",)), truth)


def make_table(directory, protocol="paper", further=()):
    """A finished table of synthetic values, as `zcpipe run` would have left it, and of proxies that nobody has."""
    names = tuple(name for name in SYNTHETIC if name != "constant")
    spec = RunSpec(space="nasbench201", dataset="cifar10", proxies=names, selection=Sample(n=60), protocol=protocol)
    columns = [*ClassScorer(spec).columns, *(Column(name, "proxy", "", "higher", "function", "") for name in further)]
    rows = [
        {
            "index": SPACE.index(cell),
            "arch": str(cell),
            "key": SPACE.key(cell),
            "space": "nasbench201",
            "seconds": 0.1,
            "status": "ok",
            "failures": [{"proxy": "snip", "kind": "error", "message": "failed"}] if i == 3 else [],
            "params": int(SIZES[i]),
            "macs": SPACE.size(cell, "cifar10").macs,
            **{name: None if np.isnan(values[i]) else float(values[i]) for name, values in SYNTHETIC.items()},
        }
        for i, cell in enumerate(CELLS)
    ]
    with locked(directory, Header(tuple(columns), spec.record(), spec.identity())) as store:
        store.note_run(planned=60, selection=spec.record()["selection"])
        store.commit(0, to_arrow(rows, store.header.schema), [{"native": True, "cpu": "AVX2"}])
    return open_table(directory)


def test_choice_sees_the_chosen_cells_only(study, population):
    """Another truth elsewhere leaves the path as it is; and no judged cell shares a key with a chosen one."""
    choice = study("nasbench201_choice")
    found = choice.choose(population, 20, 0)
    chosen = np.isin(population.index, choice.listed(population, 20, 0))
    keys = set(population.keys[chosen])
    others = [key for key in population.keys[~chosen] if key not in keys]
    assert 10 < found["chosen_on"] == chosen.sum()
    assert found["judged_on"] == len(others)
    for values in population.truth.values():
        values[~chosen] = values[~chosen][::-1].copy()
    again = choice.choose(population, 20, 0)
    assert again["path"] == found["path"]
    assert again["judged"] != found["judged"]


def test_choice_passes_over_what_cannot_be_told_apart_or_failed(study, population):
    choice = study("nasbench201_choice")
    found = choice.choose(population, 20, 0)
    assert choice.candidates(population)[1] == {
        "macs": "ranks as params does",
        "complexity": "ranks as params does",
        "snip": "failed on 1 of the cells",
    }
    taus = [step["kendall"] for step in found["path"]]
    assert taus == sorted(taus)
    recipes = [row["proxies"] for name, row in found["judged"].items() if name.startswith("chosen")]
    assert set(recipes[0]) <= set(choice.ONE_PASS) and not set(recipes[1]) <= set(choice.ONE_PASS)
    assert all("constant" not in recipe for recipe in recipes)
    assert {"aznas", "aznas and synflow", "params"} < set(found["judged"])
    assert set(found["judged"]["aznas"]["leave_one_out"]) == set(found["judged"]["aznas"]["proxies"])


def test_equal_keys_are_not_judged_on(study, population):
    """Of cells that nearly all share one key only those with a key of their own are judged on."""
    choice, kept = study("nasbench201_choice"), population.distinct()
    assert len(kept.keys) == len(set(population.keys))
    shared = population.keys.copy()
    shared[:] = "k"
    shared[-20:] = [f"other {i}" for i in range(20)]
    first = set(choice.listed(population, 20, 0))
    left = sum(index not in first for index in population.index[-20:])
    found = choice.choose(dataclasses.replace(population, keys=shared), 20, 0)
    assert found["judged_on"] == left


def test_differences_are_marked_on_the_terms_of_their_source(study, monkeypatch):
    """A lower-is-better sign is lost in absolute figures; validation is compared with validation."""
    report, published = study("nasbench201_report"), study("nasbench201_published")
    rows = {
        "cifar10_test_200": {"snip": -0.60, "macs": 0.50},
        "cifar10_val_200, failed ones last": {"snip": 0.60, "macs": 0.70},
        "cifar10_test_200, one cell of each key": {"snip": 0.59, "macs": 0.80},
    }
    assert set(rows) == {published.comparison(source) for source in published.SOURCES.values()}
    table = {of: {name: {"spearman": rho} for name, rho in found.items()} for of, found in rows.items()}
    found = {(d.figure.source, d.figure.proxy): d for d in report.differences({"case": {"correlations": table}})}
    assert found["ICLR2021", "snip"].value == pytest.approx(0.60 - 0.596)
    assert found["NBSZ", "macs"].value == pytest.approx(0.70 - 0.69)
    assert not found["VKDNW", "macs"].large
    assert found["APD", "macs"].value == pytest.approx(0.50 - 0.733) and found["APD", "macs"].large
    monkeypatch.setattr(report, "EXPLANATIONS", {})
    assert report.unexplained({"case": {"correlations": table}}) == ["macs", "snip"]


def test_tables_made_before_are_used_and_stages_are_not_repeated(study, truth, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    for protocol in ("paper", "fused"):
        make_table(out / f"noise-{protocol}", protocol)
    main = study("nasbench201_proxies")
    arguments = ["--truth", str(truth), "--out", str(out), "--sample", "60", "--proxies", "params,macs"]
    main.main(arguments)
    assert "noise-paper, chosen on" in capsys.readouterr().out
    page = (out / "nasbench201_proxies.md").read_text()
    cases = json.loads((out / "nasbench201_proxies.json").read_text())["cases"]
    vote = cases["noise-paper"]["correlations"]["cifar10_test_200"]["vote"]
    assert (vote["n"], vote["failed"]) == (59, 1)
    assert f"published: 0.817): {vote['pair_accuracy']:.4f}".rstrip("0") in page
    assert "not explained yet" in page
    assert (out / "nasbench201_proxies.png").stat().st_size > 0

    def again(*_):
        raise AssertionError("a stage whose output exists was repeated")

    monkeypatch.setattr(main, "choose", again)
    monkeypatch.setattr(main, "correlations", again)
    scored = []

    def counting(*given, **named):
        summary = run(*given, **named)
        scored.append(summary.new)
        return summary

    monkeypatch.setattr(main.study, "run", counting)
    main.main(arguments)
    assert scored == [0, 0]
    assert (out / "nasbench201_proxies.md").read_text() == page


def test_a_table_of_another_recipe_is_refused_and_lacking_proxies_join(study, tmp_path):
    main = study("nasbench201_proxies")

    def scored(proxies, batch_size):
        options = main.argparse.Namespace(out=tmp_path, batch_size=batch_size, images=None, workers=1)
        return open_table(main.scored(main.Case("noise", "paper", proxies, 2), options))

    scored(("params",), 4)
    with pytest.raises(IdentityMismatch, match="batch_size is 4 there and 2 here"):
        scored(("params",), 2)
    assert "num_layers" in scored(("params", "num_layers"), 4).schema.names


def test_cells_and_columns_that_lack_them_are_left_out_where_they_were_not_asked_for(study, truth, tmp_path):
    """A column that joined for some cells has failed on none of the others."""
    main, load = study("nasbench201_proxies"), study("nasbench201_population").load
    for proxies, cells in (("params", 5), ("num_layers", 3)):
        run(main.Case("noise", "paper", (proxies,), cells).spec(1, None), tmp_path / "table")
    table = open_table(tmp_path / "table")
    for cells, columns in ((3, {"params", "macs", "num_layers"}), (5, {"params", "macs"})):
        population = load(table, truth, main.Case("noise", "paper", (), cells).cells())
        assert len(population.index) == cells and population.columns.keys() == columns


def test_stages_are_made_again_where_values_have_changed(study, population):
    before = population.digest()
    assert dataclasses.replace(population).digest() == before
    population.columns["snip"][3] = 1.0  # as `zcpipe run --retry-errors` might have given it
    assert population.digest() != before


def test_an_error_ends_in_one_line_and_its_exit_code(study, capsys):
    def main():
        raise IdentityMismatch("another table")

    with pytest.raises(SystemExit) as end:
        study("study").script(main)
    assert end.value.code == 4 and capsys.readouterr().err == "error: another table\n"


def test_explanations_are_of_the_batch_of_the_page(study):
    report = study("nasbench201_report")
    assert "one batch of 64," in report.explained("snip", 64)
    assert report.explained("plain", 16) and report.explained("plain", 64) is None
    record = json.loads((DOCS / "nasbench201_proxies.json").read_text())
    assert report.page(record) == (DOCS / "nasbench201_proxies.md").read_text()
    assert "batch of 16" not in report.page({**record, "batch_size": 64})
    assert {"plain", "gradsign"} & set(report.unexplained(record["cases"], 64))
    assert report.unexplained(record["cases"]) == []
    assert f"--batch-size {record['batch_size']} " in study("nasbench201_proxies").__doc__  # the command makes the page


def test_smoke(study, truth, tmp_path):
    """A real run of a few cells, from scoring to the page."""
    out = tmp_path / "out"
    arguments = ["--out", str(out), "--docs", str(tmp_path / "docs"), "--sample", "20", "--batch-size", "2"]
    study("nasbench201_proxies").main(["--truth", str(truth), *arguments, "--proxies", "aznas", "--workers", "1"])
    cases = json.loads((tmp_path / "docs/nasbench201_proxies.json").read_text())["cases"]
    assert list(cases) == ["noise-paper", "noise-fused"]
    assert cases["noise-paper"]["correlations"]["cifar10_test_200"]["aznas"]["n"] == 20


def test_each_case_holds_what_differs_there(study):
    """And per-sample proxies stand beside what they are aggregated with."""
    main = study("nasbench201_proxies")
    names = "swap,linear_regions,ntk_condition,grad_norm,grasp,params"
    assert [(case.name, case.proxies, case.sample) for case in main.cases(names, None, None)] == [
        ("noise-paper", ("swap", "linear_regions", "grad_norm", "grasp", "params"), None),
        ("noise-fused", ("params", "swap", "linear_regions", "grad_norm", "grasp"), None),
        ("noise-paper-per-sample", ("linear_regions", "ntk_condition"), 1000),
    ]
    assert [(case.name, case.proxies, case.sample) for case in main.cases(names, "npz:images.npz", 50)] == [
        ("data-paper", ("swap", "linear_regions", "grad_norm", "grasp", "params"), 50),
        ("noise-paper", ("params", "swap", "grad_norm", "grasp"), 50),
        ("data-fused", ("params", "swap", "linear_regions", "grad_norm", "grasp"), 50),
        ("data-paper-per-sample", ("linear_regions", "ntk_condition"), 50),
    ]


def test_suites_that_rank_failures_last_are_compared_so(population):
    filled = population.failed_last()
    assert np.isnan(population.columns["snip"]).sum() == 1
    assert np.isneginf(filled.columns["snip"]).sum() == 1
    assert (filled.columns["synflow"] == population.columns["synflow"]).all()
