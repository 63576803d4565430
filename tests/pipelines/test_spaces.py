"""The study of NDS and NAS-Bench-101, on cells enough to see that it reads, scores, correlates and draws."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

CHAIN = [[0, 1, 0], [0, 0, 1], [0, 0, 0]]
CELLS = ["maxpool3x3", "conv1x1-bn-relu", "conv3x3-bn-relu"]


def test_three_cells_of_nasbench101(study, tmp_path):
    sample = {
        "adjacency": [json.dumps(CHAIN)] * 3,
        "ops": [json.dumps(["input", cell, "output"]) for cell in CELLS],
        "cifar10_acc_108": [70.0, 80.0, 90.0],
    }
    pq.write_table(pa.table(sample), tmp_path / "nasbench101_sample.parquet")
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


def test_what_failed_everywhere_is_no_number(study):
    row = {"name": "snip", "spearman": None, "kendall": None, "failed": 3}
    assert study("spaces_report").cell(row, "spearman") == "-"
