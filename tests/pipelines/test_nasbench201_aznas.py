"""The study of AZ-NAS on NAS-Bench-201, on a few cells whose table another made, and with a truth that lacks some."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from zcpipe import open_table
from zcpipe.proxies import resolve
from zcpipe.run import Range, RunSpec, run

DOCS = Path(__file__).parents[2] / "docs"
CELLS = 12


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The directory of a table of cells in the midst of the space, which stand for all of it."""
    out = tmp_path_factory.mktemp("aznas")
    names = tuple(proxy.name for proxy in resolve("aznas"))
    part = Range(start=9000, stop=9000 + CELLS)
    run(RunSpec(space="nasbench201", dataset="cifar10", proxies=names, batch_size=2, selection=part), out / "table")
    return out / "table"


@pytest.fixture
def written(study, made, tmp_path, monkeypatch):
    """Run the study where the truth knows only some cells, and return the text of its numbers and of its page."""
    module = study("nasbench201_aznas")
    monkeypatch.setattr(module, "score", lambda *_: made)

    def write(known):
        archs = open_table(made).to_arrow(["arch"])["arch"].to_pylist()
        truth = {"arch": [archs[i] for i in known], "cifar10_test_200": [50.0 + i for i in known]}
        pq.write_table(pa.table(truth), tmp_path / "truth.parquet")
        place = tmp_path / "new" / "docs"
        module.main(["--truth", str(tmp_path / "truth.parquet"), "--docs", str(place), "--cases", "0:2"])
        assert (place / "nasbench201_aznas.png").stat().st_size > 10_000
        return [(place / f"nasbench201_aznas.{kind}").read_text() for kind in ("json", "md")]

    return write


def test_a_truth_of_all_cells_and_no_log(written, made):
    numbers, page = written(range(CELLS))
    (case,) = json.loads(numbers)["cases"]
    best = open_table(made).top(1)["index"][0].as_py()
    assert case["picked"]["index"] == best and case["picked"]["cifar10_test_200"] == 50.0 + best - 9000
    assert page.count(f"All {CELLS} cells against") == 1 and "| unknown | 90" in page


def test_a_truth_that_lacks_the_picked_cell_and_others(written, made):
    picked = open_table(made).top(1)["index"][0].as_py() - 9000
    known = [i for i in range(CELLS) if i != picked][:7]
    log = made.parent / "cpu.jsonl"
    log.write_text(json.dumps({"table": "table", "rows": CELLS, "cpu_seconds": 12.0}) + "\n")
    try:
        numbers, page = written(known)
    finally:
        log.unlink()
    (case,) = json.loads(numbers, parse_constant=pytest.fail)["cases"]
    assert (case["cells"], case["rows"], case["picked"]["cifar10_test_200"]) == (CELLS, 7, None)
    assert f"Those cells of {CELLS} that have scores and an accuracy (7) against" in page
    assert f"| 12 | {9000 + picked} | unknown |" in page and "nan" not in page


def test_what_is_not_known_has_no_place(study):
    assert study("study").places(np.array([50, np.nan, 90])).tolist() == pytest.approx([1, np.nan, 2], nan_ok=True)


def test_the_command_without_options_makes_the_page(study):
    module = study("nasbench201_aznas")
    record = json.loads((DOCS / "nasbench201_aznas.json").read_text())
    assert [(case["seed"], case["batch"]) for case in record["cases"]] == list(module.CASES)
    assert module.page(record["cases"], record["target"]) == (DOCS / "nasbench201_aznas.md").read_text()
