"""The command line with NDS: names with a slash, official files as lists of architectures, as truth, and verified."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from nds_entries import PARAMS, RESNETS, TEXTS, entry, write

CHEAP = ("run", "--proxies", "params", "-q", "--json")


@pytest.fixture
def files(tmp_path):
    """A directory of two files of ResNets, one network being in both, and one of Vanilla."""
    place = tmp_path / "nds_data"
    place.mkdir()
    write(place / "ResNet_rng1.json", [entry(0), entry(1)])
    write(place / "ResNet_rng2.json", [entry(1, (55.0, 21.0)), entry(2, (55.0, 21.0))])
    write(place / "Vanilla.json", [entry(2, net={**RESNETS[2], "block_type": "double_plain_block"})])
    return place


def planned(text):
    return json.loads(text)["planned"]


@pytest.mark.parametrize("space", ["nds", "nds/resnet"])
def test_without_a_selection_both_are_named(zcpipe, space, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = zcpipe("run", "--space", space)
    assert code == 2
    assert "--sample" in err and "--archs" in err
    assert not list(tmp_path.iterdir())


def test_the_default_directory_of_a_space_with_a_slash_is_one(zcpipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, text, _ = zcpipe(*CHEAP, "--space", "nds/vanilla", "--sample", 3)
    assert code == 0
    out = Path(json.loads(text)["path"])
    assert out.parent == Path("runs") and out.name.startswith("nds-vanilla-")
    assert [path.name for path in Path("runs").iterdir()] == [out.name]
    assert json.loads(zcpipe("status", out, "--json")[1])["rows"] == 3
    assert pq.read_table(out)["space"].to_pylist() == ["nds/vanilla"] * 3


def test_official_files_are_lists_of_architectures(zcpipe, files, tmp_path):
    run = (*CHEAP, "--out", tmp_path / "t", "--space", "nds")
    code, text, _ = zcpipe(*run, "--archs", files / "ResNet_rng1.json")
    assert (code, planned(text)) == (0, 2)
    code, text, _ = zcpipe(*run, "--archs", files)
    assert (code, planned(text)) == (0, 4), "what is in two files has one row"
    rows = pq.read_table(tmp_path / "t").to_pylist()
    assert {row["arch"]: row["params"] for row in rows if row["arch"] in TEXTS} == dict(zip(TEXTS, PARAMS, strict=True))
    part = (*CHEAP, "--out", tmp_path / "part", "--space", "nds/resnet")
    assert planned(zcpipe(*part, "--archs", files)[1]) == 3


def test_the_files_data_set_is_the_default(zcpipe, data, tmp_path):
    file = data("nds/ResNeXt-B_in.json")
    plan = ("run", "--space", "nds", "--proxies", "params", "--out", tmp_path / "t", "--dry-run", "--json")
    assert json.loads(zcpipe(*plan, "--archs", file)[1])["spec"]["dataset"] == "imagenet"
    assert json.loads(zcpipe(*plan, "--archs", file, "--dataset", "cifar10")[1])["spec"]["dataset"] == "cifar10"
    assert json.loads(zcpipe(*plan, "--sample", "3")[1])["spec"]["dataset"] == "cifar10"


def test_files_of_several_data_sets_are_said_to_be(zcpipe, files, tmp_path):
    plan = ("run", "--space", "nds", "--proxies", "params", "--out", tmp_path / "t", "--dry-run", "--json")
    assert "note" not in zcpipe(*plan, "--archs", files)[2]
    write(files / "ResNet_in.json", [entry(0, net={**RESNETS[0], "ss": [4, 1, 2, 2]})])
    for options, dataset in (((), "cifar10"), (("--dataset", "imagenet"), "imagenet")):
        code, text, err = zcpipe(*plan, *options, "--archs", files)
        assert (code, json.loads(text)["spec"]["dataset"]) == (0, dataset)
        assert f"nds_data is of cifar10 and imagenet; all are built for {dataset}" in err


def test_a_plan_of_draws_counts_no_classes(zcpipe, tmp_path):
    plan = ("run", "--space", "nds", "--proxies", "params", "--sample", "70", "--out", tmp_path / "t", "--dry-run")
    text = zcpipe(*plan)[1]
    assert text.count(" 70 in 2 shards") == 2 and "None" not in text


def test_damaged_and_foreign_files_stop_before_any_work(zcpipe, files, tmp_path):
    run = (*CHEAP, "--out", tmp_path / "t", "--space", "nds")
    broken = write(files / "ResNet_rng3.json", [entry(0), entry(1, net={"block_type": "res_basic_block"})])
    for archs in (files, broken):
        code, _, err = zcpipe(*run, "--archs", archs)
        assert code == 4
        assert "ResNet_rng3.json, entry 1" in err and len(err.splitlines()) == 1
    broken.write_text(json.dumps([entry(0)])[:99])
    code, _, err = zcpipe(*run, "--archs", broken)
    assert (code, "ResNet_rng3.json: is no JSON" in err) == (4, True)
    code, _, err = zcpipe(*CHEAP, "--space", "nds/darts", "--archs", files / "Vanilla.json")
    assert (code, "nds/vanilla" in err) == (4, True)
    assert not (tmp_path / "t").exists()


def test_a_space_without_official_files_says_so(zcpipe, files):
    code, _, err = zcpipe("run", "--space", "nasbench201", "--archs", files / "Vanilla.json")
    assert (code, "nasbench201 has no official JSON files" in err) == (2, True)
    code, _, err = zcpipe("spaces", "verify", "nasbench201", files / "Vanilla.json")
    assert (code, "nasbench201 has no official files that state counts" in err) == (2, True)


def test_verify_counts_and_lists_differences(zcpipe, files):
    file = files / "ResNet_rng1.json"
    code, text, _ = zcpipe("spaces", "verify", "nds", file, "--json")
    assert (code, json.loads(text)) == (0, {"n": 2, "params_equal": 2, "macs_equal": 2, "mismatches": []})
    assert "2 networks, 2 with" in zcpipe("spaces", "verify", "nds/resnet", file)[1]
    write(file, [entry(0), entry(1, params=5)])
    code, text, _ = zcpipe("spaces", "verify", "nds", file, "--json")
    found = json.loads(text)
    assert (code, found["params_equal"], found["macs_equal"]) == (4, 1, 2)
    (one,) = found["mismatches"]
    assert (one["entry"], one["arch"], one["expected"]["params"]) == (1, TEXTS[1], 5)
    assert one["got"]["params"] == PARAMS[1]
    code, text, _ = zcpipe("spaces", "verify", "nds", file)
    assert code == 4 and "entry 1" in text
    assert zcpipe("spaces", "verify", "nds", files / "absent.json")[0] == 4
    assert zcpipe("spaces", "verify", "ndx", file)[0] == 2


def test_spaces_are_listed_as_before(zcpipe):
    code, text, _ = zcpipe("spaces", "--json")
    listed = {space["name"]: space for space in json.loads(text)}
    assert code == 0
    assert listed["nds"]["architectures"] is None and listed["nds/darts"]["datasets"] == ["cifar10", "imagenet"]
    assert "nds/resnext-a" in zcpipe("spaces")[1]


def test_truth_is_imported_and_joins_a_table(zcpipe, tmp_path):
    file = write(tmp_path / "ResNet.json", [entry(at, (50.0, 40.0, 30.0 - at)) for at in range(3)])
    out, table = tmp_path / "truth.parquet", tmp_path / "t"
    code, text, _ = zcpipe("truth", "import", "nds", file, "--out", out, "--json")
    assert (code, json.loads(text)["architectures"]) == (0, 3)
    assert zcpipe(*CHEAP, "--space", "nds", "--archs", file, "--out", table)[0] == 0
    code, text, _ = zcpipe("correlate", table, "--truth", out, "--target", "cifar10_test_3", "--json")
    assert code == 0
    assert {(row["name"], row["n"], row["kendall"]) for row in json.loads(text)["rows"]} == {
        ("params", 3, 1.0),
        ("macs", 3, 1.0),
    }


def test_truth_of_mixed_learning_rates_is_not_ranked(zcpipe, tmp_path):
    file = write(tmp_path / "ResNet_lr-wd.json", [entry(0), entry(1)])
    out, table = tmp_path / "truth.parquet", tmp_path / "t"
    assert zcpipe("truth", "import", "nds", file, "--out", out)[0] == 0
    assert zcpipe(*CHEAP, "--space", "nds", "--archs", file, "--out", table)[0] == 0
    code, _, err = zcpipe("correlate", table, "--truth", out, "--target", "cifar10_test_3_lr-wd")
    assert code == 2
    assert "not for ranking" in err and "learning rate" in err


def test_readers_of_truth_are_listed_and_found(zcpipe, tmp_path):
    names = [one["name"] for one in json.loads(zcpipe("truth", "readers", "--json")[1])]
    assert {"nats", "nds"} <= set(names)
    code, _, err = zcpipe("truth", "import", "ndt", tmp_path, "--out", tmp_path / "x.parquet")
    assert (code, "unknown truth reader 'ndt'" in err) == (2, True)
