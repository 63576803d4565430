"""Models: the same seeds give the same file, a file predicts what its model does, and no damaged file is used."""

import json
import os
import re
from typing import get_args

import numpy as np
import pytest
from parzc_tables import proxy, some, statistic, table
from safetensors.numpy import load_file, save_file
from threadpoolctl import threadpool_info, threadpool_limits

from zcpipe import open_table
from zcpipe.errors import DataError, UsageError
from zcpipe.parzc.choice import choose_spec
from zcpipe.parzc.labels import Labels
from zcpipe.parzc.model import Model, train
from zcpipe.parzc.parallel import Pool
from zcpipe.parzc.parameters import read_predictor
from zcpipe.parzc.predictors import gaussian_process, predictor
from zcpipe.parzc.spec import Alignment, Encoding, FeatureSpec
from zcpipe.rank import ranks
from zcpipe.spaces import get_space

QUICK = {"epochs": 5, "members": 2, "mc_samples": 2}
MEMBERS = [["extra-trees", {"trees": 8}], ["ridge", {}], ["mabn", {"dim": 4, "depth": 1, "settings": QUICK}]]
LABELS = Labels("test", "higher", np.arange(12.0))
SPEC = FeatureSpec(statistics=("snip@layer", "synflow@layer", "expressivity@block"), proxies=("params", "snip"))


def make(directory, truth, name="parzc", parameters=None, target="val", spec=SPEC, **options):
    held = open_table(directory)
    parameters = {"members": MEMBERS} if name == "parzc" and parameters is None else parameters
    return train(held, Labels.read(held, truth, target), spec, predictor(name, parameters), **options)


@pytest.fixture(scope="module")
def model(directory, truth):
    return make(directory, truth, samples="20", seeds=2)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "model.safetensors"
    model.save(path)
    return path


def test_predictions_are_means_deviations_and_ranks(model, directory):
    rows = model.predict(open_table(directory))
    assert rows.column_names == ["index", "arch", "mean", "std", "rank", "reason"]
    mean, place = rows["mean"].to_numpy(), rows["rank"].to_numpy()
    assert place.tolist() == (49 - ranks(mean)).tolist()
    assert place[mean.argmax()] == 1
    assert (rows["std"].to_numpy() > 0).all()
    assert rows.schema.field("mean").metadata[b"target"] == b"val"


def test_the_best_of_a_target_that_is_better_lower_ranks_first(directory, truth):
    rows = make(directory, truth, "ridge", target="hours").predict(open_table(directory))
    assert rows["rank"].to_numpy()[rows["mean"].to_numpy().argmin()] == 1
    assert rows["std"].null_count == 48


def test_seeds_tell_nothing_of_what_is_not_random(directory, truth):
    table = open_table(directory)
    lone = {"members": [["ridge", {}]]}
    assert make(directory, truth, "ridge", seeds=3).predict(table)["std"].null_count == 48
    assert make(directory, truth, "parzc", lone, seeds=3).predict(table)["std"].null_count == 48
    trees = {"depths": [2], "trees": [5]}
    assert make(directory, truth, "boosted-trees", trees, seeds=3).predict(table)["std"].null_count == 0


def test_a_model_that_could_not_be_read_is_not_written(directory, truth):
    model = make(directory, truth, "ridge")
    model.fitted[0].weights[3] = np.nan
    with pytest.raises(DataError, match=r"the training failed: the array fitted.0.weights .* not finite"):
        model.to_bytes()


def test_same_seeds_give_the_same_file_to_the_bit_whatever_the_workers(model, directory, truth):
    again = make(directory, truth, samples="20", seeds=2, pool=Pool(workers=2))
    assert again.to_bytes() == model.to_bytes()
    assert make(directory, truth, samples="20", seeds=2, seed=1).to_bytes() != model.to_bytes()


def test_a_file_predicts_what_its_model_does_to_the_bit(model, saved, directory):
    loaded = Model.load(saved)
    assert loaded.predict(open_table(directory)) == model.predict(open_table(directory))
    assert loaded.to_bytes() == model.to_bytes()
    with pytest.raises(DataError, match="exists"):
        model.save(saved)


def test_a_gaussian_process_is_factorised_with_one_thread_wherever_it_is(directory, truth, tmp_path, monkeypatch):
    def noted(matrix):
        threads.append({library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"})
        return factorised(matrix)

    threads, factorised = [], gaussian_process.factorised
    monkeypatch.setattr(gaussian_process, "factorised", noted)
    with threadpool_limits(2):
        model = make(directory, truth, "gaussian-process", samples="20")
        model.save(tmp_path / "model")
        trained = len(threads)
        loaded = Model.load(tmp_path / "model")
        assert len(threads) == trained + 1
        assert loaded.predict(open_table(directory)) == model.predict(open_table(directory))
        assert threads == [{1}] * len(threads)


@pytest.mark.parametrize("encoding", get_args(Encoding))
@pytest.mark.parametrize("alignment", get_args(Alignment))
def test_features_of_every_kind_survive_the_file(encoding, alignment, directory, truth, tmp_path):
    spec = SPEC.model_copy(update={"encoding": encoding, "alignment": alignment})
    model = make(directory, truth, "ridge", samples="20", spec=spec)
    model.save(tmp_path / "model")
    table = open_table(directory)
    assert Model.load(tmp_path / "model").predict(table) == model.predict(table)


def test_a_table_of_other_weights_is_predicted_and_one_of_another_recipe_is_not(model, tables):
    assert model.predict(open_table(tables / "two"))["mean"].null_count == 0
    with pytest.raises(DataError, match="of recipe batch_size 2, this one is of recipe batch_size 3"):
        model.predict(open_table(tables / "other"))


def test_tables_of_other_spaces_or_without_the_columns_are_refused(directory, truth):
    slots = ("stem", "classifier")
    columns = {statistic("snip@layer", slots): [[1.0, 2.0]] * 12, proxy("params"): np.arange(12.0)}
    held = table(columns)
    small = train(held, LABELS, FeatureSpec(statistics=("snip@layer",), proxies=("params",)), predictor("ridge"))
    with pytest.raises(DataError, match="of space 'nasbench201', this one is of space 'nasbench101'"):
        small.predict(table(columns, space="nasbench101"))
    with pytest.raises(UsageError, match=r"the table lacks snip@layer; `zcpipe run"):
        small.predict(table({proxy("params"): np.arange(12.0)}))


def test_rows_without_a_feature_are_null(directory):
    snip = statistic("snip@layer", ("stem", "classifier"))
    values = [[float(i + 1), 1.0] for i in range(12)]
    held = table({snip: [*values, None, [np.nan, 1.0]]})
    labels = Labels("test", "higher", np.arange(14.0))
    found = train(held, labels, FeatureSpec(statistics=("snip@layer",)), predictor("ridge")).predict(held)
    assert found["mean"].is_null().to_pylist() == [False] * 12 + [True] * 2
    assert found["rank"].to_pylist() == [*range(12, 0, -1), None, None]
    assert found["reason"].to_pylist() == [None] * 12 + ["a feature failed or is missing; zcpipe status says why"] * 2


SMALL, LARGE = (get_space("nds/darts").sample(0, i) for i in (1, 0))
PLACES = [get_space("nds/darts").slots(arch, "cifar10").layers for arch in (SMALL, LARGE)]
NEW = next(slot for slot in PLACES[1] if slot not in PLACES[0])


def grown():
    """A table of small networks that has grown by three larger ones, and a model of the small ones."""
    values = [[float(i + j) for j in range(len(PLACES[0]))] for i in range(12)]
    values += [[1.0] * len(PLACES[1])] * 3
    held = table({statistic("snip@layer"): values}, "nds/darts", [str(SMALL)] * 12 + [str(LARGE)] * 3)
    spec = FeatureSpec(statistics=("snip@layer",))
    return held, train(some(held, range(12)), LABELS, spec, predictor("ridge"))


def test_rows_of_a_grown_table_with_new_slots_are_null_and_the_others_predicted():
    held, model = grown()
    found = model.predict(held)
    old, new = found.slice(0, 12), found.slice(12)
    assert old == model.predict(some(held, range(12)))
    assert old["mean"].null_count == 0
    assert {new[name].null_count for name in ("mean", "std", "rank")} == {3}
    reason = f"the slot {NEW} is new since the training; train again on a table that holds it"
    assert new["reason"].to_pylist() == [reason] * 3
    with pytest.raises(DataError, match=f"has the slot {re.escape(NEW)}, which no"):
        model.predict(some(held, [12, 13]))


def test_the_command_counts_rows_with_new_slots(zcpipe, tmp_path, monkeypatch):
    held, model = grown()
    model.save(tmp_path / "model")
    monkeypatch.setattr("zcpipe.table.open_table", lambda directory: held)
    code, said, told = zcpipe("parzc", "predict", tmp_path / "model", tmp_path, "--out", tmp_path / "out")
    assert (code, said) == (0, f"{tmp_path / 'out'}: 12 of 15 architectures predicted\n")
    assert told == (
        f"3 unpredicted rows: the slot {NEW} is new since the training; train again on a table that holds it\n"
    )
    code, said, _ = zcpipe("parzc", "predict", tmp_path / "model", tmp_path, "--out", tmp_path / "more", "--json")
    assert (code, list(json.loads(said)["reasons"].values())) == (0, [3])


def test_statistics_that_are_no_numbers_leave_nothing_to_learn():
    held = table({statistic("snip@layer", ("stem",)): [[np.nan]] * 12})
    with pytest.raises(DataError, match=r"no row of the table has all that the features need: snip@layer"):
        train(
            held, Labels("test", "higher", np.arange(12.0)), FeatureSpec(statistics=("snip@layer",)), predictor("ridge")
        )


def test_default_features_are_what_nearly_all_rows_have():
    slots = ("stem", "classifier")
    columns = {
        statistic("snip@layer", slots): [[1.0, 2.0]] * 50,
        statistic("grasp@layer", slots): [[1.0, 2.0]] * 49 + [None],
        proxy("params"): np.arange(50.0),
        proxy("epe_nas"): [None] * 10 + [1.0] * 40,
    }
    spec, left_out = choose_spec(table(columns))
    assert (spec.statistics, spec.proxies) == (("snip@layer",), ("params",))
    assert left_out == {"grasp@layer": 0.98, "epe_nas": 0.8}
    assert choose_spec(table(columns), [], ["epe_nas"])[0].proxies == ("epe_nas",)
    with pytest.raises(DataError, match="the table has no statistics of nodes to learn from"):
        choose_spec(table({proxy("params"): np.arange(50.0)}))


def test_a_table_whose_columns_all_fail_is_said_to_be_one():
    columns = {statistic("snip@layer", ("stem",)): [None] * 5 + [[1.0]] * 45, proxy("params"): [None] + [1.0] * 49}
    with pytest.raises(
        DataError,
        match=r"no column has values in 99% of the 50 rows: snip@layer in 90.0%, params in 98.0%; zcpipe status",
    ):
        choose_spec(table(columns))
    with pytest.raises(DataError, match="the table has no rows"):
        choose_spec(table({statistic("snip@layer", ("stem",)): []}))


def test_transfer_starts_from_the_weights_of_a_model(directory, truth):
    parameters = {"dim": 4, "depth": 1, "settings": QUICK}
    first = make(directory, truth, "mabn", parameters, samples="30")
    moved = make(directory, truth, "mabn", parameters, samples="12", init=first, seed=1)
    anew = make(directory, truth, "mabn", parameters, samples="12", seed=1)
    held = open_table(directory)
    assert moved.predict(held)["mean"] != anew.predict(held)["mean"]
    with pytest.raises(UsageError, match="the model to start from has other features"):
        make(directory, truth, "mabn", parameters, init=first, spec=FeatureSpec(statistics=("snip@layer",)))
    with pytest.raises(UsageError, match=r"other features .encoding 'live-rank'; here encoding 'rank'"):
        make(directory, truth, "mabn", parameters, init=first, spec=SPEC.model_copy(update={"encoding": "rank"}))
    with pytest.raises(UsageError, match=r"its enter.mean has shape \(4, .* expected \(8, "):
        make(directory, truth, "mabn", {**parameters, "dim": 8}, init=first)
    with pytest.raises(UsageError, match="ridge cannot start from a model of mabn"):
        make(directory, truth, "ridge", init=first)


def test_truncated_and_foreign_files_are_refused(saved, tmp_path):
    content = saved.read_bytes()
    path = tmp_path / "damaged"
    for size in (0, 7, 8, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(DataError, match="truncated, damaged or no safetensors"):
            Model.load(path)
    path.write_bytes(os.urandom(5000))
    with pytest.raises(DataError, match="truncated, damaged or no safetensors"):
        Model.load(path)
    save_file({"a": np.zeros(3)}, path)
    with pytest.raises(DataError, match="was not written by zcpipe parzc train"):
        Model.load(path)
    with pytest.raises(DataError, match="no such file"):
        Model.load(tmp_path / "absent")


def rewritten(saved, tmp_path, record=None, tensors=None):
    """A copy of a model's file with another record or other arrays."""
    from safetensors import safe_open

    with safe_open(saved, framework="numpy") as file:
        own = json.loads(file.metadata()["zcpipe.parzc"])
    path = tmp_path / "rewritten.safetensors"
    text = record(own) if record else own
    metadata = {"zcpipe.parzc": text if isinstance(text, str) else json.dumps(text)}
    save_file(tensors(load_file(saved)) if tensors else load_file(saved), path, metadata=metadata)
    return path


def test_every_part_of_the_record_is_needed_and_checked(saved, tmp_path, model):
    assert Model.load(rewritten(saved, tmp_path)).to_bytes() == model.to_bytes()
    changes = [
        lambda r: "{",
        lambda r: "[" * 100_000,
        lambda r: "[]",
        lambda r: {**r, "more": 1},
        lambda r: {**r, "format": 2},
        lambda r: {**r, "direction": "sideways"},
        lambda r: {**r, "predictor": {"name": "os.system", "parameters": {}}},
        lambda r: {**r, "predictor": {"name": "parzc", "parameters": {"members": []}}},
        lambda r: {**r, "predictor": {"name": "parzc", "parameters": {"members": [["parzc", {}]]}}},
        lambda r: {**r, "fitted": r["fitted"] + r["fitted"]},
        lambda r: {**r, "fitted": [{}]},
        lambda r: {**r, "fitted": []},
        lambda r: {**r, "seed": -1},
        lambda r: {**r, "encoder": {**r["encoder"], "live": 7}},
        lambda r: {**r, "encoder": {**r["encoder"], "live": "expressivity@block"}},
        lambda r: {**r, "encoder": {**r["encoder"], "space": 7}},
        lambda r: {**r, "encoder": {**r["encoder"], "spec": {**r["encoder"]["spec"], "graph": True}}},
        lambda r: {**r, "encoder": {**r["encoder"], "coordinates": r["encoder"]["coordinates"][::-1]}},
        lambda r: {**r, "encoder": {**r["encoder"], "coordinates": [["snip@layer", "a", ""]] * 99}},
        lambda r: {**r, "encoder": {**r["encoder"], "coordinates": r["encoder"]["coordinates"][:-1]}},
        lambda r: {**r, "encoder": {**r["encoder"], "coordinates": [1, 2]}},
        lambda r: {**r, "encoder": {**r["encoder"], "spec": {}}},
    ]
    changes += [
        lambda r, name=name: {key: value for key, value in r.items() if key != name}
        for name in ("format", "table", "target", "encoder", "fitted", "predictor", "seed")
    ]
    for change in changes:
        with pytest.raises(DataError):
            Model.load(rewritten(saved, tmp_path, change))


def test_networks_of_a_negative_seed_are_refused(saved, tmp_path):
    def negative(record):
        record["fitted"][1]["members"][2]["seed"] = -1
        return record

    with pytest.raises(DataError, match="the record of mabn has no seed of at least 0"):
        Model.load(rewritten(saved, tmp_path, negative))


def test_a_graph_that_is_not_that_of_the_space_is_refused(directory, truth, tmp_path):
    model = make(directory, truth, "ridge", samples="20", spec=SPEC.model_copy(update={"graph": True}))
    model.save(tmp_path / "model")
    assert Model.load(tmp_path / "model").to_bytes() == model.to_bytes()

    def renamed(record):
        record["encoder"]["coordinates"][-1][1] = "0-1=nothing"
        return record

    with pytest.raises(DataError, match="coordinates are not those of the features"):
        Model.load(rewritten(tmp_path / "model", tmp_path, renamed))


def test_a_pipe_is_no_model(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="pipe: no such file, but a directory, pipe or device"):
        Model.load(tmp_path / "pipe")
    with pytest.raises(DataError, match="pipe: no such file, but a directory, pipe or device"):
        read_predictor("ridge", tmp_path / "pipe")


def test_a_fault_of_ours_is_not_laid_to_the_file(saved, monkeypatch):
    def broken(*arguments):
        raise KeyError("ours")

    monkeypatch.setattr("zcpipe.parzc.predictors.parzc.Parzc.restore", broken)
    with pytest.raises(KeyError, match="ours"):
        Model.load(saved)


def test_every_array_is_needed_and_checked(saved, tmp_path):
    for name, array in load_file(saved).items():
        for other in (
            lambda t, name=name: {key: value for key, value in t.items() if key != name},
            lambda t, name=name, array=array: {**t, name: np.zeros((*array.shape, 2), array.dtype)},
            lambda t, name=name, array=array: {**t, name: array.ravel()[:-1]},
        ):
            with pytest.raises(DataError):
                Model.load(rewritten(saved, tmp_path, tensors=other))
