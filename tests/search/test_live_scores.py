"""Scores that are computed when asked for: those of a table, wherever they are computed, and once."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from plugin_spaces import plugins_installed

from zcpipe.errors import DataError, UsageError
from zcpipe.run import Archs, RunSpec, run
from zcpipe.search import AzNasSpec, aznas_search
from zcpipe.search.journal import Journal, opened
from zcpipe.search.live import LiveScores, live_scores
from zcpipe.spaces import get_space
from zcpipe.table import open_table

ORDER = (7, 0, 23, 1, 7, 12)  # 0 and 1 share a key; 7 comes twice
PROXIES = ("expressivity", "trainability", "params")
IDENTITY = {"kind": "test"}


@pytest.fixture(scope="module", autouse=True)
def hazards():
    """Install the spaces of tests/plugins for this process and its children."""
    with plugins_installed():
        yield


def spec(**fields):
    plain = {"space": "hazards", "dataset": "tiny", "proxies": PROXIES, "batch_size": 4}
    return RunSpec.model_validate({**plain, **fields})


def members(numbers, space="hazards"):
    return [get_space(space).parse(f"member-{number}") for number in numbers]


def nowhere():
    raise AssertionError("nothing is to be computed")


@pytest.mark.parametrize(("space", "workers"), [("hazards", None), ("endless", None), ("hazards", 1), ("endless", 2)])
def test_are_those_of_a_table_in_the_order_asked(space, workers, tmp_path):
    archs = members(ORDER, space)
    listed = Archs(texts=tuple(str(arch) for arch in archs))
    run(spec(space=space, selection=listed), tmp_path / "table")
    rows = open_table(tmp_path / "table").lookup([str(arch) for arch in archs])
    with live_scores(spec(space=space), Journal(), workers) as scores:
        found = {
            name: np.concatenate([scores.score(archs[:2])[name], scores.score(archs[2:])[name]]) for name in PROXIES
        }
        assert scores.directions["params"] == "higher" and set(scores.directions) == {*PROXIES, "macs"}
    for name in PROXIES:
        assert found[name].tolist() == rows[name].to_pylist(), name


def test_failures_are_nan_with_status_and_reason(monkeypatch):
    monkeypatch.setenv("HAZARDS", json.dumps({"2": "raise", "4": "kill", "6": "hang"}))
    with live_scores(spec(), Journal(), workers=2) as scores:
        fine, raised, killed = scores.scored(members((0, 3, 4)))
    with live_scores(spec(), Journal(), workers=1, timeout=2.0) as impatient:
        (hung,) = impatient.scored(members([7]))
    assert (fine.status, fine.reason) == ("ok", "") and math.isfinite(fine.values["expressivity"])
    assert (raised.status, killed.status, hung.status) == ("error", "error", "timeout")
    assert "told to raise for member-2" in raised.reason
    assert killed.reason.endswith("SIGKILL, as the system does when memory runs out, twice")
    assert hung.reason == "no result within 2 s"
    for one in (raised, killed, hung):
        assert math.isnan(one.values["expressivity"]) and one.values["params"] > 0
    assert np.isnan(scores.score(members((3, 4)))["trainability"]).all()


def test_what_failed_to_be_measured_is_told_apart_by_proxy():
    with live_scores(spec(proxies=("synflow", "meco", "params"), space="endless"), Journal()) as scores:
        (one,) = scores.scored(members([5], "endless"))
    failed = [name for name, value in one.values.items() if math.isnan(value)]
    assert one.status == ("partial" if failed else "ok")
    assert all(f"{name}: " in one.reason for name in failed)


def test_what_the_journal_holds_is_not_computed_again(tmp_path, monkeypatch):
    monkeypatch.setenv("HAZARDS", json.dumps({"4": "raise"}))
    archs = members((4, 8, 5))
    with opened(tmp_path / "s", IDENTITY) as journal, live_scores(spec(), journal) as scores:
        before = scores.scored(archs)
        assert scores.scored(archs) == before
    monkeypatch.delenv("HAZARDS")
    with opened(tmp_path / "s", IDENTITY) as journal:
        after = LiveScores(spec(), journal, nowhere).scored([*archs, archs[0]])
        assert repr(after) == repr([*before, before[0]]), "also what failed, and how long it took"
        with pytest.raises(AssertionError, match="nothing is to be computed"):
            LiveScores(spec(), journal, nowhere).scored(members([9]))
        with pytest.raises(DataError, match=r"holds scores of .*, not of expressivity, params, macs"):
            LiveScores(spec(proxies=("expressivity",)), journal, nowhere)


def test_they_can_be_given_a_journal_later(tmp_path):
    with opened(tmp_path / "s", IDENTITY) as journal, live_scores(spec()) as scores:
        scores.keep(journal)
        before = scores.scored(members((1, 2)))
    with opened(tmp_path / "s", IDENTITY) as journal, live_scores(spec()) as scores:
        scores.keep(journal)
        scores._make = nowhere
        assert scores.scored(members((1, 2))) == before


def test_many_are_recorded_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("zcpipe.search.live.MOST", 2)
    with opened(tmp_path / "s", IDENTITY) as journal, live_scores(spec(), journal) as scores:
        scores.scored(members((1, 2, 3, 4, 5)))
    with opened(tmp_path / "s", IDENTITY) as journal:
        assert [len(record["archs"]) for record in journal.found] == [2, 2, 1]


def test_why_scores_are_lacking_is_counted(tmp_path, monkeypatch):
    monkeypatch.setenv("HAZARDS", json.dumps({"2": "raise", "4": "raise"}))
    with opened(tmp_path / "s", IDENTITY) as journal, live_scores(spec(), journal) as scores:
        scores.scored(members((0, 2, 3, 4)))
        assert scores.failures.total() == 3 and not any("member-0" in reason for reason in scores.failures)
        expected = scores.failures
    with opened(tmp_path / "s", IDENTITY) as journal, live_scores(spec(), journal) as scores:
        assert scores.failures == expected


def test_a_batch_is_recorded_whole(tmp_path):
    with opened(tmp_path / "s", IDENTITY) as journal, live_scores(spec(), journal) as scores:
        scores.scored(members((1, 2, 3)))
        scores.scored(members((3, 2)))
        scores.scored(members((3, 5)))
    with opened(tmp_path / "s", IDENTITY) as journal:
        assert [record["archs"] for record in journal.found] == [["member-1", "member-2", "member-3"], ["member-5"]]


def test_refuses_options_that_mean_nothing():
    with pytest.raises(UsageError, match="workers must be at least 1"), live_scores(spec(), Journal(), workers=0):
        pass
    with pytest.raises(UsageError, match="timeout"), live_scores(spec(), Journal(), workers=1, timeout=0):
        pass
    with pytest.raises(UsageError, match="unknown dataset 'huge'"), live_scores(spec(dataset="huge"), Journal()):
        pass


def test_a_candidate_of_aznas_without_a_key_stands_for_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("HAZARD_ASKED", "key 31")
    search = AzNasSpec(run=spec(proxies=("params",), space="endless"), budget=20, batch=20, proposals="random")
    history = aznas_search(search, tmp_path).history().to_pylist()
    (bad,) = [row for row in history if row["arch"] == "member-31"]
    assert (bad["key"], bad["status"]) == ("member-31", "error")
    assert sum(row["status"] == "ok" for row in history) == 19
