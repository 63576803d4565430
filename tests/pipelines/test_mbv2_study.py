"""The study of searches in mbv2, at a few candidates: it searches, keeps, compares, draws and writes."""

import json
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from zcpipe import get_space
from zcpipe.rank import log_rank
from zcpipe.run import run

SMALL = "--budget 12 --seeds 2 --limits 600M --resolution 32 --batch-size 2 --full-size 3 --workers 1"


@pytest.fixture
def searched(study, tmp_path, capsys):
    """Run the study twice; return its module, its directories and what it wrote, which is the same."""
    module = study("mbv2_search")
    arguments = [*SMALL.split(), "--out", str(tmp_path / "out"), "--docs", str(tmp_path / "docs")]
    module.main(arguments)
    page = capsys.readouterr().out
    module.main(arguments)  # nothing is searched or timed again
    assert capsys.readouterr().out == page == (tmp_path / "docs" / "mbv2_search.md").read_text()
    return module, tmp_path, page


def test_what_is_ranked_is_all_histories_and_the_published_networks(searched):
    module, place, page = searched
    record = json.loads((place / "docs" / "mbv2_search.json").read_text())
    (of,) = record["limits"]
    names = [f"{case.proposals}-{case.population}" for case in module.CASES]
    histories = [pq.read_table(place / "out" / f"600M-{name}" / "history.parquet") for name in names]
    published = module.open_table(place / "out" / "600M-published").to_arrow(["arch", *module.PROXIES])
    assert set(published["arch"].to_pylist()) == {module.written_out(text) for text in module.SEARCHED[600e6]}
    columns = {name: np.concatenate([part[name] for part in (published, *histories)]) for name in module.PROXIES}
    aggregate = log_rank(columns, module.DIRECTIONS)
    assert of["population"] == 3 + 3 * 2 * 12 == len(aggregate)
    assert [one["aggregate"] for one in of["published"]] == aggregate[:3].tolist()
    assert [one["place"] for one in of["published"]] == [int((aggregate > value).sum()) + 1 for value in aggregate[:3]]
    first, last = of["cases"][0], of["cases"][-1]
    assert first["picks"][1]["aggregate"] == pytest.approx(aggregate[3:][12:24].max())
    assert first["curve"] == sorted(first["curve"]) and len(first["curve"]) == len(record["points"]) == 12
    assert first["high"][-1] == pytest.approx(aggregate[3:27].max(), abs=1e-4)
    for case in of["cases"]:
        assert case["candidates"] == 24 <= case["tries"] and case["failed"] == 0
        assert case["most_flops"] <= 600e6 and case["most_layers"] <= 14 and case["cpu_seconds"] > 0
    assert last["case"] == "random"
    assert "nan" not in page and "None" not in page and page.count("| 600M |") == 3 + 3 * 2 + 3 + 1
    assert (place / "docs" / "mbv2_search.png").stat().st_size > 10_000
    (full,) = record["full_size"]
    assert full["networks"] == 3 and -1 <= full["aznas"] <= 1


def test_an_unknown_limit(study, capsys):
    with pytest.raises(SystemExit):
        study("mbv2_search").main(["--limits", "450M,700M"])
    assert "no limit is called 700M; there are 450M, 600M, 1G" in capsys.readouterr().err


def test_networks_that_an_earlier_run_asked_for_are_left_out(study, tmp_path, monkeypatch):
    module = study("mbv2_search")
    monkeypatch.setattr(module.study, "score", lambda spec, directory, workers: run(spec, directory))
    options = Namespace(out=tmp_path, batch_size=1, workers=1)
    texts = [str(get_space("mbv2").sample(0, i)) for i in range(3)]
    assert {*module.scored(options, "table", texts[:2], 32)["arch"].to_pylist()} == {*texts[:2]}
    assert module.scored(options, "table", texts[2:], 32)["arch"].to_pylist() == texts[2:]


def test_sizes_are_compared_on_what_has_all_proxies_at_both(study, tmp_path, monkeypatch):
    module = study("mbv2_search")
    place = tmp_path / "450M-evolution-1024"
    place.mkdir()
    pq.write_table(pa.table({"arch": [f"network {i}" for i in range(6)]}), place / "history.parquet")

    def scored(options, name, texts, resolution=None):
        columns = {proxy: [0.0, 1.0, 2.0, 3.0, 4.0, 5.0] for proxy in module.PROXIES}
        columns["trainability"][4] = 4.0 if resolution else None  # failed at full size
        return pa.table({"arch": texts, **columns})

    monkeypatch.setattr(module, "scored", scored)
    found = module.agreement(Namespace(out=tmp_path, full_size=6, resolution=32), "450M")
    assert found["networks"] == 5 and found["aznas"] == pytest.approx(1)


def test_a_search_that_was_moved_is_read_where_it_is(study, tmp_path, monkeypatch):
    module = study("mbv2_search")
    monkeypatch.setattr(module, "aznas_search", lambda *_, **__: SimpleNamespace(failed=0, searches=[]))
    options = Namespace(out=tmp_path / "a", batch_size=1, resolution=32, budget=1, seeds=1, workers=1)
    name = "450M-evolution-1024/history.parquet"
    assert module.searched(options, "450M", module.CASES[0])["history"] == tmp_path / "a" / name
    options.out = (tmp_path / "a").rename(tmp_path / "b")
    monkeypatch.delattr(module, "aznas_search")  # what was searched is not searched again
    assert module.searched(options, "450M", module.CASES[0])["history"] == tmp_path / "b" / name


def test_what_failed_has_no_place(study, tmp_path):
    module, report = study("mbv2_search"), study("mbv2_report")
    aggregates = np.array([np.nan, -1.0, -2.0])
    assert module.placed(aggregates[0], aggregates) == {"aggregate": None, "place": None}
    assert module.placed(-2.0, aggregates) == {"aggregate": -2.0, "place": 2}
    texts = [str(get_space("mbv2").sample(0, i)) for i in range(3)]
    columns = {"seed": [0] * 3, "number": [0, 1, 2], "arch": texts, "params": [1] * 3}
    pq.write_table(pa.table(columns), tmp_path / "history.parquet")
    case = module.summarised({"history": tmp_path / "history.parquet"}, aggregates, 3)
    assert case["curve"] == [None, -1.0, -1.0] and case["picks"][0]["number"] == 1

    docs = Path(__file__).parents[2] / "docs"
    record = json.loads((docs / "mbv2_search.json").read_text())
    assert report.page(record) == (docs / "mbv2_search.md").read_text()
    record["limits"][0]["published"][0] |= module.placed(np.nan, aggregates)
    record["limits"][0]["cases"][0]["curve"][0] = None
    assert "| 450M | failed | - |" in " ".join(report.page(record).split()) and "failed." in report.page(record)
    report.figure(record, tmp_path / "figure.png")
