"""The study of AutoFormer, on networks enough to see that it reads, scores, correlates and draws."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest


def test_three_networks(study, tmp_path, capsys, monkeypatch):
    module = study("autoformer")
    monkeypatch.setattr(module, "proxies", lambda: ("expressivity", "trainability", "complexity", "nwot"))
    archs = [
        json.dumps({"hidden_dim": e, "depth": 12, "mlp_ratio": [4.0] * 12, "num_heads": [3] * 12})
        for e in (192, 216, 240)
    ]
    accuracies = {target: [70.0, 80.0, 90.0] for target in module.TARGETS}
    pq.write_table(pa.table({"space": ["autoformer"] * 3, "arch": archs, **accuracies}), tmp_path / module.FILE)
    small = "--sample 3 --batch-size 2 --resolution 16 --workers 1"
    module.main([*small.split(), "--data", str(tmp_path), "--out", str(tmp_path / "out")])
    record = json.loads((tmp_path / "out" / "autoformer.json").read_text())
    assert (record["networks"], record["resolution"], record["inputs"]) == (3, 16, "noise")
    rows = record["targets"]["c100_base_acc"]["rows"]
    assert rows["macs"]["spearman"] == pytest.approx(1)
    assert rows["nwot"]["failed"] == 3 and rows["aznas_vit"]["n"] == 3
    text = (tmp_path / "out" / "autoformer.md").read_text()
    assert "| macs | 1.000 [1.00, 1.00] |" in text and "| nwot | - |" in text
    assert "| macs | 1.000 [1.00, 1.00] |" in capsys.readouterr().out
    assert (tmp_path / "out" / "autoformer.png").stat().st_size > 10_000


def test_accuracies_are_those_of_the_data(study, tmp_path):
    """Whatever an earlier run with other data left in the same place."""
    module = study("autoformer")
    arch = json.dumps({"hidden_dim": 192, "depth": 12, "mlp_ratio": [4.0] * 12, "num_heads": [3] * 12})
    for accuracy in (70.0, 80.0):
        file = pa.table({"space": ["autoformer"], "arch": [arch], **{target: [accuracy] for target in module.TARGETS}})
        pq.write_table(file, tmp_path / module.FILE)
        truth = module.truth_of(tmp_path / module.FILE, tmp_path / "out")
        assert pq.read_table(truth)[module.TARGETS[0]].to_pylist() == [accuracy]
