"""The reader of NDS: errors become accuracies, several trainings their mean; mixed recipes have their own columns."""

import json
import os

import pyarrow as pa
import pytest
from nds_entries import FLOPS, PARAMS, RESNETS, TEXTS, entry, write

from zcpipe.errors import DataError, UsageError
from zcpipe.spaces.nds import NDS
from zcpipe.truth import read_truth, reader
from zcpipe.truth.reader import stored_name

FILES = ("Amoeba_in", "DARTS_in", "ENAS_in", "NASNet_in", "PNAS_in", "ResNeXt-A_in", "ResNeXt-B_in")
MIXED = ("ResNet_lr-wd_in", "Vanilla_lr-wd_in")


def read(path):
    return reader("nds").read(path, None)


def test_accuracies_are_100_minus_the_error_after_the_last_and_the_best_epoch(tmp_path):
    table = read(write(tmp_path / "ResNet.json", [entry(1), entry(0, (50.0, 40.0, 30.0))]))
    assert table.to_pylist() == [
        {
            "arch": TEXTS[at],
            "cifar10_test_3": last,
            "cifar10_test_3_best": best,
            "cifar10_test_3_runs": 1,
            "cifar10_params": PARAMS[at],
            "cifar10_flops": FLOPS[at],
            "file": "ResNet.json",
        }
        for at, last, best in ((1, 77.75, 79.5), (0, 70.0, 70.0))
    ]
    assert table.field("cifar10_test_3").metadata == {
        b"dataset": b"cifar10", b"split": b"test", b"epochs": b"3", b"unit": b"%", b"direction": b"higher",
        b"epoch": b"last",
    }  # fmt: skip
    assert table.field("cifar10_test_3_best").metadata[b"epoch"] == b"best"
    about = json.loads(table.schema.metadata[b"zcpipe.truth"])
    assert about["benchmark"] == "NDS" and about["source"] == "ResNet.json"


def test_trainings_of_one_network_are_averaged_over_files_and_lists(tmp_path):
    write(tmp_path / "ResNet.json", [entry(0, (50.0, 30.0))])
    write(tmp_path / "ResNet_reruns.json", {"top": [entry(0, (50.0, 20.0))], "mid": [entry(0, (8.0, 10.0)), entry(2)]})
    first, second = read(tmp_path).to_pylist()
    assert (first["arch"], first["cifar10_test_2"], first["cifar10_test_2_runs"]) == (TEXTS[0], 80.0, 3)
    assert first["cifar10_test_2_best"] == pytest.approx(100 - (30 + 20 + 8) / 3)
    assert first["file"] == "ResNet.json, ResNet_reruns.json"
    assert (second["cifar10_test_2"], second["cifar10_test_2_runs"], second["cifar10_test_3"]) == (None, 0, 77.75)


def recipe(rate):
    return {"base_lr": rate, "wd": 1e-4, "max_ep": 3}


@pytest.mark.parametrize(
    ("name", "rates"),
    [("ResNet_lr-wd.json", (0.1, 0.2, 0.3)), ("ResNet.json", (0.1, 0.2, 0.3)), ("ResNet_lr-wd.json", (0.1,) * 3)],
)
def test_mixed_recipes_have_columns_of_their_own_that_are_not_for_ranking(tmp_path, name, rates):
    """Whether the file's name says so or its content does. Of a network that is there twice the first is kept."""
    content = [entry(at, optim=recipe(rate)) for at, rate in zip((0, 1), rates, strict=False)]
    content.append(entry(0, (1.0, 1.0, 1.0), optim=recipe(rates[2])))
    write(tmp_path / name, content)
    write(tmp_path / "ResNet_rng1.json", [entry(0)])
    out = tmp_path / "truth.parquet"
    first, second = reader("nds").import_file(tmp_path, out).to_pylist()
    assert (first["cifar10_test_3"], second["cifar10_test_3"]) == (77.75, None)
    prefix = "cifar10_test_3_lr-wd"
    assert [(row[prefix], row[f"{prefix}_best"], row[f"{prefix}_runs"]) for row in (first, second)] == [
        (77.75, 79.5, 1)
    ] * 2
    assert [row[f"{prefix}_base_lr"] for row in (first, second)] == list(rates[:2])
    assert first[f"{prefix}_wd"] == 1e-4
    for column in (prefix, f"{prefix}_best"):
        with pytest.raises(UsageError, match="not for ranking: each network was trained with a learning rate"):
            read_truth(out, column)
    assert read_truth(out, "cifar10_test_3")[1][0] == 77.75


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"test_ep_top1": []}, "lacks the errors"),
        ({"test_ep_top1": None}, "lacks the errors"),
        ({"optim": None}, "or its recipe"),
        ({"test_ep_top1": [1.0, 2.0, "3"]}, "'3' is no error"),
        ({"test_ep_top1": [1.0, 2.0, 101]}, "101 is no error"),
        ({"test_ep_top1": [1.0, 2.0, float("nan")]}, "nan is no error"),
        ({"test_ep_top1": [1.0, 2.0]}, "errors after 2 epochs, where its recipe says 3"),
        ({"optim": {"base_lr": True, "wd": 0, "max_ep": 3}}, "True is no error or part of a recipe"),
        ({"params": None}, "params is None, no count"),
        ({"flops": 1 << 63}, "flops is 9223372036854775808, no count"),
        ({"net": {"block_type": 3}}, "is no network of nds/resnet"),
    ],
)
def test_malformed_entries_are_named(tmp_path, changes, says):
    file = write(tmp_path / "ResNet.json", [entry(0), entry(1, **changes)])
    with pytest.raises(DataError, match=r"ResNet\.json, entry 1: ") as caught:
        read(file)
    assert says in str(caught.value)


def test_files_that_disagree_or_say_too_little_are_named(tmp_path):
    write(tmp_path / "ResNet_rng1.json", [entry(0)])
    file = write(tmp_path / "ResNet_rng2.json", [entry(0, flops=3)])
    with pytest.raises(DataError, match=r"rng2\.json, entry 0: states other params or flops"):
        read(tmp_path)
    file.rename(tmp_path / "other.json")
    with pytest.raises(DataError, match="its name tells no sub-space"):
        read(tmp_path / "other.json")
    with pytest.raises(DataError, match="absent"):
        read(tmp_path / "absent")


def test_names_that_are_no_text_are_stored_as_one(tmp_path):
    place = tmp_path / os.fsdecode(b"\xff")
    place.mkdir()
    write(place / "ResNet.json", [entry(0)])
    file = place / os.fsdecode(b"\xfe.json")
    table = reader("nds").import_file(place, tmp_path / "t.parquet")
    assert json.loads(table.schema.metadata[b"zcpipe.truth"])["source"] == "\\xff"
    assert stored_name(file) == "\\xfe.json"
    write(place / os.fsdecode(b"ResNet_in_\xff.json"), [entry(0)])
    with pytest.raises(DataError, match=r"'\\udcff' in its name says nothing"):
        read(place)


def test_networks_for_two_data_sets_have_columns_for_each(tmp_path):
    net = {**RESNETS[0], "ss": [4, 1, 2, 2]}
    write(tmp_path / "ResNet.json", [entry(0)])
    write(tmp_path / "ResNet_in.json", [entry(0, net=net, params=7, flops=8)])
    (row,) = read(tmp_path).to_pylist()
    assert (row["cifar10_params"], row["imagenet_params"], row["imagenet_flops"]) == (PARAMS[0], 7, 8)
    assert row["cifar10_test_3"] == row["imagenet_test_3"] == 77.75


@pytest.mark.parametrize("name", [*FILES, *MIXED])
def test_official_files_are_read(data, name):
    path = data(f"nds/{name}.json")
    entries, table = json.loads(path.read_text()), read(path)
    assert table["arch"].to_pylist() == [str(one.arch) for one in NDS.entries(path)]
    prefix = "imagenet_test_50" + ("_lr-wd" if name in MIXED else "")
    assert [column for column in table.column_names if column.endswith("_50")] == ([] if name in MIXED else [prefix])
    assert table[prefix].to_pylist() == [100 - one["test_ep_top1"][-1] for one in entries]
    assert table[f"{prefix}_best"].to_pylist() == [100 - one["min_test_top1"] for one in entries]
    assert set(table[f"{prefix}_runs"].to_pylist()) == {1}, "no architecture is twice in a file"
    assert table["imagenet_flops"].to_pylist() == [one["flops"] for one in entries]
    assert table.schema.field("imagenet_params").type == pa.int64()
