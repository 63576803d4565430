"""The study of NDS and NAS-Bench-101, on cells enough to see that it reads, scores, correlates and draws."""

import json
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from zcpipe.run import run

CHAIN = [[0, 1, 0], [0, 0, 1], [0, 0, 0]]
CELLS = ["maxpool3x3", "conv1x1-bn-relu", "conv3x3-bn-relu"]


def write_sample(directory, accuracies):
    sample = {
        "adjacency": [json.dumps(CHAIN)] * 3,
        "ops": [json.dumps(["input", cell, "output"]) for cell in CELLS],
        "cifar10_acc_108": accuracies,
    }
    directory.mkdir(exist_ok=True)
    pq.write_table(pa.table(sample), directory / "nasbench101_sample.parquet")


def test_three_cells_of_nasbench101(study, tmp_path):
    write_sample(tmp_path, [70.0, 80.0, 90.0])
    small = "--populations nasbench101 --sample 3 --batch-size 2 --workers 1"
    study("spaces").main([*small.split(), "--data", str(tmp_path), "--out", str(tmp_path / "out")])
    record = json.loads((tmp_path / "out" / "spaces_ranking.json").read_text())
    found = record["populations"]["nasbench101"]
    assert (found["networks"], found["inputs"], found["resolution"]) == (3, "noise", 32)
    assert found["rows"]["macs"]["spearman"] == pytest.approx(1)
    assert found["rows"]["aznas"]["n"] == 3
    text = (tmp_path / "out" / "spaces_ranking.md").read_text()
    assert "| macs | 1.000 [1.00, 1.00] |" in text and "NAS-Bench-Suite-Zero" in text
    assert (tmp_path / "out" / "spaces_ranking.png").stat().st_size > 10_000


def test_the_command_is_that_of_the_page(study):
    docs = Path(__file__).parents[2] / "docs"
    record = json.loads((docs / "spaces_ranking.json").read_text())
    side = record["populations"]["darts"]["resolution"]
    module, report = study("spaces"), study("spaces_report")
    assert f"--batch-size {record['batch_size']} --resolution {side} " in module.__doc__
    assert ("--images" in module.__doc__.split("Scores")[0]) == (
        record["populations"]["nasbench101"]["inputs"] == "data"
    )
    assert report.page(record) == (docs / "spaces_ranking.md").read_text()


def test_what_failed_everywhere_is_no_number(study):
    row = {"name": "snip", "spearman": None, "kendall": None, "failed": 3}
    assert study("spaces_report").cell(row, "spearman") == "-"


def test_accuracies_are_those_of_the_data_and_networks_those_asked_for(study, tmp_path, monkeypatch):
    """Whatever earlier runs left in the same place, of other data and of more networks."""
    module = study("spaces")
    monkeypatch.setattr(module, "cheap", lambda: ("params",))
    monkeypatch.setattr(module.study, "score", lambda spec, directory, workers: run(spec, directory))
    population = next(one for one in module.POPULATIONS if one.name == "nasbench101")
    for name, accuracies, sample, networks, rho in (
        ("one", [70.0, 80.0, 90.0], None, 3, 1),
        ("other", [90.0, 80.0, 70.0], 2, 2, -1),
    ):
        write_sample(tmp_path / name, accuracies)
        asked = {"images": None, "batch_size": 1, "resolution": None, "sample": sample, "workers": 1}
        found = module.ranked(population, Namespace(data=tmp_path / name, out=tmp_path / "out", **asked))
        assert (found["networks"], found["rows"]["params"]["n"]) == (networks, networks)
        assert found["rows"]["params"]["spearman"] == pytest.approx(rho)


def test_the_truth_of_nds_is_made_anew(study, tmp_path, monkeypatch):
    module = study("spaces")

    def import_file(file, path):
        assert not path.exists()  # a reader overwrites nothing
        pq.write_table(pa.table({"arch": [file.parent.name]}), path)

    monkeypatch.setattr(module, "reader", lambda name: SimpleNamespace(import_file=import_file))
    population = module.Population("darts", "nds/darts", "imagenet", "DARTS_in.json", "acc")
    for name in ("one", "other"):
        path = population.truth(tmp_path / name, tmp_path / "out")
        assert pq.read_table(path)["arch"].to_pylist() == [name]
    assert [one.name for one in (tmp_path / "out").iterdir()] == [path.name]


def test_unknown_populations_are_refused_and_blanks_are_none(study, tmp_path, monkeypatch, capsys):
    module = study("spaces")
    asked = []
    monkeypatch.setattr(module, "ranked", lambda population, options: asked.append(population.name))
    monkeypatch.setattr(module, "page", lambda record: "")
    monkeypatch.setattr(module, "figure", lambda results, path: path.write_text(""))
    options = ["--data", str(tmp_path), "--docs", str(tmp_path / "docs")]
    with pytest.raises(SystemExit):
        module.main([*options, "--populations", "drats"])
    assert "no population is called drats; there are darts, enas" in capsys.readouterr().err
    assert not (tmp_path / "docs").exists() and not asked
    module.main([*options, "--populations", "enas, darts"])
    assert asked == ["darts", "enas"]


def test_nothing_is_written_where_drawing_fails(study, tmp_path):
    def draw(path):
        path.write_text("a part")
        raise ValueError

    (tmp_path / "page.json").write_text("before")
    with pytest.raises(ValueError):
        study("study").publish(tmp_path / "page", "after", "after", draw)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("page.json", "before")]
