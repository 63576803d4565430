"""Importance: what the target is made of counts, and nothing else does."""

import json

import numpy as np
import pytest
from parzc_tables import proxy, statistic, table

from zcpipe.errors import DataError, UsageError
from zcpipe.parzc.importance import draw_importance, measure_importance, tabulate_importance
from zcpipe.parzc.labels import Labels, split
from zcpipe.parzc.predictors.boosted_trees import BoostedTrees
from zcpipe.parzc.predictors.ridge import Ridge
from zcpipe.parzc.spec import FeatureSpec
from zcpipe.parzc.tuning import _folds, tune

SLOTS = ("stem", "cells.0.layers.0", "classifier")
SPEC = FeatureSpec(statistics=("snip@layer", "fisher@layer"), proxies=("params",))
QUICK = BoostedTrees(depths=(2,), trees=(20,), rate=0.3, features=1.0)


@pytest.fixture(scope="module")
def held():
    """Architectures whose target is the snip of one layer."""
    rng = np.random.default_rng(0)
    snip, fisher = rng.normal(size=(2, 120, 3)).astype(np.float32)
    columns = {
        statistic("snip@layer", SLOTS): snip.tolist(),
        statistic("fisher@layer", SLOTS): fisher.tolist(),
        proxy("params"): rng.normal(size=120),
    }
    return table(columns), Labels("test", "higher", snip[:, 1].astype(np.float64))


@pytest.fixture(scope="module")
def found(held):
    return measure_importance(*held, SPEC, "60", 2, learner=QUICK)


@pytest.fixture(scope="module")
def rows(found):
    return found.rows


def test_what_the_parts_lose_is_seen_beside_what_the_whole_has(found):
    assert (found.target, found.samples, found.seeds) == ("test", 60, 2)
    assert found.kendall > 0.7
    assert found.kendall_error >= 0
    assert f"{found.kendall:.3f} ±" in found.title
    assert "2 draws" in found.title


def test_the_layer_and_statistic_that_matter_are_found(rows):
    assert [(r.kind, r.name) for r in rows] == [
        *(("node", slot) for slot in SLOTS),
        *(("column", name) for name in ("snip@layer", "fisher@layer", "params")),
    ]
    by_name = {r.name: r for r in rows}
    for name in ("cells.0.layers.0", "snip@layer"):
        assert by_name[name].gain > 0.8
        assert by_name[name].permutation > 0.5
        assert by_name[name].gain_error >= 0
    assert by_name["params"].gain < 0.2
    assert abs(by_name["params"].permutation) < 0.2


def test_gains_are_shares(rows):
    for kind, most in (("node", 1.0), ("column", 1.0)):
        assert 0 < sum(r.gain for r in rows if r.kind == kind) <= most + 1e-9
    assert sum(r.gain for r in rows if r.kind == "column") == pytest.approx(1.0)


@pytest.mark.parametrize("higher", [3, 117])
def test_draws_without_an_order_to_learn_or_to_rank_give_no_number_and_say_so(held, higher):
    """As `evaluate` does; of 10 learnt from, or of 110 or 2 ranked, all may have one label."""
    few = Labels("few", "higher", np.where(np.arange(120) < higher, 91.0, 90.0))
    found = measure_importance(held[0], few, SPEC, "10" if higher < 60 else "118", 4, learner=QUICK)
    drawn = [split(np.arange(120), found.samples, seed) for seed in range(4)]
    expected = sum(any(np.ptp(few.values[rows]) == 0 for rows in (one.train, one.test)) for one in drawn)
    assert found.unordered == expected > 0
    assert f"no number, for {expected} of the draws left labels to learn or to rank that are all equal" in found.title
    assert np.isnan(found.kendall)
    assert all(np.isnan([row.gain, row.gain_error, row.permutation]).all() for row in found.rows)
    assert draw_importance(found, ".svg").startswith(b"<?xml")
    assert tabulate_importance(found)


def test_numbers_and_figures_are_files(found, tmp_path):
    import pyarrow.parquet as pq

    (tmp_path / "importance.parquet").write_bytes(tabulate_importance(found))
    assert pq.read_table(tmp_path / "importance.parquet").to_pylist() == [vars(r) for r in found.rows]
    said = pq.read_schema(tmp_path / "importance.parquet").metadata
    assert (said[b"target"], said[b"seeds"]) == (b"test", b"2")
    assert float(said[b"kendall"]) == found.kendall
    for ending, first in ((".png", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<?xml")):
        assert draw_importance(found, ending).startswith(first)


def test_tuning_chooses_by_the_labelled_rows_that_are_left_out(held):
    table_, labels = held
    told = []
    options = {"samples": "40", "trials": 4, "seed": 1}
    tried = tune(table_, labels, SPEC, "ridge", **options, progress=lambda *counts: told.append(counts))
    assert [one.kendall for one in tried] == sorted((one.kendall for one in tried), reverse=True)
    assert {} in [one.parameters for one in tried]
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert tune(table_, labels, SPEC, "ridge", **options) == tried


def test_tuning_sees_no_label_but_those_drawn(held):
    from zcpipe.parzc.labels import draw

    table_, labels = held
    drawn = draw(120, 40, 0)
    hidden = Labels("test", "higher", np.where(np.isin(np.arange(120), drawn), labels.values, -1e9))
    assert tune(table_, labels, SPEC, "ridge", samples="40", trials=3) == tune(
        table_, hidden, SPEC, "ridge", samples="40", trials=3
    )


def test_tuned_parameters_can_be_given(held):
    tried = tune(*held, SPEC, "mabn", samples="20", trials=2, folds=2)
    other = next(one for one in tried if one.parameters)
    assert set(other.parameters["settings"]) == {"learning_rate", "weight_decay", "epochs", "batch_size", "loss"}
    json.dumps(other.parameters)


def test_a_trial_that_fails_takes_no_other_with_it(held, monkeypatch):
    fit, calls = Ridge.fit, []

    def diverging(self, *arguments):
        calls.append(self)
        if len(calls) == 1:
            raise DataError("the training diverged")
        return fit(self, *arguments)

    monkeypatch.setattr(Ridge, "fit", diverging)
    told = []
    tried = tune(*held, SPEC, "ridge", samples="40", trials=3, progress=lambda *counts: told.append(counts))
    assert len(tried) == 2
    assert told == [(1, 3), (2, 3), (3, 3)]
    calls.clear()
    with pytest.raises(DataError, match="all 1 trials failed, the last so: the training diverged"):
        tune(*held, SPEC, "ridge", samples="40", trials=1)


def test_folds_keep_keys_together_and_leave_enough():
    keys = np.repeat(np.arange(20), 3)
    fold = _folds(keys, 3, 0)
    assert all(len(set(fold[keys == key])) == 1 for key in range(20))
    with pytest.raises(DataError, match="too few for 3 folds that leave 10"):
        _folds(np.arange(12), 3, 0)


def test_what_cannot_be_tuned(held):
    with pytest.raises(UsageError, match="parzc has no parameters to choose"):
        tune(*held, SPEC, "parzc", samples="40")
    with pytest.raises(UsageError, match="unknown predictor"):
        tune(*held, SPEC, "rigde", samples="40")
    with pytest.raises(UsageError, match="trials must be at least 1, got 0"):
        tune(*held, SPEC, "ridge", samples="40", trials=0)
