"""NAS-Bench-101's files: the numbers that they state, and nothing but an error from any other."""

import base64
import bz2
import json
import os
import pickle
import statistics
import struct
import tracemalloc

import nasbench101_files as files
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zcpipe.errors import DataError
from zcpipe.truth import read_truth, reader
from zcpipe.truth._nasbench101_metrics import model_metrics
from zcpipe.truth.nasbench101 import read_table

SPACE, CELLS = files.SPACE, files.CELLS
ACCURACIES = {"train": 1, "val": 2, "test": 3}  # where `values` has them


@pytest.fixture
def write(tmp_path):
    def write(data, name="nasbench"):
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write


def check(table, cells, epochs):
    """Every number of the table is the mean of what was written."""
    rows = table.to_pylist()
    assert [row["arch"] for row in rows] == [str(cell) for cell in cells]
    for row, cell in zip(rows, cells, strict=True):
        assert SPACE.parse(row["arch"]) == cell
        assert (row["index"], row["key"]) == (SPACE.index(cell), SPACE.key(cell))
        assert row["benchmark_params"] == files.params(cell)
        for budget in epochs:
            runs = [files.values(cell, budget, repeat) for repeat in range(files.REPEATS)]
            for split, place in ACCURACIES.items():
                mean = 100 * statistics.fmean(run[place] for run in runs)
                assert row[f"cifar10_{split}_{budget}"] == pytest.approx(mean, rel=1e-12)
            assert row[f"train_seconds_{budget}"] == pytest.approx(statistics.fmean(run[0] for run in runs))
            assert row[f"repeats_{budget}"] == files.REPEATS


def test_checksums_are_those_of_rfc_3720():
    for data, published in ((bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43), (bytes(range(32)), 0x46DD794E)):
        assert files.crc32c(data) == published


@pytest.mark.parametrize("epochs", [files.EPOCHS, (108,)], ids=["full", "only108"])
def test_tfrecord(write, epochs):
    table = read_table(write(files.tfrecord(epochs=epochs)))
    check(table, CELLS, epochs)
    assert len(table.column_names) == 4 + 5 * len(epochs)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("compress", [bytes, bz2.compress], ids=["plain", "bz2"])
def test_pickles(write, protocol, compress):
    check(read_table(write(compress(files.pickled(files.naslib(), protocol)))), CELLS, (108,))
    check(read_table(write(compress(files.pickled(files.nasbenchapi(), protocol)))), CELLS, files.EPOCHS)


def test_many_cells_are_read_in_pieces(write):
    """More than a piece of a TFRecord file, and than Python pickles at once."""
    cells = [SPACE[index] for index in range(0, 423_000, 400)]
    check(read_table(write(files.tfrecord(cells, (108,)))), cells, (108,))
    check(read_table(write(files.pickled(files.naslib(cells)))), cells, (108,))
    check(read_table(write(files.pickled(files.nasbenchapi(cells, (108,))))), cells, (108,))


def test_rows_come_in_the_order_of_the_space_whatever_that_of_the_records(write):
    payloads = files.payloads()
    mixed = payloads[1::2][::-1] + payloads[::2]
    table = read_table(write(b"".join(map(files.frame, mixed))))
    check(table, CELLS, files.EPOCHS)


def test_a_cell_in_another_form_is_its_member(write):
    """Here the two inner vertices change places."""
    cell = SPACE.parse("110.01.1:input,conv3x3-bn-relu,maxpool3x3,output")
    content = json.loads(files.record(cell, 108, 0))
    content[3] = "input,maxpool3x3,conv3x3-bn-relu,output"
    table = read_table(write(files.frame(json.dumps(content).encode())))
    assert table["arch"].to_pylist() == [str(cell)]


def test_budgets_that_a_cell_lacks_are_null(write):
    data = files.tfrecord(CELLS[:1], (108,)) + files.tfrecord(CELLS[1:2], (4,))
    first, second = read_table(write(data)).to_pylist()
    assert (first["cifar10_test_4"], first["repeats_4"]) == (None, 0)
    assert (second["cifar10_test_108"], second["repeats_108"]) == (None, 0)
    assert second["cifar10_test_4"] is not None


def test_columns_say_what_they_are(write, tmp_path):
    path = write(files.tfrecord(), "nasbench_full.tfrecord")
    reader("nasbench101").import_file(path, tmp_path / "t.parquet")
    schema = pq.read_schema(tmp_path / "t.parquet")
    assert schema.names[:8] == [
        "index", "arch", "key", "cifar10_val_108", "cifar10_test_108", "cifar10_train_108", "train_seconds_108",
        "repeats_108",
    ]  # fmt: skip
    assert schema.names[8] == "cifar10_val_36" and schema.names[-1] == "benchmark_params"
    about = {key.decode(): value.decode() for key, value in schema.field("cifar10_test_108").metadata.items()}
    about.pop("PARQUET:field_id", None)
    assert about == {"dataset": "cifar10", "split": "test", "epochs": "108", "unit": "%", "direction": "higher"}
    assert schema.field("cifar10_test_108").type == pa.float64()
    source = schema.metadata[b"zcpipe.truth"].decode()
    assert "nasbench_full.tfrecord" in source and "Apache" in source and "zcpipe.truth.nasbench101 1" in source
    archs, accuracies = read_truth(tmp_path / "t.parquet", "cifar10_test_108")
    assert len(archs) == 4 and np.isfinite(accuracies).all()


def test_hashes_of_real_cells_are_accepted(write, data):
    """Any other hash would be refused."""
    rows = pq.read_table(data("nasbench101_sample.parquet")).to_pylist()
    message = base64.b64encode(files.message(CELLS[0], 108, 0)).decode()
    records = [
        [row["hash"], 108, "".join(c for c in row["adjacency"] if c in "01"), ",".join(json.loads(row["ops"])), message]
        for row in rows
    ]
    table = read_table(write(b"".join(files.frame(json.dumps(record).encode()) for record in records)))
    assert sorted(table["key"].to_pylist()) == sorted(row["hash"] for row in rows)


def test_progress_ends_at_the_whole(write):
    for data in (files.tfrecord(), files.pickled(files.naslib())):
        told = []
        read_table(write(data), lambda done, total, told=told: told.append((done, total)))
        assert told == sorted(told) and told[-1] == (len(data), len(data))


def fails(path, *words):
    with pytest.raises(DataError) as caught:
        read_table(path)
    message = str(caught.value)
    assert "\n" not in message
    for word in (str(path), *words):
        assert word in message


def test_what_is_no_file_of_the_benchmark(write, tmp_path):
    fails(tmp_path / "absent", "no such file")
    fails(tmp_path, "no such file")
    fails(write(b""), "no pickle")
    fails(write(b"hello, world" * 99))
    fails(write(files.pickled({"benchmark": "nasbench201", "arch2infos": {}})), "none of NAS-Bench-101")
    fails(write(files.pickled([1, 2])), "none of NAS-Bench-101")
    fails(write(files.pickled({**files.nasbenchapi(), "benchmark": "nasbench201"})), "none of NAS-Bench-101")
    fails(write(files.frame(b"a foreign payload")), "record 0 is none of NAS-Bench-101")


class TestDamage:
    """A damaged TFRecord file is named with the record."""

    def test_truncated_anywhere(self, write):
        data = files.tfrecord(CELLS[:2], (108,))
        ends = np.cumsum([len(files.frame(payload)) for payload in files.payloads(CELLS[:2], (108,))]).tolist()
        for size in range(8, len(data), 37):
            if size not in ends:
                fails(write(data[:size]), f"record {sum(end < size for end in ends)}", "truncated")

    @settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.integers(0, 2000), st.integers(1, 255))
    def test_any_byte_changed(self, write, place, change):
        data = bytearray(files.tfrecord(CELLS[2:], (108,)))
        data[8 + place] ^= change  # the first 8 tell the forms apart
        with pytest.raises(DataError, match="record"):
            read_table(write(bytes(data)))

    def test_the_first_damaged_record_is_named(self, write):
        payloads = [files.frame(payload) for payload in files.payloads()]
        for number in (3, 40):
            damaged = [*payloads]
            damaged[number] = damaged[number][:-1] + bytes([damaged[number][-1] ^ 1])
            damaged[-1] = damaged[-1][:20]
            fails(write(b"".join(damaged)), f"record {number} is damaged")

    def test_a_record_too_long_is_not_held(self, write):
        length = struct.pack("<Q", 1 << 40)
        tracemalloc.start()
        try:
            fails(write(files.tfrecord(CELLS[:1]) + length + files.masked(length) + bytes(1 << 22)), "record 12 is of")
            assert tracemalloc.get_traced_memory()[1] < 100 << 20
        finally:
            tracemalloc.stop()


def changed(place, value):
    content = json.loads(files.record(CELLS[2], 108, 0))
    content[place] = value
    return json.dumps(content).encode()


BAD_MESSAGES = {
    "empty": b"",
    "a number without end": b"\xff" * 12,
    "a field beyond its end": files.message(CELLS[2], 108, 0)[:-1],
    "an unknown wire type": files.message(CELLS[2], 108, 0) + b"\x0b",
    "two evaluations": b"\x0a\x00\x0a\x00\x10\x05",
    "no parameters": files.message(CELLS[2], 108, 0).replace(b"\x10" + files.varint(files.params(CELLS[2])), b""),
    "no accuracy": b"\x0a\x00\x0a\x00\x0a\x00\x10\x05",
}


def with_values(*numbers):
    parts = [files.evaluation(0.0, (0.0,) * 4)] * 2 + [files.evaluation(108.0, numbers)]
    return b"".join(b"\x0a" + files.varint(len(part)) + part for part in parts) + b"\x10\x05"


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (b"[" * 60_000, "recursion"),
        (b"\xff\xfe", "none of NAS-Bench-101"),
        (b"[1, 2, 3]", "none of NAS-Bench-101"),
        (b'{"a": 1}', "none of NAS-Bench-101"),
        (changed(0, "0" * 32), "states the hash"),
        (changed(0, 5), "5 is no hash"),
        (changed(1, 7), "7 epochs"),
        (changed(1, "108"), "'108' epochs"),
        (changed(1, True), "True epochs"),
        (changed(2, "01"), "no adjacency matrix"),
        (changed(2, "0" * 25), "not connected"),
        (changed(2, "1" * 25), "above the diagonal"),
        (changed(2, "2" * 25), "no adjacency matrix"),
        (changed(2, "0" * 64), "no adjacency matrix"),
        (changed(2, ["0"]), "no hash"),
        (changed(3, "input,output"), "got 0, expected 3"),
        (changed(3, "input,conv5x5,maxpool3x3,maxpool3x3,output"), "unknown operation"),
        (changed(3, "output"), "do not begin with input"),
        (changed(3, "x" * 300), "no hash"),
        (changed(4, "!!!!"), "none of NAS-Bench-101"),
        (changed(4, None), "none of NAS-Bench-101"),
        *[(changed(4, base64.b64encode(message).decode()), "none of") for message in BAD_MESSAGES.values()],
        (changed(4, base64.b64encode(with_values(1.0, 1.5, 0.5, 0.5)).decode()), "accuracy of 1.5"),
        (changed(4, base64.b64encode(with_values(1.0, 0.5, float("nan"), 0.5)).decode()), "accuracy of 0.5, nan"),
        (changed(4, base64.b64encode(with_values(-1.0, 0.5, 0.5, 0.5)).decode()), "training time"),
        (changed(4, base64.b64encode(with_values(float("inf"), 0.5, 0.5, 0.5)).decode()), "training time"),
    ],
)
def test_foreign_records_are_named(write, payload, says):
    fails(write(files.tfrecord(CELLS[:1], (108,)) + files.frame(payload)), "record 3", says)


def test_records_that_contradict_each_other(write):
    content = json.loads(files.record(CELLS[0], 108, 0))
    content[4] = base64.b64encode(files.message(CELLS[1], 108, 0)).decode()  # with its number of parameters
    other = files.frame(json.dumps(content).encode())
    fails(write(files.tfrecord(CELLS[:1], (108,)) + other), "another number of parameters")
    fails(write(other + files.tfrecord(CELLS[:1], (108,))), "another number of parameters")


def test_a_cell_of_ten_edges_is_refused(write):
    content = json.loads(files.record(CELLS[2], 108, 0))
    content[2] = "".join(map(str, np.triu(np.ones((5, 5), int), 1).ravel()))
    fails(write(files.frame(json.dumps(content).encode())), "record 0", "more than 9 edges")


@given(st.binary(max_size=80))
def test_any_message_is_read_or_refused(message):
    try:
        model_metrics(message)
    except ValueError as error:
        assert str(error)


@given(st.binary(max_size=40), st.data())
def test_a_message_may_have_further_fields(extra, draw):
    """Whatever their number and type."""
    message = files.message(CELLS[3], 36, 1)
    field = draw.draw(st.integers(7, 1000))
    added = draw.draw(
        st.sampled_from(
            [
                files.varint(field << 3) + files.varint(len(extra)),
                files.varint(field << 3 | 1) + bytes(8),
                files.varint(field << 3 | 2) + files.varint(len(extra)) + extra,
                files.varint(field << 3 | 5) + bytes(4),
            ]
        )
    )
    assert model_metrics(added + message + added) == model_metrics(message)
    seconds, train, validation, test = files.values(CELLS[3], 36, 1)
    assert model_metrics(message) == (files.params(CELLS[3]), seconds, train, validation, test)


def hash_of(content):
    return next(iter(content))


def edit_naslib(edit):
    content = files.naslib(CELLS[:2])
    fixed, computed = content[hash_of(content)]
    edit(content, fixed, computed)
    return files.pickled(content)


@pytest.mark.parametrize(
    "edit",
    [
        lambda content, fixed, computed: content.update({hash_of(content): (fixed,)}),
        lambda content, fixed, computed: content.update({hash_of(content): (computed, fixed)}),
        lambda content, fixed, computed: content.update({hash_of(content): 5}),
        lambda content, fixed, computed: fixed.pop("module_adjacency"),
        lambda content, fixed, computed: fixed.update(module_adjacency=[[0, 1], [0, 0]]),
        lambda content, fixed, computed: fixed.update(module_adjacency=np.zeros((2, 2))),
        lambda content, fixed, computed: fixed.update(module_adjacency=np.zeros((99, 99), int)),
        lambda content, fixed, computed: fixed.update(module_operations="input,output"),
        lambda content, fixed, computed: fixed.update(module_operations=["input", 5]),
        lambda content, fixed, computed: fixed.update(trainable_parameters="many"),
        lambda content, fixed, computed: fixed.update(trainable_parameters=1 << 40),
        lambda content, fixed, computed: computed.update({108: None}),
        lambda content, fixed, computed: computed.update({"x": computed[108]}),
        lambda content, fixed, computed: computed[108].append([]),
        lambda content, fixed, computed: computed[108][0].pop("final_test_accuracy"),
        lambda content, fixed, computed: computed[108][0].update(final_test_accuracy=True),
        lambda content, fixed, computed: computed[108][0].update(final_test_accuracy=computed),
        lambda content, fixed, computed: content.update({"0" * 32: content.pop(hash_of(content))}),
    ],
)
def test_foreign_cells_of_a_pickle_are_named(write, edit):
    fails(write(edit_naslib(edit)), "cell '")


@pytest.mark.parametrize("name", ["adjacency_str", "operations_str", "epoch", "derived"])
def test_foreign_records_of_a_pickle_are_named(write, name):
    content = files.nasbenchapi(CELLS[:2])
    records = content["entries_by_arch"][hash_of(content["entries_by_arch"])]
    for value in (None, [records], "x"):
        records[1][name] = value
        fails(write(files.pickled(content)), "cell '")
    del records[1][name]
    fails(write(files.pickled(content)), "lacks")


def test_a_hostile_pickle_runs_nothing(write, tmp_path):
    class Run:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'run'}",)

    fails(write(edit_naslib(lambda content, fixed, computed: fixed.update(x=Run()))), "nothing in it was run")
    assert not (tmp_path / "run").exists()


def test_a_pickle_that_holds_itself(write):
    content = files.naslib(CELLS[:2])
    _, computed = content[hash_of(content)]
    computed[108][0]["x"] = computed
    computed[108][0]["y"] = computed[108]
    check(read_table(write(files.pickled(content))), CELLS[:2], (108,))


def test_truncated_pickles(write):
    for content in (files.naslib(), files.nasbenchapi()):
        data = files.pickled(content)
        for size in (len(data) // 3, len(data) - 1):
            fails(write(data[:size]), "truncated")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_of_a_pickle_is_one_error(write, draw):
    """Whatever bytes change, the reader gives rows or a DataError."""
    data = bytearray(pickle.dumps(files.naslib(CELLS[:2]), protocol=4))
    for _ in range(3):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    try:
        read_table(write(bytes(data)))
    except DataError as error:
        assert "\n" not in str(error)
