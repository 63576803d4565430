import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from zcpipe.errors import DataError, UsageError
from zcpipe.truth import align, read_truth


@pytest.fixture
def write(tmp_path):
    def write(table):
        path = tmp_path / "truth.parquet"
        pq.write_table(table if isinstance(table, pa.Table) else pa.table(table), path)
        return path

    return write


@pytest.mark.parametrize(
    "kind", [pa.float64(), pa.float32(), pa.float16(), pa.int64(), pa.uint8(), pa.decimal128(25, 2)], ids=str
)
@pytest.mark.parametrize(
    "text", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())], ids=["s", "large", "dictionary"]
)
def test_reads(write, kind, text):
    values = pa.array([1, None, 3], pa.int64()).cast(kind)
    path = write({"other": [1, 2, 3], "arch": pa.array(["a", "b", "c"]).cast(text), "acc": values})
    archs, read = read_truth(path, "acc")
    assert archs == ["a", "b", "c"]
    assert read.dtype == np.float64 and read.flags.writeable
    np.testing.assert_array_equal(read, [1, np.nan, 3])


def test_integers_beyond_float64(write):
    path = write({"arch": ["a", "b"], "acc": pa.array([2**53 + 1, -(2**62) - 1], pa.int64())})
    np.testing.assert_array_equal(read_truth(path, "acc")[1], [2.0**53, -(2.0**62)])


def test_real_file(data):
    archs, values = read_truth(data("nasbench201_cifar10.parquet"), "cifar10_test_200")
    assert len(archs) == 15625
    assert int(values.argmax()) == 6111 and round(float(values.max()), 4) == 94.3733


def test_unknown_column_names_near_ones(write):
    path = write({"arch": ["a"], "cifar10_test_200": [1.0], "note": ["x"]})
    with pytest.raises(UsageError, match="unknown column 'cifar10_test_20'; did you mean cifar10_test_200"):
        read_truth(path, "cifar10_test_20")


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"acc": [1.0]}, "no column 'arch'"),
        ({"arch": ["a"], "acc": ["high"]}, "not numeric"),
        ({"arch": ["a"], "acc": [True]}, "not numeric"),
        ({"arch": [1], "acc": [1.0]}, "not text"),
        ({"arch": ["a", "b", "a"], "acc": [1.0, 2.0, 3.0]}, "twice"),
        ({"arch": ["a", None], "acc": [1.0, 2.0]}, "null"),
    ],
)
def test_what_does_not_fit(write, table, words):
    with pytest.raises(DataError, match=words):
        read_truth(write(table), "acc")


ENCODINGS = [None, "PLAIN", "DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_rows_of_several_pieces(tmp_path, encoding):
    """Nulls, duplicates and order hold over the pieces that a file is read in."""

    def write(table):
        kinds = {"use_dictionary": encoding is None, "column_encoding": encoding and {"arch": encoding}}
        pq.write_table(pa.table(table), tmp_path / "t.parquet", row_group_size=7000, **kinds)
        return tmp_path / "t.parquet"

    n = 10_000
    archs = [f"a{i}" for i in range(n)]
    path = write({"acc": [None if i == 5000 else float(i) for i in range(n)], "arch": archs})
    read, values = read_truth(path, "acc")
    assert read == archs and np.isnan(values[5000]) and values[-1] == n - 1 and np.isnan(values).sum() == 1
    with pytest.raises(DataError, match="'a7' twice"):
        read_truth(write({"arch": [*archs, "a7"], "acc": [1.0] * (n + 1)}), "acc")
    with pytest.raises(DataError, match="null in row 9999"):
        read_truth(write({"arch": [*archs[:-1], None], "acc": [1.0] * n}), "acc")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_texts_longer_than_any_architecture(tmp_path, encoding):
    """Of such a file a few hundred bytes may stand for gigabytes."""
    kinds = {"use_dictionary": encoding is None, "column_encoding": encoding and {"arch": encoding}}
    path = tmp_path / "t.parquet"
    for texts in (["x" * 100_000] * 3000, ["x" * 9000, "y"]):
        indices = pa.array([0] * len(texts) if len(set(texts)) == 1 else [0, 1], pa.int32())
        column = pa.DictionaryArray.from_arrays(indices, list(dict.fromkeys(texts)))
        column = column if encoding is None else column.cast(pa.string())
        table = pa.table({"arch": column, "acc": [1.0] * len(texts)})
        pq.write_table(table, path, compression="zstd", store_schema=False, **kinds)
        del column, table
        with pytest.raises(DataError, match="more than 8192 bytes, which are no"):
            read_truth(path, "acc")
    pq.write_table(pa.table({"arch": ["x" * 8000, "y"], "acc": [1.0, 2.0]}), path)
    assert read_truth(path, "acc")[0][1] == "y"


def test_same_name_twice(write):
    with pytest.raises(DataError, match="two columns"):
        read_truth(write(pa.table([["a"], [1.0], [2.0]], names=["arch", "acc", "acc"])), "acc")


def test_no_parquet(write, tmp_path):
    path = write({"arch": ["a"] * 1, "acc": [1.0]})
    whole = path.read_bytes()
    for content in (
        b"",
        b"PAR1",
        b"hello" * 99,
        whole[:-20],
        whole[: len(whole) // 2],
        whole[:4] + b"\xff" * 60 + whole[64:],
    ):
        path.write_bytes(content)
        with pytest.raises(DataError) as caught:
            read_truth(path, "acc")
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="name too long"):
        read_truth(tmp_path / ("x" * 300), "acc")
    for place in (tmp_path, tmp_path / "absent.parquet"):
        with pytest.raises(DataError, match="no such file"):
            read_truth(place, "acc")


def test_align():
    truth = (["a", "b", "c"], np.array([1.0, np.nan, 3.0]))
    np.testing.assert_array_equal(align(["c", "x", "a", "c", "b"], truth), [3, np.nan, 1, 3, np.nan])
    for archs in (["x"], []):
        with pytest.raises(DataError, match="knows none"):
            align(archs, truth)
    with pytest.raises(DataError, match="knows none"):
        align(["a"], ([], np.array([])))
