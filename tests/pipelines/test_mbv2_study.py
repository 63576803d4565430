"""The study of searches in mbv2, at a few candidates: it searches, keeps, compares, draws and writes."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from zcpipe.rank import log_rank

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
