"""NAS-Bench-Macro's JSON, made small in the official format and with published numbers."""

import json

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zcpipe import get_space
from zcpipe.errors import DataError
from zcpipe.truth import read_truth, reader
from zcpipe.truth.nasbenchmacro import read_table

# Entries of the official file.
PUBLISHED = {
    "02012100": {
        "test_acc": [89.47000122070312, 88.94999694824219, 89.16999816894531],
        "mean_acc": 89.19666544596355,
        "std": 0.21312667374448538,
        "params": 890666,
        "flops": 47327744,
    },
    "11111221": {
        "test_acc": [92.18000030517578, 92.22000122070312, 92.50999450683594],
        "mean_acc": 92.30333201090495,
        "std": 0.14704207726379126,
        "params": 2181386,
        "flops": 65012224,
    },
    "00000000": {
        "test_acc": [45.31999969482422, 45.32999801635742, 45.439998626708984],
        "mean_acc": 45.36333211263021,
        "std": 0.054364862390541085,
        "params": 387882,
        "flops": 7713280,
    },
}


@pytest.fixture
def store(tmp_path):
    def store(content):
        path = tmp_path / "nas-bench-macro_cifar10.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return store


def fails(path, *words):
    with pytest.raises(DataError) as caught:
        read_table(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message and len(message) < 500
    for word in words:
        assert word in message


def test_published_entries_in_the_order_of_the_space(store):
    rows = read_table(store(PUBLISHED)).to_pylist()
    assert [row["arch"] for row in rows] == sorted(PUBLISHED)
    space = get_space("nasbenchmacro")
    for row in rows:
        entry, arch = PUBLISHED[row["arch"]], space[row["index"]]
        assert str(arch) == row["arch"]
        assert row["cifar10_test_50"] == pytest.approx(entry["mean_acc"], abs=1e-12)
        assert row["cifar10_test_50_seeds"] == 3
        size = space.size(arch, "cifar10")
        assert (row["benchmark_params"], row["benchmark_flops"]) == (size.params, size.macs)


def test_columns_say_what_they_are(store, tmp_path):
    out, told = tmp_path / "t.parquet", []
    path = store(PUBLISHED)
    reader("nasbenchmacro").import_file(path, out, lambda *done: told.append(done))
    assert told == [(path.stat().st_size,) * 2]
    schema = pq.read_schema(out)
    about = {key.decode(): value.decode() for key, value in schema.field("cifar10_test_50").metadata.items()}
    about.pop("PARQUET:field_id", None)
    assert about == {"dataset": "cifar10", "split": "test", "epochs": "50", "unit": "%", "direction": "higher"}
    assert "nas-bench-macro_cifar10.json" in schema.metadata[b"zcpipe.truth"].decode()
    archs, values = read_truth(out, "cifar10_test_50")
    assert archs == sorted(PUBLISHED) and values.min() > 45


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "no JSON"),
        (json.dumps(PUBLISHED)[:-9], "no JSON"),
        ("[" * 200_000, "no JSON"),
        ('{"00000000": ' + "9" * 10_000 + "}", "no JSON"),
        ([], "no architectures"),
        ({}, "no architectures"),
        (5, "no architectures"),
    ],
)
def test_what_is_no_such_file_is_named(store, content, says):
    fails(store(content), says)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("test_acc", None, "lacks the accuracies"),
        ("test_acc", [], "lacks the accuracies"),
        ("test_acc", [89.0, "90"], "'90' is no accuracy"),
        ("test_acc", [89.0, True], "True is no accuracy"),
        ("test_acc", [89.0, float("nan")], "nan is no accuracy"),
        ("test_acc", [89.0, 100.5], "100.5 is no accuracy"),
        ("test_acc", [89.0, -1], "-1 is no accuracy"),
        ("mean_acc", None, "None is no accuracy"),
        ("mean_acc", 89.0, "states the mean 89.0"),
        ("params", 1.5, "1.5 is no number"),
        ("params", 0, "0 is no number"),
        ("flops", 1 << 70, "is no number"),
        ("flops", None, "None is no number"),
    ],
)
def test_a_wrong_entry_is_named(store, key, value, says):
    fails(store({**PUBLISHED, "02012100": {**PUBLISHED["02012100"], key: value}}), "02012100", says)


@pytest.mark.parametrize("arch", ["0201210", "02012103", ""])
def test_an_unknown_architecture_is_named(store, arch):
    fails(store({**PUBLISHED, arch: PUBLISHED["02012100"]}), repr(arch), "malformed network")


def test_texts_are_the_spaces_own(store):
    """Whatever blanks the file has around them: a table's texts have none."""
    blanks = {f" {text}\n": entry for text, entry in PUBLISHED.items()}
    assert read_table(store(blanks)).column("arch").to_pylist() == sorted(PUBLISHED)


def test_an_architecture_twice_is_named(store):
    fails(store({**PUBLISHED, " 00000000": PUBLISHED["02012100"]}), "' 00000000'", "00000000 twice")
    one = json.dumps(PUBLISHED["00000000"])
    fails(store(f'{{"00000000": {one}, "00000001": {one}, "00000000": {one}}}'), "the name '00000000' twice")


def test_an_entry_of_another_kind_is_named(store):
    fails(store({**PUBLISHED, "00000001": [1]}), "00000001", "lacks the accuracies")


def test_absent_and_oversized_files_are_named(tmp_path, store, monkeypatch):
    fails(tmp_path / "absent.json", "no such file")
    fails(tmp_path, "no such file, but a directory")
    monkeypatch.setattr("zcpipe.truth.nasbenchmacro._LARGEST", 100)
    fails(store(PUBLISHED), "bytes")


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_ends_in_a_table_or_a_clear_error(store, data):
    content = bytearray(json.dumps(PUBLISHED).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = store("")
    path.write_bytes(content)
    try:
        assert read_table(path).num_rows
    except DataError as error:
        assert "\n" not in str(error)
