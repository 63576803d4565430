"""Scores that are looked up, and what orders architectures by them."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from search_problems import SPACE, macro_scores

from zcpipe import open_table
from zcpipe.errors import DataError, UsageError
from zcpipe.rank import log_rank
from zcpipe.search import Guide, TableScores
from zcpipe.search.journal import Journal
from zcpipe.search.recorded import RecordedScores

SOME = [SPACE.parse(text) for text in ("00000000", "22222222", "01000000")]


def test_a_tables_scores_are_its_values(searched):
    table = open_table(searched)
    scores = TableScores.read(table, ["synflow"])
    assert set(scores.directions) == {"params", "macs", "synflow"}
    rows = table.to_arrow(["arch", "synflow"]).to_pylist()
    from zcpipe.spaces import get_space

    archs = [get_space("nasbench201").parse(row["arch"]) for row in reversed(rows)]
    assert scores.score(archs)["synflow"].tolist() == [row["synflow"] for row in reversed(rows)]


def test_every_column_with_a_direction_unless_named(searched):
    assert {"snip", "trainability", "params"} <= TableScores.read(open_table(searched)).directions.keys()


def test_an_architecture_without_scores_is_named():
    scores = macro_scores(SOME[:2])
    with pytest.raises(DataError, match="01000000 is not in the table of scores"):
        scores.score(SOME)


def test_a_text_that_was_drawn_twice_has_its_first_row():
    scores = macro_scores([SOME[0], SOME[1], SOME[0]], good=np.array([1.0, 2.0, 3.0]))
    assert scores.score([SOME[0]])["good"].tolist() == [1.0]


def test_a_guides_goodness_is_higher_where_the_score_is_better():
    scores = macro_scores()
    assert np.argmax(Guide("good", scores).goodness(SOME)) == 1
    assert np.argmax(Guide("cost", scores).goodness(SOME)) == 1
    assert np.argmax(Guide("bad", scores).goodness(SOME)) == 0


def test_why_nothing_has_a_score_names_what_was_never_run_and_who_knows_of_the_others():
    lacking = replace(macro_scores(SOME), missing={"good": np.array([True, False, False]), "cost": np.ones(3, bool)})
    never, else_ = (
        "was never run on 1 of them: `zcpipe run ... --proxies good --out DIR` adds it",
        "zcpipe status says why",
    )
    assert Guide("good", lacking).reason(SOME) == f"good {never}; {else_} proxies failed"
    assert Guide("good", lacking).reason(SOME[1:]) == f"{else_} proxies failed"
    assert Guide("cost", lacking).reason(SOME[1:]).endswith("adds it")


def test_an_aggregate_ranks_over_those_it_is_asked_about_alone():
    four = {name: np.random.default_rng(place).normal(size=3) for place, name in enumerate("eptc")}
    columns = dict(zip(("expressivity", "progressivity", "trainability", "complexity"), four.values(), strict=True))
    scores = macro_scores(SOME, **columns)
    directions = dict.fromkeys(columns, "higher")
    assert Guide("aznas", scores).goodness(SOME).tolist() == log_rank(columns, directions).tolist()
    two = {name: values[:2] for name, values in columns.items()}
    assert Guide("aznas", scores).goodness(SOME[:2]).tolist() == log_rank(two, directions).tolist()


def test_a_column_hides_an_aggregate_of_its_name():
    scores = macro_scores(SOME, vote=np.array([3.0, 1.0, 2.0]))
    assert Guide("vote", scores).goodness(SOME).tolist() == [3.0, 1.0, 2.0]


def test_names_that_mean_nothing():
    with pytest.raises(UsageError, match="unknown proxy or aggregate 'goodd'; did you mean good"):
        Guide("goodd", macro_scores(SOME))
    with pytest.raises(UsageError, match=r"aznas is made of .* no scores of expressivity, .*zcpipe run"):
        Guide("aznas", macro_scores(SOME))


@pytest.mark.parametrize("direction", ["higher", "lower"])
def test_a_predictors_output_is_a_column(searched, tmp_path, direction):
    table = open_table(searched)
    archs = table.to_arrow(["arch"])["arch"]
    mean = pa.array([None, *range(len(archs) - 1)], pa.float64())
    schema = pa.schema([("arch", pa.string()), pa.field("mean", pa.float64(), metadata={"direction": direction})])
    pq.write_table(pa.table([archs.cast(pa.string()), mean], schema=schema), tmp_path / "predicted.parquet")
    scores = TableScores.read(table, ["parzc"], tmp_path / "predicted.parquet")
    assert scores.directions["parzc"] == direction
    assert np.isnan(scores.columns["parzc"][0])
    assert scores.columns["parzc"][1:].tolist() == list(range(len(archs) - 1))


def test_a_prediction_that_is_not_there_says_how_to_have_one(searched):
    with pytest.raises(UsageError, match="parzc is what zcpipe parzc predict gives; name its file with --predicted"):
        TableScores.read(open_table(searched), ["parzc"])


class Measuring:
    """Scores that note what they measured."""

    def __init__(self):
        self.directions = {"good": "higher"}
        self.asked = []

    def score(self, archs):
        self.asked.append([str(arch) for arch in archs])
        return {"good": np.arange(len(archs), dtype=np.float64)}


def test_what_is_measured_is_measured_once_also_by_later_processes():
    measuring, kept = Measuring(), []
    journal = Journal()
    journal.append = kept.append
    scores = RecordedScores(measuring, journal)
    first = scores.score(SOME)
    assert scores.score([SOME[2], SOME[0]])["good"].tolist() == [2.0, 0.0]
    assert len(measuring.asked) == 1
    later = RecordedScores(Measuring(), Journal(found=kept))
    assert later.score(SOME)["good"].tolist() == first["good"].tolist()
    assert later._scores.asked == []


def test_a_journal_of_other_scores_is_refused():
    journal = Journal(found=[{"kind": "scored", "archs": ["0"], "scores": {"bad": [1.0]}}])
    with pytest.raises(DataError, match="the journal holds scores of bad, not of good; give another --out"):
        RecordedScores(Measuring(), journal)
