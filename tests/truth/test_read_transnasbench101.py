"""TransNAS-Bench-101's file, made small in the official format, gives the official API's values."""

import copy
import math
import os
import warnings

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from zcpipe.errors import DataError
from zcpipe.truth import read_truth, reader
from zcpipe.truth.transnasbench101 import read_table

METRICS = {
    "class_scene": ("train_top1", "train_loss", "valid_top1", "valid_loss", "test_top5", "time_elapsed"),
    "room_layout": ("train_loss", "valid_loss", "valid_neg_loss", "test_loss", "time_elapsed"),
    "normal": ("train_g_loss", "val_l1_loss", "val_ssim", "test_ssim", "time_elapsed"),
    "segmentsemantic": ("train_mIoU", "valid_acc", "valid_mIoU", "time_elapsed"),
}
EPOCHS = {"class_scene": 25, "room_layout": 25, "normal": 30, "segmentsemantic": 30}
INFOS = ("inference_time", "encoder_params", "model_params", "model_FLOPs", "encoder_FLOPs")
ARCHS = {"macro": ("64-4111-basic", "64-2311-basic"), "micro": ("64-41414-0_00_000", "64-41414-1_02_333")}


def curve(arch, task, metric):
    """A curve whose best epoch is neither the first nor the last, different for everything it may be confused with."""
    if metric == "time_elapsed":
        return [f"00:00:{second:02}" for second in range(EPOCHS[task])]
    place = sum(ARCHS.values(), ()).index(arch) * 7 + list(METRICS).index(task) + METRICS[task].index(metric) / 10
    return [place + math.sin(epoch / 4) / 20 for epoch in range(EPOCHS[task])]


def trained(arch, task):
    return {
        "metrics": {metric: curve(arch, task, metric) for metric in METRICS[task]},
        "model_info": {info: 1000.5 + 10 * i + list(METRICS).index(task) for i, info in enumerate(INFOS)},
        "total_epochs": EPOCHS[task],
    }


@pytest.fixture
def content():
    return {
        "metrics_dict": {task: list(metrics) for task, metrics in METRICS.items()},
        "info_names": list(INFOS),
        "task_list": list(METRICS),
        "data": {
            level: {arch: {task: trained(arch, task) for task in METRICS} for arch in archs}
            for level, archs in ARCHS.items()
        },
    }


@pytest.fixture(params=[True, False], ids=["zip", "row"])
def store(request, tmp_path):
    def store(content):
        path = tmp_path / "transnas-bench_v10141024.pth"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, about the old form
            torch.save(content, path, _use_new_zipfile_serialization=request.param)
        return path

    return store


def fails(path, *words):
    with pytest.raises(DataError) as caught:
        read_table(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message and len(message) < 500
    for word in words:
        assert word in message


def test_last_and_best_value_of_every_metric(content, store):
    table = read_table(store(copy.deepcopy(content)))
    rows = table.to_pylist()
    assert [(row["space"], row["arch"]) for row in rows] == [
        (level, a) for level, archs in ARCHS.items() for a in archs
    ]
    expected = {"space", "arch", *(f"{task}_{info}" for task in METRICS for info in INFOS)}
    for row in rows:
        for task, metrics in METRICS.items():
            for metric in metrics:
                if metric.startswith(("train", "time")):
                    continue
                values = content["data"][row["space"]][row["arch"]][task]["metrics"][metric]
                lower = metric in ("valid_loss", "test_loss", "val_l1_loss")
                name = f"{task}_{metric}_{EPOCHS[task]}"
                assert row[name] == values[-1]
                assert row[f"{name}_best"] == (min if lower else max)(values) != values[-1]
                expected |= {name, f"{name}_best"}
            for info in INFOS:
                assert row[f"{task}_{info}"] == content["data"]["macro"][ARCHS["macro"][0]][task]["model_info"][info]
    assert set(table.column_names) == expected


def test_columns_say_what_they_are(content, store, tmp_path):
    out = tmp_path / "t.parquet"
    reader("transnasbench101").import_file(store(content), out)
    schema = pq.read_schema(out)

    def about(name):
        found = {key.decode(): value.decode() for key, value in schema.field(name).metadata.items()}
        found.pop("PARQUET:field_id", None)
        return found

    assert about("class_scene_valid_top1_25_best") == {
        "dataset": "class_scene", "split": "valid", "epochs": "25", "unit": "%", "direction": "higher", "epoch": "best",
    }  # fmt: skip
    assert about("normal_val_l1_loss_30")["split"] == "valid"
    assert about("normal_val_l1_loss_30")["direction"] == "lower"
    assert about("room_layout_valid_neg_loss_25")["direction"] == "higher"
    assert about("normal_test_ssim_30")["unit"] == "as the benchmark states it"
    assert "transnas-bench_v10141024.pth" in schema.metadata[b"zcpipe.truth"].decode()
    archs, values = read_truth(out, "class_scene_valid_top1_25")
    assert archs == [*ARCHS["macro"], *ARCHS["micro"]] and np.isfinite(values).all()


def test_what_is_lacking_or_not_finite_is_null(content, store):
    one = content["data"]["micro"]["64-41414-1_02_333"]
    del one["normal"]
    one["class_scene"]["metrics"]["valid_top1"] = [np.float64(3.5), float("inf"), 4.5, float("nan")]
    one["class_scene"]["metrics"]["valid_loss"] = [float("nan")] * 25
    one["class_scene"]["model_info"]["model_params"] = ""
    *_, row = read_table(store(content)).to_pylist()
    assert row["normal_test_ssim_30"] is row["normal_test_ssim_30_best"] is row["class_scene_model_params"] is None
    assert row["class_scene_valid_top1_25"] is row["class_scene_valid_top1_4"] is None
    assert row["class_scene_valid_top1_4_best"] == 4.5
    assert row["class_scene_valid_loss_25"] is row["class_scene_valid_loss_25_best"] is None


def test_progress_ends_at_the_whole(content, store):
    told = []
    read_table(store(content), lambda done, total: told.append((done, total)))
    assert told == sorted(told) and told[-1][0] == told[-1][1] > 0


def test_many_trainings_cost_little_while_they_are_read(content, store):
    """Curves are cut down at once: more numbers pass than may be alive, and the limits are the official file's."""
    from zcpipe.truth import transnasbench101
    from zcpipe.untrusted.unpickle import Limits

    task = {"metrics": {f"valid_{i}": [float(e) for e in range(3000)] for i in range(50)}, "total_epochs": 3000}
    content["data"]["micro"]["64-41414-1_02_333"] = {
        f"task_{i}": copy.deepcopy({**task, "model_info": {}}) for i in range(4)
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transnasbench101, "_LIMITS", Limits(objects=400_000))
        assert read_table(store(content)).num_rows == 4


RECORD = ("data", "micro", "64-41414-1_02_333", "class_scene")


def changed(content, path, value):
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return content


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("data",), None, "no trained architectures"),
        (("data",), {}, "no trained architectures"),
        (("data", "mini"), {}, "'mini' is neither"),
        (("data", "micro"), [1], "'micro' is neither"),
        (("data", "micro", "64-41414-1_02_334"), {}, "got '4'"),
        (("data", "micro", "64-4111-basic"), {}, "malformed cell"),
        (("data", "macro", "64-4444-basic"), {}, "no network of this space"),
        (("data", "micro", 7), {}, "malformed cell"),
        (RECORD[:-1], None, "lacks the results"),
        (RECORD, None, "lacks the results"),
        (RECORD, {"metrics": {}}, "lacks the results"),
        ((*RECORD[:-1], "a b"), {}, "'a b' cannot be the name"),
        ((*RECORD, "metrics", 5), [1.0], "5 cannot be the name"),
        ((*RECORD, "metrics", "valid_top1"), 5.0, "no curve"),
        ((*RECORD, "metrics", "valid_top1"), [], "no curve"),
        ((*RECORD, "metrics", "valid_top1"), [1.0, "a"], "no curve"),
        ((*RECORD, "metrics", "valid_top1"), (25, "a", 1.0), "'a' is no number"),
        ((*RECORD, "model_info", "model_params"), [1], "a list is no number"),
        ((*RECORD, "total_epochs"), None, ""),
    ],
)
def test_content_of_another_kind_is_named(content, store, path, value, says):
    damaged = changed(content, path, value)
    if not says:  # the epochs are those of the curves
        assert read_table(store(damaged)).num_rows == 4
        return
    fails(store(damaged), says, *([path[2]] if len(path) > 2 and isinstance(path[2], str) else []))


def test_an_architecture_twice_is_named(content, store):
    level = content["data"]["micro"]
    level[" 64-41414-1_02_333"] = level["64-41414-1_02_333"]
    fails(store(content), "' 64-41414-1_02_333'", "64-41414-1_02_333 twice")


def test_a_file_of_no_dict_or_of_too_much_is_named(content, store, tmp_path):
    fails(store([1, 2]), "no TransNAS-Bench-101 file")
    fails(tmp_path / "absent.pth", "no such file")
    for i in range(3000):
        content["data"]["micro"]["64-41414-1_02_333"]["class_scene"]["model_info"][f"info_{i}"] = 1.0
    fails(store(content), "another kind of file")


def test_a_hostile_file_runs_nothing(content, store, tmp_path):
    class Run:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'run'}",)

    fails(store(changed(content, (*RECORD, "metrics", "valid_top1"), [Run()])), "system", "nothing in it was run")
    assert not (tmp_path / "run").exists()


def test_truncated_files_are_named(content, store):
    path = store(content)
    whole = path.read_bytes()
    for length in (0, 1, 30, 200, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        fails(path)
