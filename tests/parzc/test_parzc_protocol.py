"""The protocol: no leak between the splits, the same rows for all, the same results whatever computes them."""

import math
from dataclasses import asdict

import numpy as np
import pytest

from zcpipe import open_table
from zcpipe.errors import DataError, UsageError
from zcpipe.parzc.features import Encoder
from zcpipe.parzc.labels import Labels, split
from zcpipe.parzc.parallel import Pool
from zcpipe.parzc.predictors import Context, predictor
from zcpipe.parzc.predictors.base import PARTS, columns, part_of
from zcpipe.parzc.protocol import Method, evaluate, parse_methods
from zcpipe.parzc.spec import FeatureSpec
from zcpipe.rank import correlate
from zcpipe.rank.population import correlate_table

SPEC = FeatureSpec(statistics=("snip@layer", "synflow@layer"), proxies=("params", "snip", "expressivity"))
TREES = '{"trees": 10}'
METHODS = [Method("ridge"), Method("extra-trees", "proxies", TREES), Method("extra-trees", "both", TREES)]


@pytest.fixture(scope="module")
def table(directory):
    return open_table(directory)


@pytest.fixture(scope="module")
def labels(table, truth):
    return Labels.read(table, truth, "test"), Labels.read(table, truth, "val")


@pytest.fixture(scope="module")
def rows(table, labels):
    return evaluate(table, *labels, SPEC, METHODS, ["12", "25%"], 3)


def of(rows, method, samples=12, which="others", features=None):
    found = [r for r in rows if (r.method, r.samples, r.split) == (method, samples, which)]
    return next(r for r in found if features in (None, r.features))


def keys_of(table):
    return np.unique(table.to_arrow(["key"])["key"].to_pylist(), return_inverse=True)[1]


def test_a_row_is_what_one_would_compute_by_hand(table, labels, rows):
    test, val = labels
    encoder = Encoder.fit(table, SPEC)
    x = encoder.encode(table).x
    taus = []
    for seed in range(3):
        drawn = split(keys_of(table), 12, seed)
        context = Context(encoder.coordinates, x)
        fitted = predictor("ridge").fit(x[drawn.train], val.values[drawn.train], context, seed)
        taus.append(correlate(fitted.predict(x[drawn.test]).mean, test.values[drawn.test]).kendall)
    row = of(rows, "ridge")
    assert [one.kendall for one in row.seeds] == pytest.approx(taus)
    assert row.kendall == pytest.approx(np.mean(taus))
    assert row.kendall_error == pytest.approx(np.std(taus, ddof=1) / math.sqrt(3))


def test_labels_of_tested_architectures_are_not_seen(table, labels, rows):
    test, val = labels
    drawn = split(keys_of(table), 12, 0)
    other = val.values.copy()
    other[drawn.test] = np.random.default_rng(0).permutation(other[drawn.test])
    again = evaluate(table, test, Labels("val", "higher", other), SPEC, METHODS[:1], ["12"], 1)
    assert of(again, "ridge").kendall == of(rows, "ridge").seeds[0].kendall


def test_published_split_has_everybody_in_it(table, rows):
    assert {r.n_test for r in rows if r.split == "published"} == {48}
    sizes = {len(split(keys_of(table), 12, seed).test) for seed in range(3)}
    assert {r.n_test for r in rows if r.split == "others" and r.samples == 12} == {min(sizes)}
    assert {r.samples for r in rows} == {12}


def test_what_needs_no_training_is_what_correlate_says(table, labels, rows):
    known = {r.name: r for r in correlate_table(table, labels[0].values, "test", {})}
    assert {"params", "macs", "snip", "aznas", "aznas_linear"} < known.keys()
    for name, expected in known.items():
        assert of(rows, name, which="published").kendall == pytest.approx(expected.kendall, nan_ok=True)
    assert of(rows, "parzc-sinusoidal:snip@layer").features == ""
    assert of(rows, "parzc-decaying-minmax").n_test > 0


def test_one_is_the_best_of_what_needs_no_training(rows):
    for which in ("others", "published"):
        free = [r for r in rows if not r.features and r.split == which]
        best = [r for r in free if r.best_free]
        assert [r.kendall for r in best] == [max(r.kendall for r in free if not math.isnan(r.kendall))]
    assert not any(r.best_free for r in rows if r.features)


def test_what_ranks_fewer_rows_than_the_learners_is_not_the_best(table, labels, monkeypatch):
    """A column with values of six rows, in the right order, would be called better than all that rank the 48."""
    test, val = labels
    few = np.full(48, np.nan)
    few[:6] = test.values[:6]
    kept = {"params": table.values(["params"])["params"], "few": few}
    monkeypatch.setattr("zcpipe.parzc.protocol.training_free", lambda table: (kept, dict.fromkeys(kept, "higher")))
    found = evaluate(table, test, val, SPEC, METHODS[:1], ["12"], 2)
    assert of(found, "few", which="published").kendall == pytest.approx(1)
    assert [r.method for r in found if r.best_free] == ["params", "params"]
    assert of(found, "few", which="published").n_test == 6
    del kept["params"]
    found = evaluate(table, test, val, SPEC, METHODS[:1], ["12"], 2)
    assert [r.method for r in found if r.best_free] == ["few", "few"]


def test_learners_are_compared_with_the_best_trees_seed_by_seed(rows):
    trees = [r for r in rows if r.method == "extra-trees" and r.split == "others"]
    best = max(trees, key=lambda r: r.kendall)
    row = of(rows, "ridge")
    assert row.compared_with == f"extra-trees:{best.features}"
    gaps = [a.kendall - b.kendall for a, b in zip(row.seeds, best.seeds, strict=True)]
    assert row.difference == pytest.approx(np.mean(gaps))
    assert row.difference_error == pytest.approx(np.std(gaps, ddof=1) / math.sqrt(3))
    assert of(rows, "extra-trees", features=best.features).difference == 0
    assert math.isnan(of(rows, "params").difference)


def test_trees_are_the_best_by_what_the_directions_of_the_targets_say(table, labels, rows):
    """Learning what is better lower, and testing by what is better higher, good predictions correlate negatively."""
    test, val = labels
    contrary = evaluate(table, test, Labels("hours", "lower", -val.values), SPEC, METHODS, ["12"], 3)
    trees = [r for r in contrary if r.method == "extra-trees" and r.split == "others"]
    best = min(trees, key=lambda r: r.kendall)
    assert best.kendall < -0.3
    row = of(contrary, "ridge")
    assert row.compared_with == f"extra-trees:{best.features}"
    assert row.difference == pytest.approx(best.kendall - row.kendall)


def test_coverage_is_of_what_was_learnt(table, labels):
    found = evaluate(table, *labels, SPEC, METHODS[1:2], ["12"], 2)
    row = of(found, "extra-trees")
    assert 0 < row.coverage_68 <= row.coverage_95 <= 1
    assert math.isnan(of(found, "params").coverage_68)


def test_draws_without_an_order_are_no_numbers_and_take_no_others_with_them(table, labels):
    test, val = labels
    rare = Labels("rare", "higher", np.where(np.arange(48) < 2, 91.0, 90.0))
    learnt = evaluate(table, test, rare, SPEC, METHODS[:1], ["12"], 8)
    taus = [math.isnan(one.kendall) for one in of(learnt, "ridge").seeds]
    assert taus == [np.ptp(rare.values[split(keys_of(table), 12, seed).train]) == 0 for seed in range(8)]
    assert True in taus and False in taus
    tested = evaluate(table, rare, val, SPEC, METHODS[:1], ["40"], 4)
    taus = [math.isnan(one.kendall) for one in of(tested, "ridge", 40).seeds]
    assert taus == [np.ptp(rare.values[split(keys_of(table), 40, seed).test]) == 0 for seed in range(4)]
    assert True in taus
    assert not math.isnan(of(tested, "ridge", 40, "published").kendall)


def test_parts_of_the_features_are_no_copies(table):
    encoder = Encoder.fit(table, SPEC)
    x = encoder.encode(table).x
    for name in PARTS:
        own = part_of(encoder.coordinates, name)
        assert np.shares_memory(columns(x, own), x)
        np.testing.assert_array_equal(columns(x, own), x[:, own])
    np.testing.assert_array_equal(columns(x, np.array([0, 2])), x[:, [0, 2]])


def test_other_processes_give_the_same(table, labels, rows):
    told = []
    pool = Pool(workers=2)
    again = evaluate(
        table, *labels, SPEC, METHODS, ["12", "25%"], 3, pool=pool, progress=lambda *counts: told.append(counts)
    )
    assert repr([asdict(row) for row in again]) == repr([asdict(row) for row in rows])
    assert told[-1] == (13, 13)


def test_names_of_methods():
    found = parse_methods(["parzc", "mabn:statistics", "baselines"], SPEC)
    assert found[:2] == [Method("parzc"), Method("mabn", "statistics")]
    assert len(found) == 2 + 3 * 3
    assert len(parse_methods(["baselines"], FeatureSpec(proxies=("params",)))) == 3
    with pytest.raises(UsageError, match=r"unknown method 'extra'"):
        parse_methods(["extra"], SPEC)
    with pytest.raises(UsageError, match=r"no part 'proxies'; there are statistics"):
        parse_methods(["ridge:proxies"], FeatureSpec(statistics=("snip@layer",)))


def test_baselines_see_their_part_of_the_features_alone(table):
    coordinates = Encoder.fit(table, SPEC).coordinates
    sizes = [len(part_of(coordinates, name)) for name in ("all", "statistics", "proxies", "both")]
    assert sizes == [len(coordinates), len(coordinates) - 3, 3, len(coordinates)]


def test_what_cannot_be_evaluated(table, labels, truth):
    with pytest.raises(DataError, match="9 labelled architectures are too few"):
        evaluate(table, *labels, SPEC, METHODS, ["9"], 2)
    with pytest.raises(DataError, match="49 samples were asked for, but 48"):
        evaluate(table, *labels, SPEC, METHODS, ["49"], 2)
    with pytest.raises(DataError, match="target 'constant' is constant"):
        evaluate(table, labels[0], Labels.read(table, truth, "constant"), SPEC, METHODS, ["12"], 2)
    with pytest.raises(UsageError, match="seeds must be at least 1"):
        evaluate(table, *labels, SPEC, METHODS, ["12"], 0)
