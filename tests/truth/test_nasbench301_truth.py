"""NAS-Bench-301's file becomes one row for each architecture; foreign files are named with their entry."""

import bz2
import copy
import pickle

import pytest

from zcpipe.errors import DataError
from zcpipe.spaces.nasbench301 import NASBENCH301
from zcpipe.truth import read_truth, reader
from zcpipe.truth.nasbench301 import READER, read_table
from zcpipe.untrusted.unpickle import Limits

STARTS = (0, 2, 5, 9)
CONFIG, DARTS = "optimized_hyperparamater_config", "NetworkSelectorDatasetInfo:darts:"


def config(arch, cells=8, channels=32):
    """An architecture as the benchmark's configurations hold it, among what they hold besides."""
    found = {
        DARTS + "layers": cells,
        DARTS + "init_channels": channels,
        DARTS + "auxiliary": True,
        "OptimizerSelector:sgd:learning_rate": 0.025,
    }
    for kind, cell in (("normal", arch.normal), ("reduce", arch.reduce)):
        for position, (operation, source) in enumerate(cell.edges):
            found[DARTS + f"edge_{kind}_{STARTS[position // 2] + source}"] = operation
        for node in (3, 4, 5):
            a, b = (source for _, source in cell.nodes[node - 2])
            found[DARTS + f"inputs_node_{kind}_{node}"] = f"{a}_{b}"
    return found


def entry(arch, val, test, epochs=98, **scale):
    return {
        "path": f"rs/results_{val}.json",
        "parsed": {
            "budget": float(epochs),
            "runtime": 3600.5,
            CONFIG: config(arch, **scale),
            "learning_curves": {
                "Train/train_loss": [2.0] * epochs,
                "Train/val_accuracy": [10.0] * (epochs - 1) + [val],
            },
            "info": [{"val_accuracy": val, "dataset_path": "CIFAR10.csv"}],
            "test_accuracy": test,
            "created_by_optimizer": "rs",
        },
    }


ARCHS = [NASBENCH301.sample(0, i) for i in range(3)]
ENTRIES = [
    entry(ARCHS[0], 90.0, 92.0),
    entry(ARCHS[1], 91.0, 93.0),
    entry(ARCHS[0], 92.0, 93.0),
    entry(ARCHS[2], 80.0, 81.0, epochs=50, channels=16),
]


def stored(path, entries):
    data = pickle.dumps({"entries": entries, "num_files": len(entries)}, protocol=4)
    path.write_bytes(bz2.compress(data) if path.suffix == ".pbz2" else data)
    return path


@pytest.mark.parametrize("name", ["nb301.pkl", "nb301.pkl.pbz2"])
def test_rows_are_architectures_of_the_space(tmp_path, name):
    told = []
    table = read_table(stored(tmp_path / name, ENTRIES), lambda done, size: told.append((done, size)))
    rows = {row["arch"]: row for row in table.to_pylist()}
    assert list(rows) == sorted(str(arch) for arch in ARCHS)
    first, second, third = (rows[str(arch)] for arch in ARCHS)
    assert (first["cifar10_val_98"], first["cifar10_val_98_seeds"], first["cifar10_test_98"]) == (91.0, 2, 92.5)
    assert (second["cifar10_val_98"], second["cifar10_test_98"], second["cifar10_val_50_8x16"]) == (91.0, 93.0, None)
    assert (third["cifar10_val_98"], third["cifar10_val_98_seeds"], third["cifar10_test_50_8x16"]) == (None, 0, 81.0)
    assert table.schema.field("cifar10_val_98").metadata[b"channels"] == b"32"
    assert told[-1][0] == told[-1][1] == (tmp_path / name).stat().st_size


def test_is_installed_and_imports(tmp_path):
    assert reader("nasbench301") is READER
    READER.import_file(stored(tmp_path / "nb301.pkl", ENTRIES), tmp_path / "truth.parquet")
    archs, values = read_truth(tmp_path / "truth.parquet", "cifar10_test_98")
    assert values[archs.index(str(ARCHS[1]))] == 93.0


def test_curves_are_let_go_entry_by_entry(tmp_path, monkeypatch):
    """Together they are more than this file may hold."""
    monkeypatch.setattr("zcpipe.truth.nasbench301.Limits", lambda *_: Limits(objects=30_000))
    entries = [entry(NASBENCH301.sample(1, i), 90.0, 91.0) for i in range(300)]
    assert read_table(stored(tmp_path / "nb301.pkl", entries)).num_rows == 300


def changed(change):
    entries = copy.deepcopy(ENTRIES)
    change(entries[1]["parsed"])
    return entries


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ([], "lists no trained networks"),
        ({"a": 1}, "lists no trained networks"),
        ([1], "entry 0: lacks `parsed`"),
        (changed(lambda p: p.pop("learning_curves")), "entry 1: lacks `parsed`"),
        (changed(lambda p: p.pop(CONFIG)), "entry 1: lacks `parsed`"),
        (changed(lambda p: p["learning_curves"].clear()), "entry 1: None is no accuracy in percent on the val images"),
        (changed(lambda p: p.update(test_accuracy=float("nan"))), "entry 1: nan is no accuracy"),
        (changed(lambda p: p.update(test_accuracy="93")), "entry 1: '93' is no accuracy in percent on the test"),
        (changed(lambda p: p.update(budget=None)), "entry 1: budget is None"),
        (changed(lambda p: p.update(budget=1.5)), "entry 1: budget is 1.5"),
        (
            changed(lambda p: p[CONFIG].pop(DARTS + "layers")),
            "entry 1: layers is None",
        ),
        (
            changed(lambda p: p[CONFIG].pop(DARTS + "edge_normal_0")),
            "entry 1: normal: node 2 has 1 edges, expected 2",
        ),
        (
            changed(lambda p: p[CONFIG].update({DARTS + "edge_normal_0": "sep_conv_4x4"})),
            "entry 1: normal: node 2: unknown operation 'sep_conv_4x4'; did you mean sep_conv",
        ),
    ],
)
def test_foreign_content_is_named(tmp_path, entries, says):
    with pytest.raises(DataError) as caught:
        read_table(stored(tmp_path / "nb301.pkl", entries))
    assert says in str(caught.value)
    assert "nb301.pkl" in str(caught.value)


def test_damaged_files_are_named(tmp_path):
    path = stored(tmp_path / "nb301.pkl", ENTRIES)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match="truncated"):
        read_table(path)
    with pytest.raises(DataError, match="no such file"):
        read_table(tmp_path / "none.pkl")
    path.write_bytes(pickle.dumps({"entries": [print]}))
    with pytest.raises(DataError, match="foreign or hostile"):
        read_table(path)
