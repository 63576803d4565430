import bz2
import os
import pickle
import statistics
import struct
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zcpipe.errors import DataError, UsageError
from zcpipe.truth import Reader, import_nats, read_nats, read_truth, reader, readers
from zcpipe.truth.nats import PREFIXES, Kind, read_table

RELEASE = "nats/NATS-tss-v1_0-3ffb9-simple"


def expected(files, index, dataset, split, hp):
    return statistics.fmean(files.accuracy(index, dataset, split, int(hp), seed) for seed in files.seeds[hp])


def check_cells(files, table, indices):
    rows = table.to_pylist()
    assert [row["index"] for row in rows] == list(indices)
    for row in rows:
        assert row["arch"] == files.archs[row["index"]]
        for (dataset, split), prefix in PREFIXES.items():
            for hp, seeds in files.seeds.items():
                mean = expected(files, row["index"], dataset, split, hp)
                assert row[f"{prefix}_{hp}"] == pytest.approx(mean, abs=1e-9)
                assert row[f"{prefix}_{hp}_seeds"] == len(seeds)
        assert row["benchmark_params_m"] == 0.1 + row["index"]
        assert row["benchmark_flops_m"] == 15.5 + row["index"]


def test_directory(files, directory):
    check_cells(files, read_table(directory), [0, 2])


def test_single_file(files, whole):
    check_cells(files, read_table(whole), [0, 1, 2])


def test_the_official_files_give_the_published_numbers(data, tmp_path):
    table = import_nats(data(RELEASE), tmp_path / "nats.parquet")
    reference = pq.read_table(data("nasbench201_cifar10.parquet")).to_pylist()
    assert table.column("index").to_pylist() == [0, 11]
    for row in table.to_pylist():
        for name, value in reference[row["index"]].items():
            assert row[name] == pytest.approx(value, abs=1e-9), name
    assert table.column("benchmark_params_m").to_pylist() == [0.129306, 0.802426]
    assert table.column("benchmark_flops_m").to_pylist() == [15.64737, 113.95137]
    assert table.column("cifar10_val_12_seeds").to_pylist() == [2, 2]
    assert table.column("cifar100_test_200_seeds").to_pylist() == [3, 3]


def test_the_official_files_read_as_python_reads_them(data):
    """Every final accuracy of every seed, found here by unpickling the file."""
    for path in sorted(data(RELEASE).glob("0*.pbz2")):
        content = pickle.loads(bz2.decompress(path.read_bytes()))
        cell = next(cell for cell in read_nats(path.parent) if cell.index == int(path.name[:6]))
        seen = 0
        for hp, trained in content.items():
            for (dataset, _), record in trained["all_results"].items():
                for split in record["eval_names"]:
                    value = record["eval_acc1es"][f"{split}@{int(hp) - 1}"]
                    assert value in cell.accuracies[Kind(dataset, split, int(hp), hp)]
                    seen += 1
        assert seen == sum(map(len, cell.accuracies.values()))


def test_columns_say_what_they_are(directory, tmp_path):
    import_nats(directory, tmp_path / "t.parquet")
    schema = pq.read_schema(tmp_path / "t.parquet")
    assert schema.field("index").type == pa.int64() and schema.field("arch").type == pa.string()
    about = {key.decode(): value.decode() for key, value in schema.field("cifar10_val_200").metadata.items()}
    about.pop("PARQUET:field_id", None)
    assert about == {
        "dataset": "cifar10-valid", "split": "x-valid", "epochs": "200", "hp": "200",
        "unit": "%", "direction": "higher",
    }  # fmt: skip
    assert schema.field("cifar10_val_200").type == pa.float64()
    assert schema.field("cifar10_val_200_seeds").type == pa.int32()
    source = schema.metadata[b"zcpipe.truth"].decode()
    assert "NATS-tss-v1_0-3ffb9-simple" in source and "MIT" in source and "zcpipe.truth.nats 1" in source


def test_missing_seeds_and_kinds(files, directory):
    """Seeds differ by cell and data set; what is not there is null with a count of 0."""
    content = files.cell(1)
    del content["200"]["all_results"]["cifar10", 888], content["200"]["all_results"]["cifar10", 999]
    for seed in files.seeds["200"]:
        del content["200"]["all_results"]["cifar100", seed]
    files.store(directory / "000001.pickle", content)
    row = read_table(directory).to_pylist()[1]
    assert row["cifar10_test_200"] == pytest.approx(files.accuracy(1, "cifar10", "ori-test", 200, 777))
    assert row["cifar10_test_200_seeds"] == 1
    assert row["cifar100_val_200"] is None and row["cifar100_val_200_seeds"] == 0
    assert row["cifar10_val_200_seeds"] == 3


def test_sets_the_table_does_not_know_keep_the_benchmarks_words(files, directory):
    content = files.cell(1)
    content["12"]["all_results"]["cifar10", 111]["eval_acc1es"]["x-new@11"] = 50.0
    files.store(directory / "000001.pickle", content)
    assert read_table(directory).column("cifar10_x-new_12").to_pylist() == [None, 50.0, None]


def test_progress_ends_at_the_whole(directory, whole):
    for path in (directory, whole):
        told = []
        read_table(path, lambda done, total, told=told: told.append((done, total)))
        assert told == sorted(told) and told[-1][0] == told[-1][1] > 0


def test_nothing_is_overwritten(directory, tmp_path):
    out = tmp_path / "t.parquet"
    out.write_text("mine")
    with pytest.raises(DataError, match="exists already"):
        import_nats(directory, out)
    assert out.read_text() == "mine"
    with pytest.raises(DataError, match="no directory"):
        import_nats(directory, tmp_path / "nowhere" / "t.parquet")


def test_a_failed_write_leaves_nothing(directory, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    before = set(tmp_path.iterdir())
    with pytest.raises(DataError, match="name too long"):
        import_nats(directory, tmp_path / ("t" * 300))
    with pytest.raises(DataError, match="name too long"):
        import_nats(directory, tmp_path / ("t" * 300) / "t.parquet")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="no space left"):
        import_nats(directory, tmp_path / "t.parquet")
    assert set(tmp_path.iterdir()) == before


def test_a_file_made_meanwhile_is_kept(tmp_path, monkeypatch):
    """Also where it comes up after the last look."""
    out = tmp_path / "t.parquet"

    def read(path, progress):
        out.write_text("mine")
        return pa.table({"arch": ["a"]})

    for seen in (os.path.lexists, lambda path: False):
        out.unlink(missing_ok=True)
        monkeypatch.setattr(os.path, "lexists", seen)
        with pytest.raises(DataError, match="exists"):
            Reader("slow", "a reader during whose work another file is made", read).import_file("x", out)
        assert out.read_text() == "mine" and list(tmp_path.iterdir()) == [out]


def fails(path, *words):
    with pytest.raises(DataError) as caught:
        read_table(path)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_what_is_no_nats_bench(files, directory, tmp_path):
    fails(tmp_path / "absent", "no such file")
    fails(tmp_path, "meta.pickle.pbz2")
    fails(next(directory.glob("meta*")), "give the directory")
    fails(next(directory.glob("000000*")), "meta_archs")
    fails(files.store(tmp_path / "x.pickle", [1, 2]), "meta_archs")
    fails(files.store(tmp_path / "x.pickle", {"meta_archs": [1]}), "meta_archs")
    fails(files.store(tmp_path / "x.pickle", {**files.meta(), "arch2infos": {"0": {}}}), "arch2infos")


@pytest.mark.parametrize(
    ("last", "says"),
    [
        ("8:8:8:8:8", "'8:8:8:8:8', no cell of NAS-Bench-201"),
        ("|none~0|+|none~0|none~1|", "no cell of NAS-Bench-201"),
        (None, "twice or with blanks"),
        (" |none~0|+|none~0|none~1|+|none~0|none~1|none~2|", "twice or with blanks"),
    ],
)
def test_another_search_space_is_refused(files, directory, last, says):
    """The size search space is published in the same form."""
    meta = next(directory.glob("meta*"))
    files.store(meta, {**files.meta(), "meta_archs": [*files.archs[:2], last or files.archs[0]]})
    fails(directory, meta.name, says)


def test_hostile_cell(files, directory, tmp_path):
    class Run:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'run'}",)

    content = files.cell(1)
    content["12"]["all_results"]["cifar10", 111]["net_state_dict"] = Run()
    files.store(directory / "000001.pickle", content)
    fails(directory, "000001.pickle", "system", "nothing in it was run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("key", ["eval_acc1es", "train_losses", "params", "latency"])
def test_a_record_inside_itself(files, directory, key):
    content = files.cell(1)
    record = content["200"]["all_results"]["cifar10", 777]
    record[key] = record
    files.store(directory / "000001.pickle", content)
    if key in ("eval_acc1es", "params"):
        fails(directory, "000001.pickle")
    else:
        assert read_table(directory).num_rows == 3


@pytest.mark.parametrize("key", ["params", "epochs", "ori-test@199", "arch_str"])
def test_a_value_nested_without_end(files, directory, key):
    content = files.cell(1)
    trained = content["200"]
    record = trained["all_results"]["cifar10", 777]
    place = {"ori-test@199": record["eval_acc1es"], "arch_str": trained}.get(key, record)
    place[key] = "placeholder"
    data = pickle.dumps(content, protocol=4)
    path = directory / "000001.pickle"
    path.write_bytes(data.replace(b"\x8c\x0bplaceholder", b"]" * 100_000 + b"a" * 99_999))
    fails(directory, "000001.pickle")
    path.write_bytes(data.replace(b"\x8c\x0bplaceholder", DTYPE_OF_A_DEEP_LIST))
    fails(directory, "000001.pickle", "numpy dtype a list")


DTYPE_OF_A_DEEP_LIST = b"cnumpy\ndtype\n" + b"]" * 100_000 + b"a" * 99_999 + b"\x85R"


def test_unreadable_cells(files, directory):
    path = directory / "000001.pickle"
    for make in (
        lambda: path.symlink_to("nowhere"),
        lambda: path.symlink_to(path.name),
        path.mkdir,
        lambda: os.mkfifo(path),
    ):
        make()
        fails(directory, "000001.pickle")
        path.rmdir() if path.is_dir() else path.unlink()
    fails(directory / ("x" * 300), "name too long")


def test_a_tiny_single_file_stays_small(tmp_path):
    """As much as the official file may take is only for a file as large."""
    part = bz2.compress(b"B" + struct.pack("<I", 3_000_000) + bytes(3_000_000))
    path = tmp_path / "NATS-tss-v1_0-3ffb9.pickle.pbz2"
    path.write_bytes(bz2.compress(b"\x80\x04") + part * 50 + bz2.compress(b"."))
    assert path.stat().st_size < 5000
    tracemalloc.start()
    try:
        fails(path, "more")
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()


def test_truncated_cell(directory):
    path = next(directory.glob("000000*"))
    path.write_bytes(path.read_bytes()[:-40])
    fails(directory, "000000", "truncated")


def change(path, value):
    def apply(content):
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return apply


RECORD = ("200", "all_results", ("cifar10", 777))


@pytest.mark.parametrize(
    "edit",
    [
        change(("200",), None),
        change(("200", "arch_str"), "|none~0|"),
        change(("200", "all_results"), [1]),
        change(("200", "all_results", "cifar10"), {"eval_acc1es": {"ori-test@199": 5.0}, "epochs": 200}),
        change(("200", "all_results", ("a b", 1)), {"eval_acc1es": {"ori-test@199": 5.0}, "epochs": 200}),
        change(RECORD, {}),
        change(RECORD, {"final": {"ori-test": 5.0}}),
        change((*RECORD, "epochs"), 199),
        change((*RECORD, "epochs"), "200"),
        change((*RECORD, "eval_acc1es"), None),
        change((*RECORD, "eval_acc1es"), {"ori-test@198": 91.0}),
        change((*RECORD, "eval_acc1es", "ori-test@199"), float("nan")),
        change((*RECORD, "eval_acc1es", "ori-test@199"), 100.5),
        change((*RECORD, "eval_acc1es", "ori-test@199"), "91"),
        change((*RECORD, "eval_acc1es", "ori-test@199"), [91.0]),
        change((*RECORD, "eval_acc1es", "../x\n@199"), 91.0),
        change((*RECORD, "params"), None),
        change((*RECORD, "flop"), float("nan")),
    ],
)
def test_foreign_content(files, directory, edit):
    content = files.cell(1)
    edit(content)
    files.store(directory / "000001.pickle", content)
    fails(directory, "000001.pickle")


def test_cells_that_do_not_fit_the_list(files, directory):
    files.store(directory / "000001.pickle", files.cell(0))
    fails(directory, "another architecture")
    (directory / "000001.pickle").unlink()
    files.store(directory / "000007.pickle", files.cell(0))
    fails(directory, "none with index 7")


def test_a_cell_given_twice(files, directory):
    for suffix in (".pickle", ".pickle.pbz2"):
        files.store(directory / f"000001{suffix}", files.cell(1))
    fails(directory, "twice")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_is_one_error(files, tmp_path, draw):
    """Whatever byte changes, the reader gives rows or a DataError."""
    place = tmp_path / "damaged"
    place.mkdir(exist_ok=True)
    files.store(place / "meta.pickle", files.meta())
    data = bytearray(pickle.dumps(files.cell(0), protocol=4))
    for _ in range(3):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    (place / "000000.pickle").write_bytes(data)
    try:
        read_table(place)
    except DataError as error:
        assert "\n" not in str(error)


def test_reader_registry(directory, tmp_path):
    assert readers()["nats"] is reader("nats")
    assert reader("nats").import_file(directory, tmp_path / "t.parquet").num_rows == 2
    archs, values = read_truth(tmp_path / "t.parquet", "cifar10_test_200")
    assert len(archs) == 2 and np.isfinite(values).all()
    with pytest.raises(UsageError, match="did you mean nats"):
        reader("nat")
