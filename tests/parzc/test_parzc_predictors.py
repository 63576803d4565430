"""Every predictor: learns, is the same for the same seed, survives its file, and refuses what it cannot learn from."""

import json
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtri
from scipy.stats import kendalltau

from zcpipe.errors import DataError, UsageError
from zcpipe.parzc import training
from zcpipe.parzc.features import Coordinate
from zcpipe.parzc.predictors import PREDICTORS, Context, predictor
from zcpipe.parzc.predictors.base import Prediction
from zcpipe.parzc.predictors.forest import Forest
from zcpipe.parzc.predictors.parzc import matched, spread
from zcpipe.parzc.predictors.ridge import loo_residuals
from zcpipe.parzc.predictors.targets import Scale
from zcpipe.rank import ranks

QUICK = {"epochs": 15, "members": 2, "mc_samples": 3, "learning_rate": 0.01}
SMALL = {
    "mabn": {"dim": 8, "depth": 1, "settings": QUICK},
    "mabn-published": {"size": 16, "dim": 8, "depth": 1, "settings": QUICK},
    "extra-trees": {"trees": 20},
    "boosted-trees": {"depths": (2, 3), "trees": (10, 20), "rate": 0.3},
    "gaussian-process": {},
    "ridge": {},
    "parzc": {
        "members": [["extra-trees", {"trees": 20}], ["ridge:proxies", {}], ["mabn", {"dim": 8, "settings": QUICK}]]
    },
}


def make(n=150, features=12, seed=0):
    """Labelled rows whose target depends on three of the features, in two parts of a network and two scalars."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, features)).astype(np.float32)
    y = 90 + x[:, 0] + 0.5 * x[:, 3] - 0.5 * x[:, features - 1]
    coordinates = tuple(
        Coordinate("snip@layer", f"cells.{i // 5}.{i % 5}", f"cells.{i // 5}") for i in range(features - 2)
    )
    scalars = (Coordinate("params", "", ""), Coordinate("macs", "", ""))
    return x, y.astype(np.float64), Context((*coordinates, *scalars), x)


def small(name):
    return predictor(name, SMALL[name])


@pytest.mark.parametrize("name", PREDICTORS)
def test_order_is_learnt_of_rows_that_were_not_seen(name):
    x, y, context = make(240)
    found = small(name).fit(x[:160], y[:160], context, 0).predict(x[160:])
    assert kendalltau(found.mean, y[160:]).statistic > 0.4
    assert found.mean.dtype == found.std.dtype == np.float64
    assert np.isnan(found.std).all() or (found.std >= 0).all()


@pytest.mark.parametrize("name", PREDICTORS)
def test_same_seed_gives_the_same_to_the_bit_and_another_seed_another(name):
    x, y, context = make(90)
    first, again, other = (small(name).fit(x[:60], y[:60], context, seed) for seed in (3, 3, 4))
    tensors = again.tensors()
    assert all(np.array_equal(array, tensors[key]) for key, array in first.tensors().items())
    assert np.array_equal(first.predict(x).mean, again.predict(x).mean)
    assert np.array_equal(first.predict(x).mean, other.predict(x).mean) == (name in ("ridge", "gaussian-process"))


@pytest.mark.parametrize("name", PREDICTORS)
def test_what_was_learnt_survives_json_and_arrays_to_the_bit(name):
    x, y, context = make(60)
    fitted = small(name).fit(x, y, context, 0)
    restored = small(name).restore(json.loads(json.dumps(fitted.record())), fitted.tensors(), context)
    before, after = fitted.predict(x), restored.predict(x)
    assert np.array_equal(before.mean, after.mean)
    assert np.array_equal(before.std, after.std, equal_nan=True)


@pytest.mark.parametrize("name", PREDICTORS)
def test_a_row_is_predicted_the_same_whatever_stands_beside_it(name):
    x, y, context = make(60)
    fitted = small(name).fit(x, y, context, 0)
    whole, part = fitted.predict(x), fitted.predict(x[7:9])
    np.testing.assert_allclose(part.mean, whole.mean[7:9], rtol=1e-6)
    np.testing.assert_allclose(part.std, whole.std[7:9], rtol=1e-4)


@pytest.mark.parametrize("name", ["extra-trees", "boosted-trees", "gaussian-process", "ridge", "parzc"])
def test_a_row_is_predicted_the_same_to_the_bit_without_networks(name):
    x, y, context = make(60)
    members = [["gaussian-process", {}], ["extra-trees:proxies", {"trees": 20}], ["extra-trees", {"trees": 20}]]
    learner = predictor("parzc", {"members": members}) if name == "parzc" else small(name)
    fitted = learner.fit(x, y, context, 0)
    x, _, _ = make(60, seed=1)  # of the labelled rows all trees predict the same
    whole = fitted.predict(x)
    for rows in (slice(7, 9), *(slice(at, at + 1) for at in range(0, 60, 4))):
        part = fitted.predict(x[rows])
        np.testing.assert_array_equal(part.mean, whole.mean[rows])
        np.testing.assert_array_equal(part.std, whole.std[rows])


@pytest.mark.parametrize("name", PREDICTORS)
def test_what_nothing_can_be_learnt_from_is_refused(name):
    x, y, context = make(60)
    with pytest.raises(DataError, match="9 labelled architectures are too few"):
        small(name).fit(x[:9], y[:9], context, 0)
    with pytest.raises(DataError, match=r"target is 90 for all 60 .* no order to learn"):
        small(name).fit(x, np.full(60, 90.0), context, 0)
    with pytest.raises(UsageError, match=r"x: got float64 .* expected float32"):
        small(name).fit(x.astype(np.float64), y, context, 0)


@pytest.mark.parametrize("name", PREDICTORS)
def test_arrays_that_do_not_fit_are_refused(name):
    x, y, context = make(60)
    fitted = small(name).fit(x, y, context, 0)
    record, tensors = fitted.record(), fitted.tensors()
    for missing in tensors:
        with pytest.raises(DataError):
            small(name).restore(record, {key: a for key, a in tensors.items() if key != missing}, context)
        changed = {**tensors, missing: np.zeros((*tensors[missing].shape, 2), tensors[missing].dtype)}
        with pytest.raises(DataError):
            small(name).restore(record, changed, context)
    fewer = Context(context.coordinates[:-1], x[:, :-1])
    with pytest.raises(DataError):
        small(name).restore(record, tensors, fewer)


def test_unknown_names_and_parameters_are_refused():
    with pytest.raises(UsageError, match=r"unknown predictor 'extra-tree'; did you mean extra-trees"):
        predictor("extra-tree")
    with pytest.raises(UsageError, match="invalid parameter of ridge: unknown name 'penalty'; did you mean penalties"):
        predictor("ridge", {"penalty": 1})
    with pytest.raises(UsageError, match="invalid settings: epochs"):
        predictor("mabn", {"settings": {"epochs": 0}})


def test_extra_trees_are_those_of_scikit_learn():
    from sklearn.ensemble import ExtraTreesRegressor

    x, y, context = make(80)
    regressor = ExtraTreesRegressor(25, random_state=np.random.RandomState(np.random.MT19937(5)), max_features=0.5)
    expected = regressor.fit(x, Scale.fit(y, "scores").show(y)).predict(x)
    fitted = predictor("extra-trees", {"trees": 25, "max_features": 0.5}).fit(x, y, context, 5)
    assert np.array_equal(fitted.shown(x), expected)
    by_tree = np.stack([one.predict(x) for one in regressor.estimators_])
    np.testing.assert_allclose(fitted.predict(x).std, Scale.fit(y, "scores").back(by_tree).std(axis=0), rtol=1e-12)


def test_boosted_trees_are_those_of_xgboost():
    import xgboost

    x, y, context = make(80)
    x[:, 1] = np.round(x[:, 1])  # values that lie on thresholds
    one = predictor("boosted-trees", {"depths": (3,), "trees": (30,)})
    fitted = one.fit(x, y, context, 5)
    booster = one._grow(xgboost, x, fitted.scale.show(y), 3, 30, 5)
    np.testing.assert_allclose(fitted.forest.total(x), booster.predict(xgboost.DMatrix(x)), atol=1e-5)
    assert fitted.gain.argmax() == 0
    assert fitted.chosen == {"depth": 3, "trees": 30}


def test_boosted_trees_are_chosen_on_the_labelled_rows():
    x, y, context = make(90)
    stumps = predictor("boosted-trees", {"depths": (1, 4), "trees": (1, 40), "rate": 0.3}).fit(x, y, context, 0)
    assert stumps.chosen["trees"] == 40  # one tree of a few leaves ties nearly everything


def test_networks_with_one_key_are_left_out_together(monkeypatch):
    """Labels of one network twice would tell boosted trees, and networks that stop early, what is left out."""
    x, y, context = make(60)
    x, y, keys = np.repeat(x, 3, axis=0), np.repeat(y, 3), np.repeat(np.arange(60), 3)
    seen = []
    boosted = predictor("boosted-trees", {"depths": (2,), "trees": (5, 10)})
    grow = type(boosted)._grow
    monkeypatch.setattr(
        type(boosted), "_grow", lambda self, library, rows, *rest: seen.append(rows) or grow(self, library, rows, *rest)
    )
    boosted.fit(x, y, Context(context.coordinates, x, keys=keys), 0)
    assert [len(rows) for rows in seen] == [120, 120, 120, 180]
    assert all(np.unique(rows, axis=0, return_counts=True)[1].tolist() == [3] * (len(rows) // 3) for rows in seen)
    held = []
    tau_of = training._tau
    monkeypatch.setattr(training, "_tau", lambda net, rows, *rest: held.append(rows) or tau_of(net, rows, *rest))
    stopping = predictor("mabn", {"dim": 8, "depth": 1, "settings": {**QUICK, "epochs": 1, "patience": 1}})
    stopping.fit(x, y, Context(context.coordinates, x, keys=keys), 0)
    assert all(np.unique(rows, axis=0, return_counts=True)[1].tolist() == [3] * 12 for rows in held)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("ridge", {"penalties": [0.0]}),
        ("ridge", {"penalties": [-1.0]}),
        ("ridge", {"penalties": [float("nan")]}),
        ("ridge", {"penalties": [float("inf")]}),
        ("boosted-trees", {"depths": [0]}),
        ("boosted-trees", {"depths": [10**6]}),
        ("boosted-trees", {"trees": [0]}),
        ("boosted-trees", {"trees": [10**9]}),
        ("boosted-trees", {"folds": 10**6}),
        ("gaussian-process", {"rows": 10**9}),
    ],
)
def test_parameters_that_make_no_sense_are_refused(name, parameters):
    with pytest.raises(UsageError, match=f"invalid parameter of {name}: {next(iter(parameters))}"):
        predictor(name, parameters)


def test_more_folds_than_networks_are_refused():
    x, y, context = make(12)
    with pytest.raises(DataError, match="12 networks are too few for 20 folds"):
        predictor("boosted-trees", {"folds": 20}).fit(x, y, context, 0)


def test_leave_one_out_in_closed_form_is_leaving_one_out():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(15, 40)), rng.normal(size=15)
    x, y = x - x.mean(axis=0), y - y.mean()
    missed = []
    for i in range(15):
        rest = np.delete(np.arange(15), i)
        own, target = x[rest] - x[rest].mean(axis=0), y[rest] - y[rest].mean()
        weights = own.T @ np.linalg.solve(own @ own.T + 2.0 * np.eye(14), target)
        missed.append(y[i] - y[rest].mean() - (x[i] - x[rest].mean(axis=0)) @ weights)
    _, singular, right = np.linalg.svd(x, full_matrices=False)
    projected, shrunk = x @ right.T, 1 / (singular[:, None] ** 2 + [2.0, 3.0])
    found = loo_residuals(projected, shrunk, projected.T @ y, y, 15)
    np.testing.assert_allclose(found[:, 0], missed, rtol=1e-8)
    np.testing.assert_allclose(loo_residuals(projected[4:9], shrunk, projected.T @ y, y[4:9], 15), found[4:9])


@pytest.mark.parametrize(("n", "d"), [(300, 20), (20, 50), (60, 60)])
def test_ridge_in_blocks_is_ridge_in_one_piece(n, d, monkeypatch):
    """Beside the solution by all rows at once, its penalty chosen by leaving out each row in turn."""
    monkeypatch.setattr("zcpipe.parzc.predictors.ridge._AT_ONCE", 7 * d)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, d)).astype(np.float32) * np.logspace(-3, 3, d, dtype=np.float32)
    x[:, 1], x[:, 2] = x[:, 0], 0.1
    y = x[:, 0] / x[:, 0].std() + rng.normal(size=n)
    learner = predictor("ridge", {"shown": "raw"})
    fitted = learner.fit(x, y, Context(tuple(Coordinate(f"p{i}", "", "") for i in range(d)), x), 0)
    rows = x.astype(np.float64) - x.mean(axis=0, dtype=np.float64)
    rows[:, 2] = 0
    rows /= np.maximum(rows.std(axis=0), 1e-12)

    def solved(own, target, penalty):
        centre = own.mean(axis=0)
        gram = (own - centre).T @ (own - centre) + penalty * np.eye(d)
        weights = np.linalg.solve(gram, (own - centre).T @ (target - target.mean()))
        return weights, target.mean() - centre @ weights

    errors = []
    for penalty in learner.penalties:
        rest = [np.delete(np.arange(n), i) for i in range(n)]
        own = [solved(rows[kept], y[kept], penalty) for kept in rest]
        errors.append(np.mean([(y[i] - rows[i] @ w - c) ** 2 for i, (w, c) in enumerate(own)]))
    assert fitted.penalty == learner.penalties[int(np.argmin(errors))]
    weights, constant = solved(rows, y, fitted.penalty)
    np.testing.assert_allclose(fitted.predict(x).mean, rows @ weights + constant, rtol=1e-6, atol=1e-8)


def test_ridge_makes_no_copy_of_all_rows_in_double_precision(monkeypatch):
    """Such a copy takes twice the memory of the rows themselves."""
    monkeypatch.setattr("zcpipe.parzc.predictors.ridge._AT_ONCE", 1 << 18)
    x = np.random.default_rng(0).normal(size=(100_000, 60)).astype(np.float32)
    context = Context(tuple(Coordinate(f"p{i}", "", "") for i in range(60)), x)
    fitted = predictor("ridge").fit(x[:1000], x[:1000, 0].astype(np.float64), context, 0)
    for work in (lambda: predictor("ridge").fit(x, x[:, 0].astype(np.float64), context, 0), lambda: fitted.predict(x)):
        tracemalloc.start()
        try:
            work()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < x.nbytes


def test_ridge_of_few_rows_and_many_features_needs_little_more_than_its_decomposition():
    x = np.random.default_rng(0).normal(size=(300, 1200)).astype(np.float32)
    context = Context(tuple(Coordinate(f"p{i}", "", "") for i in range(1200)), x)
    tracemalloc.start()
    try:
        predictor("ridge").fit(x, x[:, 0].astype(np.float64), context, 0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 9 * x.nbytes  # 7.5 of numpy's decomposition of all rows at once


def test_ridge_ignores_constant_features_and_chooses_little_penalty_where_all_is_linear():
    x, y, context = make(100)
    x[:, 2] = 0.1
    fitted = predictor("ridge", {"shown": "raw"}).fit(x, y, context, 0)
    assert fitted.weights[2] == 0
    assert fitted.penalty == min(predictor("ridge").penalties)
    np.testing.assert_allclose(fitted.predict(x).mean, y, atol=0.05)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=40), st.sampled_from(["scores", "raw"]))
def test_scale_goes_there_and_back_and_keeps_the_order_beyond_its_ends(values, shown):
    y = np.round(np.array(values), 3)
    if np.unique(y).size < 2:
        return
    scale = Scale.fit(y, shown)
    np.testing.assert_allclose(scale.back(scale.show(y)), y, atol=1e-6 * max(1, np.ptp(y)))
    beyond = np.linspace(-9, 9, 50)
    assert (np.diff(scale.back(beyond)) > 0).all()


def test_learners_that_are_no_networks_need_no_tokens():
    x = np.random.default_rng(0).normal(size=(40, 3000)).astype(np.float32)
    scattered = tuple(Coordinate("snip@layer", f"a{i}.b{i}", f"a{i}") for i in range(3000))
    small("ridge").fit(x, x[:, 0].astype(np.float64), Context(scattered, x), 0)
    with pytest.raises(DataError, match="too many for a network"):
        small("mabn").fit(x, x[:, 0].astype(np.float64), Context(scattered, x), 0)


def test_trees_that_a_row_would_never_leave_are_refused():
    leaf = (np.array([1, -1, -1]), np.array([2, -1, -1]), np.array([0, 0, 0]), np.zeros(3), np.array([0.0, 1.0, 2.0]))
    forest = Forest.of([leaf, leaf])
    assert forest.total(np.array([[-1.0], [1.0]], np.float32)).tolist() == [2.0, 4.0]
    tensors = forest.tensors()
    for name, at, value in (("left", 4, 0), ("left", 0, 99), ("feature", 0, 1), ("feature", 0, -1), ("roots", 1, 6)):
        changed = tensors[name].copy()
        changed[at] = value
        with pytest.raises(DataError, match="the trees have nodes"):
            Forest.restore({**tensors, name: changed}, 2, 1)


def test_parzc_orders_by_the_mean_of_normal_scores_and_gives_targets():
    x, y, context = make(200)
    fitted = small("parzc").fit(x[:80], y[:80], context, 0)
    alone = [one.predict(x[:, own]).mean for one, own in zip(fitted.members, fitted.parts, strict=True)]
    found = fitted.predict(x)
    scores = np.mean([ndtri((ranks(one) - 0.5) / len(x)) for one in alone], axis=0)
    assert kendalltau(found.mean, scores).statistic > 0.999
    np.testing.assert_allclose(np.sort(found.mean), np.sort(np.mean(alone, axis=0)), atol=0.3)
    assert len(np.unique(found.mean)) > 190


def test_parzc_is_as_sure_as_its_first_member_that_says_how_sure_it_is():
    x, y, context = make(120)
    order = (("ridge", {}), ("gaussian-process", {}), ("extra-trees", {"trees": 20}))
    fitted = predictor("parzc", {"members": order}).fit(x, y, context, 0)
    np.testing.assert_array_equal(fitted.predict(x).std, fitted.members[1].predict(x).std)
    unsure = predictor("parzc", {"members": (("ridge", {}), ("ridge:proxies", {}))}).fit(x, y, context, 0)
    alone = [one.predict(x[:, own]).mean for one, own in zip(unsure.members, unsure.parts, strict=True)]
    np.testing.assert_allclose(unsure.predict(x).std, np.abs(alone[0] - alone[1]) / 2)


@given(st.lists(st.floats(-100, 100), min_size=3, max_size=30))
def test_matching_by_rank_loses_no_order(values):
    values = np.array(values)
    shown = values**3 / 1e4
    if np.unique(np.round(shown, 9)).size < 2 or np.unique(values).size < 2:
        return
    scale = matched(values, shown)
    assert (np.diff(scale.back(np.sort(np.unique(shown)))) >= 0).all()


def test_spread_is_that_of_a_mixture():
    one, other = Prediction(np.array([1.0]), np.array([2.0])), Prediction(np.array([3.0]), np.array([np.nan]))
    assert spread([one, other]) == pytest.approx(np.sqrt(4 + 1))
    assert np.isnan(spread([other])).all()
    assert spread([other, other]) == pytest.approx(0.0)


@pytest.mark.parametrize("name", ["mabn", "mabn-published", "parzc"])
def test_networks_start_from_those_of_another_model(name):
    x, y, context = make(60)
    first = small(name).fit(x, y, context, 0)
    started = Context(context.coordinates, x, first)
    again, anew = small(name).fit(x, y, started, 1), small(name).fit(x, y, context, 1)
    assert not np.array_equal(again.predict(x).mean, anew.predict(x).mean)


@pytest.mark.parametrize("name", PREDICTORS)
def test_torchs_default_dtype_changes_nothing(name):
    x, y, context = make()
    fitted = small(name).fit(x, y, context, 1)
    expected = fitted.predict(x)
    torch.set_default_dtype(torch.float64)
    try:
        found = small(name).fit(x, y, context, 1).predict(x)
        restored = small(name).restore(fitted.record(), fitted.tensors(), context).predict(x)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert np.array_equal(found.mean, expected.mean)
    assert np.array_equal(restored.mean, expected.mean)


def test_networks_of_other_sizes_are_no_start():
    x, y, context = make(60)
    started = Context(context.coordinates, x, small("mabn").fit(x, y, context, 0))
    with pytest.raises(UsageError, match=r"cannot start from the model: its enter.mean has shape \(8, .* \(4, "):
        predictor("mabn", {**SMALL["mabn"], "dim": 4}).fit(x, y, started, 0)
    with pytest.raises(UsageError, match="of other members"):
        small("parzc").fit(x, y, started, 0)
    with pytest.raises(UsageError, match="cannot start from a model"):
        small("ridge").fit(x, y, started, 0)


def test_members_of_parzc_see_their_part_of_the_features():
    x, y, context = make(60)
    fitted = predictor("parzc", {"members": [["ridge:statistics", {}], ["ridge:proxies", {}], ["ridge", {}]]}).fit(
        x, y, context, 0
    )
    assert [len(own) for own in fitted.parts] == [10, 2, 12]
    scalars = context.part(fitted.parts[1])
    lone = predictor("parzc", {"members": [["ridge:statistics", {}], ["ridge:proxies", {}]]})
    assert len(lone.fit(x[:, -2:], y, scalars, 0).members) == 1
    with pytest.raises(UsageError, match="no member of parzc sees any of the features"):
        predictor("parzc", {"members": [["ridge:statistics", {}]]}).fit(x[:, -2:], y, scalars, 0)
    with pytest.raises(UsageError, match="unknown part of the features 'statistic'; did you mean statistics"):
        predictor("parzc", {"members": [["ridge:statistic", {}]]}).fit(x, y, context, 0)
    with pytest.raises(UsageError, match="cannot be a member of itself"):
        predictor("parzc", {"members": [["parzc", {}]]}).fit(x, y, context, 0)
